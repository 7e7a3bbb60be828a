"""The one decoder: what it does with each kind of file, and that every loader goes through it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from matu_flwr._torchvision import ensure_importable
from matu_flwr.tasks import TaskError, TaskSpec, load_site_task, load_task
from matu_flwr.tasks.loaders.decoder import MOST_PIXELS, eight_bits, endings, read_image, rgb_of_array
from matu_flwr.tasks.loaders.sources import Oddities
from tests.tasks import files

ORIENTATION = 0x0112  # EXIF: how the camera was held
RAMP = np.linspace(0, 65535, 1024).reshape(32, 32)


def encoded(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def decoded(content):
    return np.asarray(read_image(io.BytesIO(content)))


# --- orientation and EXIF ---------------------------------------------------------------------------------------------

TWO = np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8)  # one row, red and blue


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_photographs_are_turned_upright(form):
    exif = Image.Exif()
    exif[ORIENTATION] = 8  # the camera was turned: upright it is a column, blue on top
    content = encoded(Image.fromarray(TWO).resize((32, 16), 0), form, exif=exif)
    shown = decoded(content)
    assert shown.shape == (32, 16, 3)
    assert shown[4, 8].argmax() == 2
    assert shown[28, 8].argmax() == 0


@pytest.mark.parametrize("value", [0, 9, 200])
def test_an_orientation_that_does_not_exist_is_ignored(value):
    exif = Image.Exif()
    exif[ORIENTATION] = value
    assert decoded(encoded(Image.fromarray(TWO), exif=exif)).tolist() == TWO.tolist()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\x00\x00",
        b"Exif\x00\x00II*\x00\xff\xff\xff\xff",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff" + bytes(7),
        # A rational that cannot be written again: numerator and denominator are larger than their field.
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x02\x00"
        + struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0)
        + struct.pack("<HHII", 0x011A, 10, 1, 38)
        + struct.pack("<Iii", 0, -1, 0),
    ],
)
def test_damaged_exif_is_ignored(exif):
    content = encoded(Image.fromarray(TWO).resize((32, 32), 0), "JPEG", exif=exif)
    assert decoded(content).shape == (32, 32, 3)


def test_a_tiff_whose_exif_is_damaged():
    """PIL turns TIFF files itself, and writes the EXIF data again, while it loads the pixels."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[ORIENTATION] = 6
    tags[0x8769] = 4_000_000_000  # its EXIF data lie beyond the end of the file
    tags.tagtype[0x8769] = 4
    assert decoded(encoded(Image.fromarray(TWO), "TIFF", tiffinfo=tags)).shape == (2, 1, 3)


# --- depth ------------------------------------------------------------------------------------------------------------


def big_endian(array):
    return Image.fromarray(array.astype(">u2"))


@pytest.mark.parametrize(
    ("image", "form"),
    [
        (Image.fromarray(RAMP.astype(np.uint16)), "PNG"),
        (Image.fromarray(RAMP.astype(np.uint16)), "TIFF"),
        (Image.fromarray(RAMP.astype(np.uint16)), "PPM"),
        (big_endian(RAMP), "TIFF"),
        (Image.fromarray((RAMP / 16).astype(np.uint16)), "PNG"),  # 12 bits in 16
        (Image.fromarray((RAMP / 64 + 30000).astype(np.uint16)), "PNG"),  # a tomograph's offset
        (Image.fromarray(RAMP.astype(np.int32) - 1024), "TIFF"),
        (Image.fromarray(RAMP.astype(np.int32) * 30000), "TIFF"),
        (Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
        (Image.fromarray((RAMP / 257).astype(np.float32)), "TIFF"),
        (Image.fromarray((RAMP * 1e30).astype(np.float32)), "TIFF"),
        (Image.fromarray((RAMP - 3e4).astype(np.float32)), "TIFF"),
    ],
)
def test_grey_of_more_than_8_bits_keeps_its_levels(image, form):
    shown = decoded(encoded(image, form))
    assert len(np.unique(shown)) >= 250
    assert shown.shape == (32, 32, 3)
    assert np.all(np.diff(shown[..., 0].ravel().astype(int)) >= 0)  # darker stays darker
    assert shown[0, 0, 0] <= 1
    assert shown[-1, -1, 0] >= 254


def tiff(values, photometric, sample_format=1):
    """A TIFF file of one strip, written by hand: PIL writes neither negatives nor unsigned numbers of 32 bits."""
    height, width = values.shape
    entries = [(256, width), (257, height), (258, 8 * values.itemsize), (259, 1), (262, photometric), (273, 134)]
    entries += [(277, 1), (278, height), (279, values.nbytes), (339, sample_format)]
    body = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in entries)
    return b"II*\x00" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + values.tobytes()


def test_tiff_files_of_32_unsigned_bits_and_negatives():
    ramp = (RAMP * 65537).astype("<u4")  # up to 2³² - 1: PIL reads the upper half as negative
    assert np.all(np.diff(decoded(tiff(ramp, 1))[..., 0].ravel().astype(int)) >= 0)
    negative = decoded(tiff(RAMP.astype("<u2"), 0))[..., 0]
    assert (negative[0, 0], negative[-1, -1]) == (255, 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 128, 255], np.uint8), [0, 128, 255]),
        (np.array([False, True]), [0, 255]),
        (np.array([0, 200], np.int64), [0, 200]),  # levels of 8 bits in a larger type
        (np.array([0, 255], np.uint16), [0, 255]),
        (np.array([0, 2047, 4094], np.uint16), [0, 128, 255]),
        (np.array([-1024, 3071], np.int16), [0, 255]),
        (np.array([2**64 - 1, 0], np.uint64), [255, 0]),
        (np.array([0.0, 0.5, 1.0]), [0, 128, 255]),
        (np.array([0.0, 127.4, 255.0], np.float16), [0, 127, 255]),
        (np.array([-1.0, 0.0, 1.0], np.float32), [0, 128, 255]),
        (np.array([-1.7e308, 1.7e308]), [0, 255]),
        (np.array([30000, 30000], np.uint16), [117, 117]),  # one value: its place in 16 bits
        (np.array([-5, -5], np.int32), [0, 0]),
        (np.array([1e9, 1e9]), [255, 255]),
    ],
)
def test_how_values_become_levels(values, expected):
    assert eight_bits(values).tolist() == expected


def test_floats_that_are_known_to_be_levels():
    """A dark picture of 0 .. 255 is not taken for one of 0 .. 1."""
    assert eight_bits(np.array([0.0, 1.0]), unit=False).tolist() == [0, 1]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_nan_is_no_level(wrong):
    image = Image.fromarray(np.full((4, 4), wrong, np.float32))
    with pytest.raises(ValueError, match="it holds NaN or infinity, which are no levels of brightness"):
        decoded(encoded(image, "TIFF"))


@pytest.mark.parametrize("dtype", [complex, "datetime64[s]", "S3", object])
def test_types_without_levels(dtype):
    with pytest.raises(ValueError, match="which are no levels of brightness"):
        eight_bits(np.zeros(3, dtype))


# --- colour and transparency ------------------------------------------------------------------------------------------


def palette(**options):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    return encoded(image, **options)


@pytest.mark.parametrize(
    ("content", "pixels"),
    [
        (palette(), [[10, 20, 30], [40, 50, 60]]),
        (palette(transparency=1), [[10, 20, 30], [255, 255, 255]]),
        (palette(transparency=b"\xff\x00"), [[10, 20, 30], [255, 255, 255]]),
        (palette(form="GIF", transparency=0), [[255, 255, 255], [40, 50, 60]]),
        (encoded(Image.new("L", (1, 1), 7)), [[7, 7, 7]]),
        (encoded(Image.new("1", (1, 1), 1)), [[255, 255, 255]]),
        (encoded(Image.new("LA", (1, 1), (7, 0))), [[255, 255, 255]]),
        (encoded(Image.new("LA", (1, 1), (0, 51))), [[204, 204, 204]]),  # a fifth of black on white
        (encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 0))), [[255, 255, 255]]),
        (encoded(Image.new("RGBA", (1, 1), (1, 2, 3, 255))), [[1, 2, 3]]),
        (encoded(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)), [[255, 255, 255]]),
        (encoded(Image.new("L", (1, 1), 9), transparency=9), [[255, 255, 255]]),
        (encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [[255, 0, 0]]),
    ],
)  # fmt: skip
def test_colours(content, pixels):
    assert decoded(content).tolist() == [pixels]


def test_cmyk_of_photo_programs():
    """JPEG files hold CMYK the other way round. PIL writes them so too."""
    shown = decoded(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(shown.reshape(-1, 3).mean(axis=0) - (255, 0, 0)).max() < 6


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_other_colour_spaces(mode):
    red = Image.new("RGB", (16, 16), (200, 30, 30))
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(red, srgb, lab, outputMode="LAB")
    else:
        image = red.convert(mode)
    assert np.abs(decoded(encoded(image, "TIFF")).reshape(-1, 3).mean(axis=0) - (200, 30, 30)).max() < 6


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP", "AVIF"])
def test_the_first_of_several_frames(form):
    if form not in Image.SAVE_ALL:
        pytest.skip(f"PIL was built without {form}")
    first, second = (Image.new("RGB", (16, 16), (value, value, value)) for value in (200, 20))
    content = encoded(first, form, save_all=True, append_images=[second])
    oddities = Oddities()
    shown = np.asarray(read_image(io.BytesIO(content), oddities, "film.x"))
    assert abs(shown.mean() - 200) < 3
    assert oddities.notes() == ("files of several frames or pages, of which the first is used: 1 (film.x)",)


# --- what is refused --------------------------------------------------------------------------------------------------


def png_of(width, height):
    """A file of some bytes that says that it is this large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(MOST_PIXELS + 1, 1), (10_000, 10_000), (60_000, 60_000)])
def test_a_tiny_file_of_many_pixels(size):
    with pytest.raises(ValueError, match="it has more than the 89,478,485 pixels that are decoded at most: shrink it"):
        decoded(png_of(*size))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS .* run `git lfs pull`"),
        (b"<html>not found</html>", "its content is not a whole file of AVIF, BMP"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "its content is not a whole file of AVIF, BMP",
        ),  # would start Ghostscript
        (encoded(Image.fromarray(RAMP.astype(np.uint8)))[:-40], "truncated|broken"),
        (encoded(Image.fromarray(RAMP.astype(np.uint8)), "GIF")[:-200], "truncated"),
        (png_of(0, 5), "0|its content"),
    ],
)
def test_what_is_no_picture(content, text):
    with pytest.raises((ValueError, OSError, SyntaxError), match=text):
        decoded(content)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 5000)])
def test_pictures_of_extreme_shape(size, tmp_path):
    files.write_folder(tmp_path)
    Image.new("RGB", size, (7, 8, 9)).save(tmp_path / "train" / "ash" / "0.png")
    data = load_task(TaskSpec("t", "folder", {"path": str(tmp_path)}), **plain(tmp_path))
    assert np.unique(data.train_images[0].reshape(-1, 3), axis=0).tolist() == [[7, 8, 9]]


# --- one decoder for all loaders --------------------------------------------------------------------------------------


def plain(tmp_path):
    return {"image_size": 16, "seed": 0, "data_dir": None, "cache_dir": tmp_path / "cache"}


def sideways():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encoded(Image.fromarray(RAMP.astype(np.uint8)).crop((0, 0, 24, 32)), exif=exif)


PICTURES = {
    "16 bits": encoded(Image.fromarray(RAMP.astype(np.uint16))),
    "12 bits": encoded(Image.fromarray((RAMP / 16).astype(np.uint16))),
    "floats": encoded(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
    "transparent": encoded(Image.merge("LA", [Image.fromarray(RAMP.astype(np.uint8))] * 2)),
    "palette": palette(transparency=1),
    "cmyk": encoded(Image.fromarray(RAMP.astype(np.uint8)).convert("CMYK"), "JPEG"),
    "sideways": sideways(),
    "film": encoded(Image.new("L", (9, 9), 50), "GIF", save_all=True, append_images=[Image.new("L", (9, 9), 90)]),
}


def by_folder(root, content):
    files.write_folder(root)
    (root / "train" / "ash" / "0.png").write_bytes(content)
    return load_task(TaskSpec("t", "folder", {"path": str(root)}), **plain(root))


def by_site(root, content):
    files.write_folder(root / "t")
    (root / "t" / "train" / "ash" / "0.png").write_bytes(content)
    return load_site_task("t", root, image_size=16, seed=0, cache_dir=root / "cache")


def by_hub(root, content):
    datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")
    columns = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    cells = [{"bytes": content, "path": None}] * 2
    root.mkdir()
    for part in ("train", "test"):
        datasets.Dataset.from_dict({"image": cells, "label": [0, 1]}, features=columns).to_parquet(
            str(root / f"{part}.parquet")
        )
    return load_task(TaskSpec("t", "hub", {"path": str(root)}), **plain(root))


def by_torchvision(name, place):
    def load(root, content):
        ensure_importable()
        files.write_gtsrb(root)
        files.write_folder(root, form="jpg")
        (root / place).write_bytes(content)
        options = {"path": str(root), "dataset": name, "train": {}, "test": {}}
        if name == "GTSRB":
            options |= {"train": {"split": "train"}, "test": {"split": "test"}}
        if name == "ImageFolder":
            options |= {"path": str(root / "train"), "classes": ["ash", "birch", "cedar"]}
        return load_task(TaskSpec("t", "torchvision", options), **plain(root))

    return load


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize(
    "load",
    [
        by_site,
        by_hub,
        by_torchvision("GTSRB", "gtsrb/GTSRB/Training/00000/00000.ppm"),
        by_torchvision("ImageFolder", "train/ash/0.jpg"),
    ],
    ids=["site", "hub", "GTSRB", "ImageFolder"],
)
def test_every_loader_gives_the_same_picture(tmp_path, load, kind):
    expected = by_folder(tmp_path / "folder", PICTURES[kind]).train_images[0]
    assert np.array_equal(load(tmp_path / "other", PICTURES[kind]).train_images[0], expected)


@pytest.mark.parametrize(
    "array", [RAMP.astype(np.uint16), (RAMP / 16).astype(np.uint16), (RAMP / 65535).astype(np.float32)]
)
def test_arrays_give_the_pictures_of_files(tmp_path, array):
    expected = by_folder(tmp_path / "folder", encoded(Image.fromarray(array), "TIFF")).train_images[0]
    labels = files.cycle(4, 2)
    stack = np.stack([array] * 4)
    np.savez(tmp_path / "x.npz", x_train=stack, y_train=labels, x_test=stack, y_test=labels, classes=["a", "b"])
    data = load_task(TaskSpec("t", "npz", {"path": str(tmp_path / "x.npz")}), **plain(tmp_path))
    assert np.array_equal(data.train_images[0], expected)


def test_arrays_of_other_channels():
    assert np.asarray(rgb_of_array(np.full((2, 2, 1), 9, np.uint8))).tolist() == [[[9, 9, 9]] * 2] * 2
    transparent = np.zeros((1, 1, 4), np.uint8)
    assert np.asarray(rgb_of_array(transparent)).tolist() == [[[255, 255, 255]]]


def test_the_endings_are_those_of_pictures():
    assert {".jpg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"} <= set(endings())
    assert not {".pdf", ".eps", ".ps", ".mpg", ".h5", ".txt"} & set(endings())
    assert all(end == end.lower() and end.startswith(".") for end in endings())


def test_a_name_that_promises_another_format():
    oddities = Oddities()
    for name in ("a.jpg", "a.png", "b.dat"):
        read_image(io.BytesIO(encoded(Image.new("L", (9, 9)))), oddities, name)
    text = "files whose content is of another format than their name says, read as what they are: 1 (a.jpg)"
    assert oddities.notes() == (text,)


def test_texts_in_a_picture_cannot_fill_the_memory():
    info = PngImagePlugin.PngInfo()
    info.add_itxt("a", "x" * 3 * 10**6, zip=True)  # 3 kB that would become 3 MB
    with pytest.raises((ValueError, OSError), match="Decompressed data too large"):
        decoded(encoded(Image.new("L", (9, 9)), pnginfo=info))


def test_a_broken_image_is_named_with_task_and_path(tmp_path):
    with pytest.raises(TaskError, match=r"task 't': .*train/ash/0.png cannot be read .*skip-broken: true"):
        by_folder(tmp_path / "x", b"nothing")
