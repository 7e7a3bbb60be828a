"""For some classes of `torchvision.datasets`: how to open their parts, which files they need, and their addresses.

Other classes can be used too, if the suite file gives `train` and `test`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

_PARTS = ({"train": True},), ({"train": False},)
_SPLITS = ({"split": "train"},), ({"split": "test"},)


@dataclass(frozen=True)
class Recipe:
    """How one class of `torchvision.datasets` is opened without a download.

    Attributes
    ----------
    train, test : tuple of dict
        Keyword arguments with which the class opens training and test images. Several are joined. If `test` is empty, a
        fifth of `train` is held out.
    files : tuple of str
        Files or folders that must exist, relative to root. ``a | b`` means that one of the two is enough.
    idx : bool
        Whether the files are MNIST's IDX files, which may also be packed as ``.gz``.
    package : str
        A package that torchvision needs to read the files; "" = none.
    """

    train: tuple[dict[str, Any], ...]
    test: tuple[dict[str, Any], ...]
    files: tuple[str, ...]
    idx: bool = False
    package: str = ""


def _idx(name: str, train: str = "train", test: str = "t10k") -> tuple[str, ...]:
    kinds = ("images-idx3", "labels-idx1")
    return tuple(f"{name}/raw/{part}-{kind}-ubyte" for part in (train, test) for kind in kinds)


RECIPES: dict[str, Recipe] = {
    "MNIST": Recipe(*_PARTS, _idx("MNIST"), idx=True),
    "FashionMNIST": Recipe(*_PARTS, _idx("FashionMNIST"), idx=True),
    "KMNIST": Recipe(*_PARTS, _idx("KMNIST"), idx=True),
    "EMNIST": Recipe(
        ({"split": "digits", "train": True},),
        ({"split": "digits", "train": False},),
        ("EMNIST/raw",),
    ),
    "USPS": Recipe(*_PARTS, ("usps.bz2", "usps.t.bz2")),
    "SEMEION": Recipe(({},), (), ("semeion.data",)),
    "GTSRB": Recipe(*_SPLITS, ("gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv")),
    "SVHN": Recipe(*_SPLITS, ("train_32x32.mat", "test_32x32.mat")),
    "CIFAR10": Recipe(*_PARTS, ("cifar-10-batches-py",)),
    "CIFAR100": Recipe(*_PARTS, ("cifar-100-python",)),
    "STL10": Recipe(*_SPLITS, tuple(f"stl10_binary/{part}_{kind}.bin" for part in ("train", "test") for kind in "Xy")),
    "SUN397": Recipe(({},), (), ("SUN397/ClassName.txt",)),
    "StanfordCars": Recipe(
        *_SPLITS,
        (
            "stanford_cars/cars_train",
            "stanford_cars/cars_test",
            "stanford_cars/devkit/cars_train_annos.mat",
            "stanford_cars/devkit/cars_meta.mat",
            "stanford_cars/cars_test_annos_withlabels.mat",
        ),
    ),
    "EuroSAT": Recipe(({},), (), ("eurosat/2750",)),
    "DTD": Recipe(
        ({"split": "train", "partition": 1}, {"split": "val", "partition": 1}),
        ({"split": "test", "partition": 1},),
        ("dtd/dtd/images", "dtd/dtd/labels"),
    ),
    "Flowers102": Recipe(
        ({"split": "train"}, {"split": "val"}),
        ({"split": "test"},),
        ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
    ),
    "OxfordIIITPet": Recipe(
        ({"split": "trainval"},), ({"split": "test"},), ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations")
    ),
    "PCAM": Recipe(
        *_SPLITS,
        tuple(f"pcam/camelyonpatch_level_2_split_{part}_{kind}.h5" for part in ("train", "test") for kind in "xy"),
        package="h5py",
    ),
    "FER2013": Recipe(*_SPLITS, ("fer2013/fer2013.csv | fer2013/icml_face_data.csv",)),
    "Food101": Recipe(*_SPLITS, ("food-101/meta", "food-101/images")),
    "RenderedSST2": Recipe(*_SPLITS, ("rendered-sst2/train", "rendered-sst2/test")),
}


@dataclass(frozen=True)
class Remote:
    """A file to download: the addresses to try in turn, its path relative to root, and its MD5."""

    urls: tuple[str, ...]
    target: str
    md5: str


def remotes(name: str) -> list[Remote]:
    """Files that torchvision downloads for a class. Empty if it has no address, or one that only works in a browser.

    Addresses and checksums are those of the installed torchvision, if it has them in attributes. `_INSIDE_METHODS` has
    the others.
    """
    from matu_flwr._torchvision import ensure_importable

    ensure_importable()
    from torchvision import datasets

    cls = getattr(datasets, name)
    if name == "EMNIST":
        return [Remote((cls.url,), f"EMNIST/raw/{PurePosixPath(cls.url).name}", cls.md5)]
    if name in ("MNIST", "FashionMNIST", "KMNIST"):
        return [
            Remote(tuple(f"{mirror}{file}" for mirror in cls.mirrors), f"{name}/raw/{file}", md5)
            for file, md5 in cls.resources
        ]
    if name in ("USPS", "SVHN"):
        return [Remote((url,), file, md5) for url, file, md5 in (cls.split_list[part] for part in ("train", "test"))]
    if name == "SEMEION":
        return [Remote((cls.url,), cls.filename, cls.md5_checksum)]
    if name in ("CIFAR10", "CIFAR100", "STL10"):
        return [Remote((cls.url,), cls.filename, cls.tgz_md5)]
    if name == "SUN397":
        return [_archive(cls._DATASET_URL, cls._DATASET_MD5)]
    if name in ("Food101", "RenderedSST2"):
        return [_archive(cls._URL, cls._MD5)]
    if name == "DTD":
        return [_archive(cls._URL, cls._MD5, "dtd/")]
    if name == "OxfordIIITPet":
        return [_archive(url, md5, "oxford-iiit-pet/") for url, md5 in cls._RESOURCES]
    if name == "Flowers102":
        prefix = cls._download_url_prefix
        return [_archive(f"{prefix}{file}", md5, "flowers-102/") for file, md5 in cls._file_dict.values()]
    return [_archive(url, md5, folder) for url, md5, folder in _INSIDE_METHODS.get(name, ())]


def _archive(url: str, md5: str, folder: str = "") -> Remote:
    return Remote((url,), f"{folder}{PurePosixPath(url).name}", md5)


# Addresses and MD5s that torchvision has only inside its methods, where they cannot be read. They are copied here.
_SIGNS = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
_INSIDE_METHODS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "EuroSAT": (
        (
            "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
            "c8fa014336c82ac7804f0398fcb19387",
            "eurosat/",
        ),
    ),
    "GTSRB": (
        (f"{_SIGNS}GTSRB-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478", "gtsrb/"),
        (f"{_SIGNS}GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185", "gtsrb/"),
        (f"{_SIGNS}GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5", "gtsrb/"),
    ),
}
