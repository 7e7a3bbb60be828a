"""Columns of parquet files: labels that are refused or read, and images that are bytes and nothing else."""

import io
import json

import pytest
from PIL import Image

from matu_flwr.tasks import Suite, TaskError, TaskSpec, load_task
from matu_flwr.tasks.prepare import prepare_suite

datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")
pyarrow = pytest.importorskip("pyarrow", reason="the extra hub is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="the extra hub is not installed")


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


def write_columns(tmp_path, **columns):
    """Write columns as they are. The package itself would put the content of files into the table."""
    features = datasets.Features({name: kind for name, (kind, _) in columns.items()})
    described = json.dumps({"info": {"features": features.to_dict()}})
    cells = {name: pyarrow.array(cells, features.arrow_schema.field(name).type) for name, (_, cells) in columns.items()}
    table = pyarrow.table(cells).replace_schema_metadata({"huggingface": described})
    parquet.write_table(table, tmp_path / "train.parquet")


def load_columns(tmp_path, **options):
    spec = TaskSpec("t", "hub", {"path": str(tmp_path), "test": "", **options})
    return load_task(spec, image_size=16, seed=0, data_dir=None, cache_dir=tmp_path / "cache")


WORDS = (datasets.Value("string"), ["x", "y", "x", "y"])
ELSEWHERE = [{"bytes": None, "path": "/no/such/file.png"}] * 4


def test_other_columns_are_not_opened(tmp_path):
    # The package would open what their cells name, as soon as a row is read.
    images = (datasets.Image(), [cell(value) for value in (10, 20, 30, 40)])
    write_columns(tmp_path, image=images, label=WORDS, mask=(datasets.Image(), ELSEWHERE))
    assert load_columns(tmp_path).classes == ("x", "y")


def test_a_label_column_of_images_is_refused_and_not_opened(tmp_path):
    images = (datasets.Image(), [cell(value) for value in (10, 20, 30, 40)])
    write_columns(tmp_path, image=images, label=(datasets.Image(), ELSEWHERE))
    with pytest.raises(TaskError, match=r"task 't': .*train.parquet, column 'label' holds Image, expected one class"):
        load_columns(tmp_path)
