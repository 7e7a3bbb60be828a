"""Labels from tables: one class for each image, or an error that names column and row. Nothing is rounded."""

import io

import numpy as np
import pytest
from PIL import Image

from matu_flwr.tasks import TaskError, TaskSpec, load_task
from matu_flwr.tasks.loaders.labels import labels_of
from matu_flwr.tasks.loaders.sources import Request
from tests.tasks import files

REQUEST = Request("t", {}, 0, None, None)


def read(values, classes=("a", "b", "c")):
    places = {name: label for label, name in enumerate(classes)}
    return labels_of(REQUEST, "the table, column 'label'", values, classes, places).tolist()


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 2, 1], [0, 2, 1]),
        ([0.0, 2.0], [0, 2]),
        ([False, True], [0, 1]),
        (["a", "c"], [0, 2]),
        ([b"a", b"c"], [0, 2]),
        (np.array([2, 0], np.uint64), [2, 0]),
        (np.array(["b", "a"]), [1, 0]),
        ([np.array(1), np.float32(2)], [1, 2]),
    ],
)
def test_clear_readings(values, labels):
    assert read(values) == labels


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (None, "has no label in row 2, counted from 0; expected one for each image: remove the image, or give it a la"),
        (float("nan"), "has no label in row 2"),
        (np.float32("nan"), "has no label in row 2"),
        ("", "has no label in row 2"),
        ("  ", "has no label in row 2"),
        (b"", "has no label in row 2"),
        (0.5, "has 0.5 in row 2, counted from 0; expected a whole number: nothing is rounded"),
        (1e300, "has labels 0 to 1000000000000.*, expected 0 to 2 for 3 classes"),
        (float("inf"), "has inf in row 2"),
        (-float("inf"), "has -inf in row 2"),
        (
            3,
            "has labels 0 to 3, expected 0 to 2 for 3 classes: correct .*; the first such label is 3 in row 2, counted",
        ),
        (-1, "has labels -1 to 1, .* is -1 in row 2, counted from 0; -1 often stands for a label that is kept secret"),
        (2**64, f"has labels 0 to {2**64}, expected 0 to 2"),
        (2**63, f".* is {2**63} in row 2"),
        ("d", r"has 'd' in row 2, counted from 0; expected one of its classes \(known: a, b, c\)"),
        ("1", "has '1' in row 2"),
        ([0], r"has \[0\] in row 2, counted from 0; expected one class for each image: images with several labels are"),
        ([], r"has \[\] in row 2"),
        ({"a": 1}, "has {'a': 1} in row 2"),
        (np.array([0, 1]), r"has array\(\[0, 1\]\) in row 2"),
        (b"\xff", r"has b'\\xff' in row 2, counted from 0; expected text in UTF-8, or a whole number"),
        (1j, "has 1j, a complex in row 2"),
        (np.datetime64("2026-01-01"), r"has datetime.date\(2026, 1, 1\), a date in row 2"),
        ("\x1b[2J" + "x" * 999, "has '.x1b"),
    ],
)
def test_what_is_no_label(wrong, text):
    with pytest.raises(TaskError, match=rf"^task 't': the table, column 'label' {text}") as error:
        read([0, 1, wrong])
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 700


def test_no_rows():
    with pytest.raises(TaskError, match="column 'label' holds no examples, expected at least one"):
        read([])


# --- npz --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def npz(tmp_path):
    def call(**changed):
        files.write_npz(tmp_path / "x.npz", **changed)
        return load_task(
            TaskSpec("t", "npz", {"path": str(tmp_path / "x.npz")}),
            image_size=16,
            seed=0,
            data_dir=None,
            cache_dir=tmp_path / "cache",
        )

    return call


IMAGES = files.grey_images(files.cycle(30, 3), size=20)
LABELS = files.cycle(30, 3)


@pytest.mark.parametrize(
    "changed",
    [
        {"classes": np.array([b"zero", b"one", b"two"])},
        {"classes": np.array([0, 1, 2])},
        {"y_train": LABELS.astype(np.float64)},
        {"y_train": LABELS[:, None]},
        {"y_train": np.array(["zero", "one", "two"])[LABELS]},
        {"y_train": np.array([b"zero", b"one", b"two"])[LABELS]},
        {"x_train": IMAGES[..., None]},
        {"x_train": np.repeat(IMAGES[..., None], 3, axis=3)},
        {"x_train": IMAGES.astype(np.int64)},
        {"x_train": IMAGES.astype(np.float32)},
        {"x_train": IMAGES / 255, "x_test": files.grey_images(files.cycle(12, 3), size=20) / 255},
    ],
)
def test_arrays_that_can_be_read(npz, changed):
    data = npz(**changed)
    assert data.classes == (("0", "1", "2") if changed.get("classes", data.classes)[0] == 0 else ("zero", "one", "two"))
    assert data.train_labels.tolist() == LABELS.tolist()
    assert np.array_equal(files.labels_from(data.train_images), LABELS)


def test_a_dark_picture_among_floats_of_0_to_255(npz):
    dark = IMAGES.astype(np.float32)
    dark[0] = 1.0
    assert npz(x_train=dark).train_images[0].max() == 1


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"y_train": LABELS + 0.5}, "y_train has 0.5 in row 0, counted from 0; expected a whole number"),
        ({"y_train": np.where(LABELS == 2, np.nan, LABELS)}, "y_train has no label in row 2"),
        ({"y_train": np.eye(3)[LABELS]}, r"of shape \(30, 3\), expected one label for .*y.argmax\(axis=1\)"),
        ({"y_train": LABELS[:7]}, r"of shape \(7,\), expected one label for each of the 30 images of x_train$"),
        ({"y_train": LABELS - 1}, "y_train has labels -1 to 1, expected 0 to 2"),
        ({"y_train": np.where(LABELS == 1, 2**64 - 1, 0).astype(np.uint64)}, f"y_train has labels 0 to {2**64 - 1}"),
        ({"y_train": np.array(["zero", "one", "tow"])[LABELS]}, "y_train has 'tow' in row 2.*did you mean 'two'"),
        ({"y_train": LABELS.astype("datetime64[D]")}, "y_train has datetime.date.* in row 0"),
        ({"y_train": LABELS.astype(object)}, "Object arrays cannot be loaded"),
        ({"y_train": LABELS.astype(complex)}, "y_train has 0j, a complex in row 0"),
        (
            {"classes": np.array([b"\xff", b"b", b"c"])},
            "classes has .* in row 0, counted from 0; expected text in UTF-8",
        ),
        ({"classes": np.array([0.0, 1.0, 2.0])}, r"classes is float64 of shape \(3,\), expected a list of class names"),
        ({"classes": np.array("zero")}, r"classes is <U4 of shape \(\), expected a list of class names"),
        ({"classes": np.array(["zero", "one", "one"])}, "class 'one' is there twice"),
        ({"classes": np.array(["zero", "one", ""])}, "classes has no label in row 2|class '' cannot be named"),
        ({"x_train": np.zeros((30, 3, 20, 20), np.uint8)}, r"turn it by x.transpose\(0, 2, 3, 1\)"),
        ({"x_train": np.zeros((30, 20, 20, 2), np.uint8)}, r"x_train is uint8 .* with C = 1, 3 or 4"),
        ({"x_train": np.zeros((30, 0, 20), np.uint8)}, "expected pictures of at least one pixel"),
        ({"x_train": np.array(["a"] * 30)}, "x_train is <U1 of shape"),
        (
            {"x_train": np.where(IMAGES > 40, np.nan, 1.0)},
            r"NaN or infinity in picture 2, counted from 0",
        ),
    ],
)
def test_arrays_that_cannot_be_read(npz, changed, text):
    with pytest.raises(TaskError, match=rf"^task 't': .*{text}"):
        npz(**changed)


# --- parquet ----------------------------------------------------------------------------------------------------------

datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")


def cell(value):
    stream = io.BytesIO()
    Image.new("L", (8, 8), value).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


CELLS = [cell(40), cell(80), cell(120)]
PATH = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})


@pytest.fixture
def hub(tmp_path):
    """Write a table of three rows, also as the test part, and load it."""

    def call(images=CELLS, labels=(0, 1, 1), kind=None, label_kind=None, **options):
        columns = {"image": kind or datasets.Image(), "label": label_kind or datasets.ClassLabel(names=["a", "b"])}
        table = datasets.Dataset.from_dict(
            {"image": list(images), "label": list(labels)}, features=datasets.Features(columns)
        )
        for part in ("train", "test"):
            table.to_parquet(str(tmp_path / f"{part}.parquet"))
        return load_task(
            TaskSpec("t", "hub", {"path": str(tmp_path), **options}),
            image_size=16,
            seed=0,
            data_dir=None,
            cache_dir=tmp_path / "cache",
        )

    return call


TWO = {"classes": ["a", "b"]}


@pytest.mark.parametrize(
    ("labels", "kind", "options", "text"),
    [
        ([[0], [0, 1], [1]], datasets.Sequence(datasets.ClassLabel(names=["a", "b"])), TWO, r"has \[0\] in row 0"),
        ([[0], [0, 1], [1]], datasets.Sequence(datasets.Value("int64")), {}, r"has \[0\] in row 0"),
        (["x", None, "y"], datasets.Value("string"), {}, "has no label in row 1"),
        (["x", "", "y"], datasets.Value("string"), {}, "has no label in row 1"),
        ([0.0, float("nan"), 1.0], datasets.Value("float32"), TWO, "has no label in row 1"),
        ([0.0, 0.5, 1.0], datasets.Value("float32"), TWO, "has 0.5 in row 1.* nothing is rounded"),
        (
            [0, -1, 1],
            datasets.Value("int64"),
            TWO,
            "has labels -1 to 1.* is -1 in row 1, counted from 0; -1 often stands for",
        ),
        (["a", "b", "3"], datasets.Value("string"), TWO, r"has '3' in row 2.* \(known: a, b\)"),
        ([0, 1, 0], datasets.Value("int64"), {}, "has numbers without class names"),
        ([{"x": 1}] * 3, {"x": datasets.Value("int64")}, TWO, "has {'x': 1} in row 0"),
    ],
)
def test_label_columns_that_are_refused(hub, labels, kind, options, text):
    with pytest.raises(TaskError, match=rf"^task 't': .*split 'train', column 'label' {text}"):
        hub(labels=labels, label_kind=kind, **options)


@pytest.mark.parametrize(
    ("labels", "kind", "options", "expected"),
    [
        ([True, False, True], datasets.Value("bool"), TWO, (("a", "b"), [1, 0, 1])),
        ([1.0, 0.0, 1.0], datasets.Value("float32"), TWO, (("a", "b"), [1, 0, 1])),
        (["10", "9", "2"], datasets.Value("string"), {}, (("2", "9", "10"), [2, 1, 0])),
        ([b"x", b"y", b"x"], datasets.Value("binary"), {}, (("x", "y"), [0, 1, 0])),
    ],
)
def test_label_columns_that_can_be_read(hub, labels, kind, options, expected):
    data = hub(labels=labels, label_kind=kind, **options)
    assert (data.classes, data.train_labels.tolist()) == expected


@pytest.mark.parametrize(
    ("images", "kind", "found"),
    [
        ([1, 2, 3], datasets.Value("int64"), "int64"),
        ([[one] for one in CELLS], datasets.Sequence(datasets.Image()), "list"),
        (["a.png", "b.png", "c.png"], datasets.Value("string"), "string"),
        ([[[1, 2], [3, 4]]] * 3, datasets.Array2D((2, 2), "uint8"), "extension"),
        ([{"inner": one} for one in CELLS], {"inner": PATH["image"]}, "struct"),
        ([{"path": "a.png"}] * 3, {"path": datasets.Value("string")}, "struct"),
    ],
)
def test_image_columns_that_are_no_bytes(hub, images, kind, found):
    text = rf"train.parquet, column 'image' holds .*{found}.*, expected the bytes of one image file in each row"
    with pytest.raises(TaskError, match=rf"^task 't': .*{text}: .* paths in a table are not followed"):
        hub(images=images, kind=kind)


def test_plain_bytes_are_images(hub):
    data = hub(images=[one["bytes"] for one in CELLS], kind=datasets.Value("binary"))
    assert data.train_images[:, 0, 0, 0].tolist() == [40, 80, 120]


@pytest.mark.parametrize("kind", [None, PATH["image"]])
def test_a_path_in_a_table_opens_no_file(hub, tmp_path, kind):
    """The secret is a picture, so that only a refusal can keep it out."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(CELLS[0]["bytes"])
    rows = [CELLS[0], {"bytes": None, "path": str(secret)}, CELLS[2]]
    # `to_parquet` would put the content in, as long as the column is an image: so the table is written without that.
    with pytest.raises(
        TaskError, match=r"split 'train', row 1 cannot be read \(ValueError: the cell holds only the path"
    ):
        hub(images=rows, kind=PATH["image"])
    data = hub(images=rows, kind=PATH["image"], **{"skip-broken": True})
    assert data.train_images[:, 0, 0, 0].tolist() == [40, 120]
    assert (
        data.notes[-1]
        == "broken images left out: 2 ("
        + ", ".join(f"{tmp_path}, split {part!r}, row 1" for part in ("train", "test"))
        + ")"
    )


def test_an_empty_cell_is_named(hub):
    with pytest.raises(TaskError, match=r"row 2 cannot be read \(ValueError: the cell is empty\)"):
        hub(images=[*CELLS[:2], None])


def test_prepare_takes_no_file_of_this_machine_into_a_table(tmp_path, monkeypatch):
    """A data set of the Hub that names a file here: writing it would put the file's content into the table."""
    from matu_flwr.tasks import Suite
    from matu_flwr.tasks.prepare import prepare_suite

    secret = tmp_path / "secret.png"
    secret.write_bytes(CELLS[0]["bytes"])
    columns = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [CELLS[0], {"bytes": None, "path": str(secret)}], "label": [0, 1]}
    table = datasets.Dataset.from_dict(rows, features=columns)
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: table)
    (tmp_path / "data").mkdir()
    suite = Suite("mine", "", {"wild": TaskSpec("wild", "hub", {"dataset": "someone/wild"})})
    result = prepare_suite(suite, image_size=16, seed=0, data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")[0]
    assert (
        f"names the file {secret} in row 1, counted from 0, expected images that are downloaded with it" in result.error
    )
    assert not list((tmp_path / "data").rglob("*.parquet"))
    # What was downloaded with it may be named.
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("matu_flwr.tasks.prepare.prepare.read_task", lambda *arguments, **options: None)
    prepare_suite(suite, image_size=16, seed=0, data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "data").rglob("train.parquet"))
