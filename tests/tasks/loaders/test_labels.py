"""Labels from tables: one class for each image, or an error that names column and row. Nothing is rounded."""

import numpy as np
import pytest

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


def test_a_word_is_found_however_its_accents_are_written():
    assert read(["caf\u00e9", "cafe\u0301 "], ("b", "cafe\u0301")) == [1, 1]
    # What differs in the table stays apart.
    assert read(["a", "a "], ("a", "a ")) == [0, 1]


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
        ({"y_train": LABELS.astype(object)}, "y_train holds Python objects"),
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
