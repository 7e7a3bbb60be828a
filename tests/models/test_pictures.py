"""Images as people have them: what is clear is taken, and what is not is refused with what is wanted."""

import numpy as np
import pytest
import torch
from PIL import Image

from matu_flwr import load_finetuned
from matu_flwr.models.artefacts import write_tensors
from matu_flwr.models.pictures import PictureError, as_batch
from matu_flwr.tasks.loaders.decoder import square_rgb, to_rgb
from tests.models import models as made

S = 16
PIXELS = np.random.default_rng(0).integers(0, 256, (S, S, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]


def batch_of(array):
    """(S, S, 3) as a batch of one."""
    return torch.from_numpy(np.array(array))[None]


FORMS = {
    "PIL": Image.fromarray(PIXELS),
    "HWC": PIXELS,
    "CHW": np.moveaxis(PIXELS, -1, 0),
    "NHWC": PIXELS[None],
    "NCHW": np.moveaxis(PIXELS, -1, 0)[None],
    "tensor HWC": torch.from_numpy(PIXELS),
    "tensor NCHW": torch.from_numpy(PIXELS).permute(2, 0, 1)[None],
    "list": [PIXELS],
    "list of batches": [PIXELS[None]],
    "tuple of PIL": (Image.fromarray(PIXELS),),
    "int64": torch.from_numpy(PIXELS).long(),
    "float in [0, 255]": PIXELS.astype(np.float64),
    "float in [0, 1]": PIXELS / 255,
    "float32 CHW in [0, 1], as torchvision gives": torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255,
    "big-endian": PIXELS.astype(">f4"),
    "with a gradient": (torch.from_numpy(PIXELS).float() / 255).requires_grad_(),
    "backwards": PIXELS[::-1, ::-1].copy()[::-1, ::-1],
    "RGBA": np.concatenate([PIXELS, np.full((S, S, 1), 255, np.uint8)], axis=-1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("error")
def test_one_picture_in_any_form_is_the_same_pixels(form):
    found = as_batch(FORMS[form], S)
    assert (found.dtype, found.is_contiguous()) == (torch.uint8, True)
    assert torch.equal(found, batch_of(PIXELS))


GREYS = {
    "(H, W)": GREY,
    "(H, W, 1)": GREY[..., None],
    "(1, H, W, 1)": GREY[None, ..., None],
    "(1, H, W)": GREY[None],
    "(H, W) in [0, 1]": GREY / 255,
    "a list": [GREY],
}


@pytest.mark.parametrize("form", GREYS)
def test_grey_is_three_equal_colours(form):
    assert torch.equal(as_batch(GREYS[form], S), batch_of(np.repeat(GREY[..., None], 3, -1)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_every_mode_of_pil_is_what_the_loaders_make_of_it(mode):
    image = Image.fromarray(PIXELS).convert("L" if mode in "IF" else "RGB").convert(mode)
    assert torch.equal(as_batch(image, S), batch_of(square_rgb(to_rgb(image), S)))


@pytest.mark.parametrize("size", [(S, 3 * S), (5, 7), (2 * S, 2 * S)])
def test_another_size_is_cut_and_resized_as_for_training(size):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = batch_of(square_rgb(Image.fromarray(pixels), S))
    assert torch.equal(as_batch(pixels, S), expected)
    assert torch.equal(as_batch(torch.from_numpy(pixels).permute(2, 0, 1)[None], S), expected)


def test_a_list_of_pictures_that_are_not_alike(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    found = as_batch([tmp_path / "a.png", str(tmp_path / "a.png"), PIXELS / 255, Image.new("L", (3, 9)), GREY], S)
    assert found.shape == (5, S, S, 3)
    assert torch.equal(found[0], found[2])
    assert torch.equal(as_batch(str(tmp_path / "a.png"), S), batch_of(PIXELS))
    assert as_batch([], S).shape == (0, S, S, 3)


def test_pixels_that_fit_are_not_copied():
    batch = torch.zeros(2, S, S, 3, dtype=torch.uint8)
    assert as_batch(batch, S).data_ptr() == batch.data_ptr()


def test_a_dark_picture_in_a_batch_is_as_bright_as_the_batch_says():
    dark = np.full((S, S, 3), 1.0)
    assert as_batch(np.stack([dark, dark * 200]), S)[0].unique().tolist() == [1]
    assert as_batch(dark, S).unique().tolist() == [255]


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (None, r"^images: found None, expected images: a path, a picture of PIL, an array"),
        (3, "^images: found 3, expected images"),
        ({"a": PIXELS}, "^images: found {'a': array"),
        (np.zeros(5), r"found an array of shape \(5,\), expected images"),
        (np.zeros((4, S, S, 7)), r"found an array of shape \(4, 16, 16, 7\)"),
        (np.zeros((1, 1, S, S, 3)), r"found an array of shape \(1, 1, 16, 16, 3\)"),
        (np.zeros((0, S, 3)), r"found an array of shape \(1, 0, 16, 3\), which has no pixels"),
        (np.zeros((S, S), complex), "found an array of complex128"),
        (np.zeros((S, S), bool), "found an array of bool"),
        (np.array(["x"]), "found an array of <U1"),
        (np.full((S, S, 3), np.nan), "found NaN or infinity among the pixels"),
        ([PIXELS, np.full((S, S), np.inf)], "^image 1: found NaN or infinity"),
        ((PIXELS / 255 - 0.5) / 0.5, r"found pixels from -1 to 1, expected levels .*; give them before normalisation"),
        (PIXELS.astype(np.uint16) * 257, r"found pixels from \d+ to 65535, expected levels in \[0, 255\]"),
        (torch.zeros(3, S, S, device="meta"), "layout torch.strided, on meta"),
        ([PIXELS, "nowhere.png"], r"^image 1, nowhere\.png cannot be read \(FileNotFoundError"),
    ],
)
def test_what_is_no_picture_is_refused_with_what_is_wanted(images, text):
    with pytest.raises(PictureError, match=text) as refusal:
        as_batch(images, S)
    assert len(str(refusal.value)) < 700


def test_files_that_are_no_pictures(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(PictureError, match=r"^images, .*text\.png cannot be read \(\w+Error: .*expected an image"):
        as_batch(tmp_path / "text.png", S)
    with pytest.raises(PictureError, match=r"is a folder, a pipe or a device\), expected an image"):
        as_batch(tmp_path, S)


def test_predict_takes_them_all(tmp_path):
    write_tensors(tmp_path, made.model(), made.task_vectors(), made.heads())
    model = load_finetuned(tmp_path, "corn")
    (expected,) = model.predict(batch_of(PIXELS))
    for form in FORMS.values():
        assert model.predict(form) == [expected]
    pair = model.predict([PIXELS, Image.new("RGB", (40, 30))])
    assert (len(pair), pair[0]) == (2, expected)
    assert (model.predict([]), model.logits([]).shape) == ([], (0, len(model.classes)))


def test_an_opened_photo_is_turned_as_its_file_is(tmp_path):
    camera = Image.Exif()
    camera[0x0112] = 6
    for name in ("a.jpg", "a.png", "a.tif", "a.webp"):
        Image.fromarray(PIXELS[:, : S // 2]).save(tmp_path / name, exif=camera)
        photo = Image.open(tmp_path / name)
        wanted = as_batch(tmp_path / name, S)
        assert torch.equal(as_batch(photo, S), wanted), name
        assert torch.equal(as_batch(photo, S), wanted), f"{name}, for the second time"


ITSELF: list = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (ITSELF, "found more than 4 lists in each other"),
        ("x" * 300, "File name too long"),
        (np.ma.masked_array(GREY, GREY > 9), "found a masked array, expected one without gaps"),
        (torch.zeros(1, S, S, 3, dtype=torch.uint8, device="meta"), "on meta"),
        ("/tmp", "images, /tmp cannot be read .*it is a folder"),
    ],
    ids=str,
)
def test_forms_that_only_look_like_images(images, text):
    with pytest.raises(PictureError, match=text):
        as_batch(images, S)
