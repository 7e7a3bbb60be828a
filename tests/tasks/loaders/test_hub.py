"""Parquet files as the Hugging Face Hub has them; the Hub itself is played by a function."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from matu_flwr.tasks import Suite, TaskError, TaskSpec, load_task
from matu_flwr.tasks.prepare.prepare import prepare_suite
from tests.tasks import files

datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")
NAMES = ["red_fox", "grey_wolf", "lynx"]


def table(count, *, image="image", label="label", names=NAMES, seed=0):
    labels = files.cycle(count, 3)
    cells = []
    for pixels in files.grey_images(labels, 20, seed):
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert("RGB").save(buffer, "png")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    columns = datasets.Features(
        {image: datasets.Image(), label: datasets.ClassLabel(names=names) if names else datasets.Value("int64")}
    )
    return datasets.Dataset.from_dict({image: cells, label: labels.tolist()}, features=columns)


def write(folder, *, names=("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"), **options):
    folder.mkdir(parents=True)
    for place, name in enumerate(names):
        table(12 if "train" in name else 9, seed=place, **options).to_parquet(str(folder / f"{name}.parquet"))


@pytest.fixture
def load(tmp_path):
    def call(**options):
        spec = TaskSpec("wild", "hub", options)
        return load_task(spec, image_size=16, seed=0, data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")

    return call


def check(data, train, test):
    assert (len(data.train_labels), len(data.test_labels)) == (train, test)
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert np.array_equal(files.labels_from(images), labels)


def test_files_as_the_hub_has_them(load, tmp_path):
    write(tmp_path / "data" / "wild" / "data")
    data = load()
    check(data, 24, 9)
    assert data.classes == ("red fox", "grey wolf", "lynx")


def test_other_columns_and_a_fifth_held_out(load, tmp_path):
    write(tmp_path / "data" / "wild", image="img", label="fine")
    check(load(image="img", label="fine", test=""), 18, 6)


def test_numbers_need_names(load, tmp_path):
    folder = tmp_path / "data" / "wild"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        table(9, names=None).to_parquet(str(folder / f"{part}.parquet"))
    with pytest.raises(
        TaskError,
        match=r"task 'wild': .*, split 'train', column 'label' has numbers without class names: give the names in",
    ):
        load()
    assert load(classes=["fox", "wolf", "lynx"]).classes == ("fox", "wolf", "lynx")
    with pytest.raises(
        TaskError,
        match=r"split 'train', column 'label' has labels 0 to 2, expected 0 to 1 for 2 classes.* 2 in row 2, counted",
    ):
        load(classes=["fox", "wolf"])


def test_labels_that_are_words(load, tmp_path):
    folder = tmp_path / "data" / "wild"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        words = [NAMES[label] for label in files.cycle(9, 3)]
        rows = table(9).remove_columns("label").add_column("label", words)
        rows.to_parquet(str(folder / f"{part}.parquet"))
    data = load()
    assert data.classes == ("grey wolf", "lynx", "red fox")  # sorted by the files' words
    assert data.train_labels[:3].tolist() == [2, 0, 1]


def test_what_is_missing_or_damaged(load, tmp_path):
    folder = tmp_path / "data" / "wild"
    write(folder, names=("train", "test"))
    with pytest.raises(
        TaskError, match=r"task 'wild': .*wild holds no file valid.parquet or valid-\*.parquet, expected"
    ):
        load(test="valid")
    with pytest.raises(
        TaskError, match=r"train.parquet has no column 'img': .*known: image, label; set the option 'image'"
    ):
        load(image="img")
    file = folder / "train.parquet"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(
        TaskError, match=r"task 'wild': .*wild cannot be read .* expected parquet files of the split 'train'"
    ):
        load()


def test_without_the_package(load, tmp_path, monkeypatch):
    write(tmp_path / "data" / "wild")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match=r"loader 'hub' needs the package datasets, .* pip install 'matu-flwr\[hub\]'"):
        load()


def prepare(tmp_path, **options):
    suite = Suite("mine", "", {"wild": TaskSpec("wild", "hub", {"dataset": "someone/wild", **options})})
    (tmp_path / "data").mkdir(exist_ok=True)
    return prepare_suite(
        suite, image_size=16, seed=0, data_dir=tmp_path / "data", cache_dir=tmp_path / "cache"
    )[0]  # fmt: skip


def test_prepare_writes_what_the_hub_sends(tmp_path, monkeypatch):
    real, asked = datasets.load_dataset, []

    def hub(name, *arguments, split=None, **options):
        if name == "parquet":
            return real(name, *arguments, split=split, **options)
        asked.append((name, *arguments, split))
        return table(12 if split == "train" else 6)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    result = prepare(tmp_path, config="small")
    assert result.error == ""
    check(result.data, 12, 6)
    assert asked == [("someone/wild", "small", "train"), ("someone/wild", "small", "test")]
    assert sorted(path.name for path in (tmp_path / "data" / "wild").iterdir()) == ["test.parquet", "train.parquet"]
    assert prepare(tmp_path, config="small").error == ""
    assert len(asked) == 2


def test_prepare_without_a_network(tmp_path, monkeypatch):
    def offline(*arguments, **options):
        raise ConnectionError("Couldn't reach 'someone/wild' on the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    result = prepare(tmp_path)
    assert result.data is None
    assert result.error.startswith(
        "task 'wild': split 'train' of someone/wild on the Hugging Face Hub could not be downloaded (ConnectionError: "
        "Couldn't reach 'someone/wild' on the Hub (offline)): connect to the network, correct the options, or put train"
    )
    assert "train.parquet and test.parquet" in result.to_place


def test_one_file_is_not_training_and_test_part_both(load, tmp_path):
    write(tmp_path / "data" / "wild", names=("train",))
    with pytest.raises(TaskError, match=r"wild/train.parquet is one file and would be both training and test part"):
        load(path="wild/train.parquet")
    check(load(path="wild/train.parquet", test=""), 9, 3)


def test_a_missing_piece_is_named(load, tmp_path):
    write(tmp_path / "data" / "wild", names=("train-00000-of-00002", "test"))
    with pytest.raises(TaskError, match=r"task 'wild': .*wild has 1 of 2 pieces of the split: put the others there"):
        load()


def test_configurations_are_not_mixed(load, tmp_path):
    for config in ("small", "full"):
        write(tmp_path / "data" / "wild" / config, names=("train", "test"))
    with pytest.raises(TaskError, match=r"the split is in several folders \(.*full, .*small\), expected one"):
        load()
    check(load(config="small"), 12, 9)


def test_parts_that_number_their_classes_differently(load, tmp_path):
    folder = tmp_path / "data" / "wild"
    write(folder, names=("train",))
    table(9, names=NAMES[::-1]).to_parquet(str(folder / "test.parquet"))
    with pytest.raises(TaskError, match=r"the test part has the classes \['lynx', 'grey_wolf', 'red_fox'\]"):
        load()
