"""Every class of torchvision in the suites, on tiny files in the layout that the class reads."""

import io
import sys
import types

import numpy as np
import pytest

from matu_flwr._torchvision import ensure_importable
from matu_flwr.tasks import TaskError, TaskSpec, available_suites, load_suite, load_task
from matu_flwr.tasks.loaders.torchvision_classes import RECIPES, remotes
from tests.tasks import files
from tests.tasks.loaders import torchvision_files as tiny

# class -> writer, and what the real files' checksums hang on, which tiny files cannot have
CASES = {
    "SVHN": (tiny.svhn, "split_list"),
    "CIFAR10": (tiny.cifar, "lists"),
    "CIFAR100": (tiny.cifar100, "lists"),
    "STL10": (tiny.stl10, "lists"),
    "SUN397": (tiny.sun397, ""),
    "StanfordCars": (tiny.cars, ""),
    "EuroSAT": (tiny.eurosat, ""),
    "DTD": (tiny.dtd, ""),
    "Flowers102": (tiny.flowers102, "_file_dict"),
    "OxfordIIITPet": (tiny.pets, ""),
    "FER2013": (tiny.fer2013, "_RESOURCES"),
    "EMNIST": (tiny.emnist, ""),
    "Food101": (tiny.food101, ""),
    "RenderedSST2": (tiny.rendered_sst2, ""),
    "PCAM": (tiny.pcam, ""),
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Write a tiny data set of a class and load it."""

    def call(name, damage=None, writer=None, **options):
        write, checksum = CASES.get(name, (writer, ""))
        root = tmp_path / "data" / "task"
        if not root.exists():
            call.expected = (writer or write)(root)
            forget_checksums(monkeypatch, name, checksum)
        if damage:
            damage(root)
        spec = TaskSpec("task", "torchvision", {"dataset": name, **options})
        return load_task(spec, image_size=16, seed=0, data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")

    return call


def forget_checksums(monkeypatch, name, kind):
    ensure_importable()
    from torchvision import datasets

    cls = getattr(datasets, name)
    if kind == "split_list":
        monkeypatch.setattr(cls, kind, {part: [url, file, None] for part, (url, file, _) in cls.split_list.items()})
    elif kind == "lists":
        for attribute in ("train_list", "test_list"):
            monkeypatch.setattr(cls, attribute, [[file, None] for file, _ in getattr(cls, attribute)])
        if hasattr(cls, "meta"):
            monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": None})
    elif kind:
        monkeypatch.setattr(cls, kind, {key: (file, None) for key, (file, _) in getattr(cls, kind).items()})


@pytest.fixture
def h5py(monkeypatch):
    """A stand-in that opens .npz files, whether or not the package is installed."""

    class File:
        def __init__(self, path):
            self.content = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)

        def __enter__(self):
            return self.content

        def __exit__(self, *error):
            self.content.close()

    module = types.ModuleType("h5py")
    module.File = File
    module.__spec__ = types.SimpleNamespace(name="h5py")
    monkeypatch.setitem(sys.modules, "h5py", module)


def check(data, expected):
    train, test, classes = expected
    assert (len(data.train_labels), len(data.test_labels), len(data.classes)) == (train, test, classes)
    assert len(set(data.classes)) == classes
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert np.abs(images.mean(axis=(1, 2, 3)) - 20 * labels - 2).max() < 6  # every label fits its image


@pytest.mark.parametrize("name", sorted(set(CASES) - {"EMNIST"}))
def test_every_class(load, h5py, name):
    check(load(name), load.expected)


def test_all_classes_of_the_suites_are_tested():
    used = {
        spec.options["dataset"]
        for suite in available_suites()
        for spec in load_suite(suite).tasks.values()
        if spec.loader == "torchvision"
    }
    elsewhere = {"MNIST", "FashionMNIST", "KMNIST", "USPS", "SEMEION", "GTSRB"}  # test_tasks_loaders.py
    assert used <= set(CASES) | elsewhere
    assert set(CASES) | elsewhere == set(RECIPES)


@pytest.mark.parametrize(
    ("writer", "options", "names"),
    [
        (tiny.emnist, {}, ("0", "1")),
        (
            tiny.emnist_letters,
            {"train": {"split": "letters", "train": True}, "test": {"split": "letters", "train": False}},
            ("a", "b"),
        ),
    ],
)
def test_emnist_is_upright_and_counts_from_zero(load, writer, options, names):
    data = load("EMNIST", writer=writer, **options)
    assert (len(data.train_labels), len(data.test_labels), len(data.classes)) == load.expected
    assert data.classes[:2] == names
    assert set(data.train_labels) == set(range(10))
    bright = data.train_images[data.train_labels == 9].astype(int)
    assert bright[:, :, 0].mean() < bright[:, :, 8].mean() - 40  # the dark edge is on the left ...
    assert abs(bright[:, 0, 4:].mean() - bright[:, 8, 4:].mean()) < 10  # ... and not above


def test_names_in_words(load):
    assert load("SUN397").classes == ("abbey", "outdoor apartment building", "shop bakery")


def test_names_written_by_hand(load):
    assert load("EuroSAT").classes[:3] == ("fields with annual crops", "a forest", "brush and wild grassland")


def test_names_of_the_suite_come_first(load):
    assert load("Food101", classes=["pie", "ribs", "baklava"]).classes == ("pie", "ribs", "baklava")


def test_sun397_does_not_depend_on_the_order_of_the_disk(load, monkeypatch, tmp_path):
    from pathlib import Path

    first = load("SUN397")
    real = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(list(real(self, pattern))))
    spec = TaskSpec("task", "torchvision", {"dataset": "SUN397"})
    arguments = {"image_size": 16, "seed": 0, "data_dir": tmp_path / "data"}
    again = load_task(spec, cache_dir=tmp_path / "other", **arguments)
    assert np.array_equal(first.train_images, again.train_images)
    assert np.array_equal(first.test_labels, again.test_labels)


def test_a_class_that_is_not_known_here(load):
    with pytest.raises(
        TaskError, match=r"parts of torchvision's FGVCAircraft are not known here: give its keyword arg"
    ):
        load("FGVCAircraft", writer=tiny.fgvc_aircraft)
    data = load("FGVCAircraft", train={"split": "trainval"}, test={"split": "test"})
    check(data, (8, 4, 2))
    assert data.classes == ("707-320", "A300B4")
    whole = load("FGVCAircraft", train=[{"split": "trainval"}, {"split": "test"}])
    assert (len(whole.train_labels), len(whole.test_labels)) == (10, 2)  # a fifth is held out


def test_arguments_that_the_class_does_not_take(load):
    with pytest.raises(
        TaskError, match=r"task 'task': .*\(split='tset'\) cannot be read \(ValueError: Unknown value 'tset'"
    ):
        load("DTD", train={"split": "train"}, test={"split": "tset"})
    with pytest.raises(
        TaskError, match=r"torchvision's DTD does not take {'fold': 3} \(.* unexpected keyword argument 'fold'"
    ):
        load("DTD", train={"fold": 3})
    with pytest.raises(TaskError, match=r"option 'test' holds 'test', expected keyword arguments of torchvision's DTD"):
        load("DTD", test=["test"])
    with pytest.raises(TaskError, match="option 'train' is 'train', expected list"):
        load("DTD", train="train")


# --- damaged and incomplete files -------------------------------------------------------------------------------------


def cut(pattern, part=0.5):
    def damage(root):
        file = min(root.rglob(pattern))
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * part)])

    return damage


def lose(pattern):
    return lambda root: min(root.rglob(pattern)).unlink()


@pytest.mark.parametrize(
    ("name", "damage", "text"),
    [
        ("SVHN", cut("train*.mat"), r"\(split='train'\) cannot be read .*expected the files of torchvision's SVHN"),
        ("SVHN", lose("test*.mat"), "test_32x32.mat is missing, expected there by torchvision's SVHN: put it there"),
        ("CIFAR10", cut("data_batch_3"), r"\(train=True\) cannot be read"),
        ("CIFAR100", cut("meta"), r"cannot be read"),
        ("STL10", cut("train_X.bin", 0.97), r"cannot be read \(ValueError: cannot reshape"),
        ("STL10", cut("train_y.bin"), "has 20 images and 10 labels, expected as many of each"),
        ("SUN397", lose("ClassName.txt"), "ClassName.txt is missing, expected there by torchvision's SUN397"),
        ("SUN397", cut("sun_v.jpg"), r"abbey/sun_v.jpg cannot be read \(OSError: .*, expected an image"),
        ("StanfordCars", cut("cars_train_annos.mat"), r"\(split='train'\) cannot be read"),
        ("StanfordCars", lose("cars_test/00001.jpg"), r"00001.jpg cannot be read \(FileNotFoundError"),
        ("EuroSAT", lambda root: (root / "eurosat/2750/River").rename(root / "R"), "missing .'River'., not exp"),
        ("DTD", cut("val1.txt"), r"dtd/images/blotchy/blot cannot be read \(FileNotFoundError"),
        ("DTD", lose("test1.txt"), r"cannot be read \(FileNotFoundError"),
        ("Flowers102", cut("setid.mat"), "cannot be read"),
        ("OxfordIIITPet", cut("trainval.txt", 0.9), "cannot be read .ValueError"),
        ("FER2013", cut("fer2013.csv", 0.3), "holds no examples, expected at least one"),
        ("EMNIST", cut("*digits-test-images*"), r"\(split='digits', train=False\) cannot be read"),
        ("Food101", cut("train.json"), r"cannot be read \(JSONDecodeError"),
        ("Food101", lose("baklava/train0.jpg"), r"cannot be read \(FileNotFoundError"),
        ("RenderedSST2", cut("train/negative/0.png"), "cannot be read"),
        ("PCAM", cut("*train_y.h5"), "cannot be read"),
    ],
)  # fmt: skip
def test_damaged_files(load, h5py, name, damage, text):
    with pytest.raises(TaskError, match=rf"^task 'task': .*{text}"):
        load(name, damage)


def test_fer2013_without_test_labels(load, monkeypatch):
    from torchvision.datasets import FER2013

    def only_the_competition_files(root):
        folder = root / "fer2013"
        (folder / "fer2013.csv").rename(folder / "train.csv")

    with pytest.raises(
        TaskError, match=r"fer2013/fer2013.csv \| fer2013/icml_face_data.csv is missing, expected there"
    ):
        load("FER2013", only_the_competition_files)
    assert FER2013._RESOURCES["fer"][1] is None


def test_pcam_without_h5py(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        TaskError, match=r"torchvision's PCAM reads its files with the package h5py, which is not installed: pip"
    ):
        load("PCAM")


# --- where torchvision gets its files ---------------------------------------------------------------------------------


def test_addresses_and_checksums():
    by_hand = {"StanfordCars", "PCAM", "FER2013"}
    for name in RECIPES:
        found = remotes(name)
        assert bool(found) == (name not in by_hand), name
        for file in found:
            assert all(url.startswith("http") for url in file.urls)
            assert len(file.md5) == 32
            assert not file.target.startswith("/")
    assert len(remotes("MNIST")) == 4
    assert remotes("SVHN")[1].target == "test_32x32.mat"
    assert remotes("DTD")[0].target == "dtd/dtd-r1.0.1.tar.gz"


def test_grey_value_tells_the_label():
    assert np.array_equal(files.labels_from(tiny.colour(files.cycle(10), 8)), files.cycle(10))


def test_a_part_of_one_s_own_stands_alone(load):
    """Nobody is tested on the usual part while training on another one: they may share images."""
    whole = load("DTD", train=[{"split": "train", "partition": 1}, {"split": "val", "partition": 1}])
    total = len(whole.train_labels) + len(whole.test_labels)
    usual = load("DTD")
    assert total == len(usual.train_labels)
    with pytest.raises(TaskError, match=r"option 'test' without 'train': the usual training part of torchvision's DTD"):
        load("DTD", test={"split": "test"})


def test_a_class_whose_labels_depend_on_the_disk_is_refused(load, tmp_path):
    (tmp_path / "data" / "task").mkdir(parents=True)
    with pytest.raises(TaskError, match=r"numbers Omniglot's characters in the order in which the disk lists them"):
        load("Omniglot", writer=lambda root: None, train={"background": True})
