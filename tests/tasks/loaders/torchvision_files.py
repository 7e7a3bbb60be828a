"""Tiny data sets in the layouts of torchvision's classes; a label can be read off its image (see `grey_images`)."""

import gzip
import json
import pickle

import numpy as np
from scipy.io import savemat

from tests.tasks import files

FLOWERS, PETS = ("ash", "birch", "cedar"), ("Abyssinian", "american_bulldog", "Bengal")


def colour(labels, size):
    return np.repeat(files.grey_images(labels, size)[..., None], 3, axis=3)  # (N, S, S, 3)


def svhn(root):
    root.mkdir(parents=True)
    for part, count in (("train", 30), ("test", 20)):
        labels = files.cycle(count)
        images = colour(labels, 32).transpose(1, 2, 3, 0)  # (32, 32, 3, N)
        savemat(
            root / f"{part}_32x32.mat", {"X": images, "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)}
        )
    return 30, 20, 10


def cifar(root, *, folder="cifar-10-batches-py", key="labels", classes=10, meta="batches.meta"):
    parts = {f"data_batch_{i}": 20 for i in range(1, 6)} | {"test_batch": 10}
    if classes == 100:
        parts = {"train": 100, "test": 10}
    (root / folder).mkdir(parents=True)
    for name, count in parts.items():
        labels = files.cycle(count, 10)
        rows = colour(labels, 32).transpose(0, 3, 1, 2).reshape(count, -1)  # (N, 3072), red first
        (root / folder / name).write_bytes(pickle.dumps({"data": rows, key: labels.tolist()}))
    names = [f"aquarium_thing_{index}" for index in range(classes)]
    (root / folder / meta).write_bytes(pickle.dumps({"label_names" if classes == 10 else "fine_label_names": names}))
    return 100, 10, classes


def cifar100(root):
    return cifar(root, folder="cifar-100-python", key="fine_labels", classes=100, meta="meta")


def stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for part, count in (("train", 20), ("test", 10)):
        labels = files.cycle(count)
        images = colour(labels, 96).transpose(0, 3, 2, 1)  # (N, 3, column, row): the files go down the columns
        (folder / f"{part}_X.bin").write_bytes(images.tobytes())
        (folder / f"{part}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    (folder / "unlabeled_X.bin").write_bytes(b"")
    return 20, 10, 10


def sun397(root):
    base, names = root / "SUN397", ["/a/abbey", "/a/apartment_building/outdoor", "/b/bakery/shop"]
    for label, name in enumerate(names):
        for index in range(5):
            files.save(base / name[1:] / f"sun_{'zyxwv'[index]}.jpg", label, seed=index)
    (base / "ClassName.txt").write_text("\n".join(names))
    return 12, 3, 3


def cars(root):
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"]
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(names, dtype=object)})
    for part, count in (("train", 6), ("test", 3)):
        rows = []
        for index in range(count):
            files.save(base / f"cars_{part}" / f"{index:05d}.jpg", index % 3, seed=index)
            rows.append((f"{index:05d}.jpg", index % 3 + 1))
        table = np.array(rows, dtype=[("fname", object), ("class", object)])
        name = "devkit/cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat"
        savemat(base / name, {"annotations": table})
    return 6, 3, 3


EUROSAT = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop"]
EUROSAT += ["Residential", "River", "SeaLake"]


def eurosat(root):
    for label, name in enumerate(EUROSAT):
        for index in range(5):
            files.save(root / "eurosat" / "2750" / name / f"{name}_{index}.jpg", label, seed=index)
    return 40, 10, 10


def dtd(root):
    base, names = root / "dtd" / "dtd", ("banded", "blotchy", "braided")
    (base / "labels").mkdir(parents=True)
    for place, part in enumerate(("train", "val", "test")):
        lines = []
        for label, name in enumerate(names):
            files.save(base / "images" / name / f"{name}_{place}.jpg", label, seed=place)
            lines.append(f"{name}/{name}_{place}.jpg")
        (base / "labels" / f"{part}1.txt").write_text("\n".join(lines) + "\n")
    return 6, 3, 3


def flowers102(root):
    base, count = root / "flowers-102", 10
    labels = files.cycle(count, 5)
    for index, label in enumerate(labels, 1):
        files.save(base / "jpg" / f"image_{index:05d}.jpg", label, seed=index)
    savemat(base / "imagelabels.mat", {"labels": labels + 1})
    savemat(base / "setid.mat", {"trnid": [[1, 2, 3]], "valid": [[4, 5]], "tstid": [[6, 7, 8, 9, 10]]})
    return 5, 5, 102


def pets(root):
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for part, count in (("trainval", 4), ("test", 2)):
        lines = []
        for label, name in enumerate(PETS):
            for index in range(count):
                files.save(base / "images" / f"{name}_{part}{index}.jpg", label, seed=index)
                lines.append(f"{name}_{part}{index} {label + 1} {1 + (name == 'american_bulldog')} 1")
        (base / "annotations" / f"{part}.txt").write_text("\n".join(lines))
    return 12, 6, 3


def fer2013(root):
    folder = root / "fer2013"
    folder.mkdir(parents=True)
    lines = ["emotion,pixels,Usage"]
    for usage, count in (("Training", 14), ("PublicTest", 7), ("PrivateTest", 7)):
        labels = files.cycle(count, 7)
        for label, image in zip(labels, files.grey_images(labels, 48), strict=True):
            lines.append(f"{label},{' '.join(map(str, image.reshape(-1)))},{usage}")
    (folder / "fer2013.csv").write_text("\n".join(lines))
    return 14, 14, 7


def emnist(root, split="digits", first=0, classes=10):
    raw = root / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("test", 20)):
        labels = files.cycle(count, 10)
        images = files.grey_images(labels)
        images[:, 0, :] = 0  # a dark first row of the file: the left edge of the picture
        (raw / f"emnist-{split}-{part}-images-idx3-ubyte").write_bytes(files.idx(images))
        (raw / f"emnist-{split}-{part}-labels-idx1-ubyte").write_bytes(files.idx(labels + first))
    return 30, 20, classes


def emnist_letters(root):
    return emnist(root, "letters", 1, 26)


def food101(root):
    base, names = root / "food-101", ("apple_pie", "baby_back_ribs", "baklava")
    (base / "meta").mkdir(parents=True)
    for part, count in (("train", 3), ("test", 1)):
        listed = {name: [f"{name}/{part}{index}" for index in range(count)] for name in names}
        for label, paths in enumerate(listed.values()):
            for index, path in enumerate(paths):
                files.save(base / "images" / f"{path}.jpg", label, seed=index)
        (base / "meta" / f"{part}.json").write_text(json.dumps(listed))
    return 9, 3, 3


def rendered_sst2(root):
    for part, count in (("train", 4), ("valid", 1), ("test", 2)):
        for label, name in enumerate(("negative", "positive")):
            for index in range(count):
                files.save(root / "rendered-sst2" / part / name / f"{index}.png", label, seed=index)
    return 8, 4, 2


def pcam(root):
    """Files as arrays in .npz, which the tests' stand-in for h5py opens."""
    folder = root / "pcam"
    folder.mkdir(parents=True)
    for part, count in (("train", 8), ("test", 4)):
        labels = files.cycle(count, 2)
        for kind, array in (("x", colour(labels, 96)), ("y", labels.reshape(-1, 1, 1, 1).astype(np.uint8))):
            with (folder / f"camelyonpatch_level_2_split_{part}_{kind}.h5").open("wb") as stream:
                np.savez(stream, **{kind: array})
    return 8, 4, 2


def fgvc_aircraft(root):
    """A class that is not known to the package: the suite has to name its parts."""
    data = root / "fgvc-aircraft-2013b" / "data"
    (data / "images").mkdir(parents=True)
    (data / "variants.txt").write_text("707-320\nA300B4\n")
    for part, count in (("trainval", 4), ("test", 2)):
        lines = []
        for label, name in enumerate(("707-320", "A300B4")):
            for index in range(count):
                number = f"{part}{label}{index}"
                files.save(data / "images" / f"{number}.jpg", label, seed=index)
                lines.append(f"{number} {name}")
        (data / f"images_variant_{part}.txt").write_text("\n".join(lines))
    return 8, 4, 2


def packed(folder, pattern="*-ubyte"):
    for file in folder.rglob(pattern):
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
