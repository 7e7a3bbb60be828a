"""Tiny data sets on disk, in the layouts that the loaders read."""

import bz2
import gzip
import struct

import numpy as np
from PIL import Image


def grey_images(labels, size=28, seed=0):
    """Images whose mean grey is 20 * label, give or take: a label can be read off its image."""
    noise = np.random.default_rng(seed).integers(0, 5, size=(len(labels), size, size))
    return (20 * np.asarray(labels)[:, None, None] + noise).astype(np.uint8)


def labels_from(images):
    return np.asarray(images).mean(axis=(1, 2, 3)).astype(int) // 20


def cycle(count, classes=10):
    return np.arange(count) % classes


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(root, *, name="MNIST", packed=False, counts=(60, 20)):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for seed, (part, count) in enumerate(zip(("train", "t10k"), counts, strict=True)):
        labels = cycle(count)
        for kind, array in (("images-idx3", grey_images(labels, seed=seed)), ("labels-idx1", labels)):
            file = raw / f"{part}-{kind}-ubyte"
            if packed:
                file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                file.write_bytes(idx(array))


def write_usps(root, counts=(50, 20)):
    root.mkdir(parents=True)
    for file, count in zip(("usps.bz2", "usps.t.bz2"), counts, strict=True):
        labels = cycle(count)
        lines = []
        for label, image in zip(labels, grey_images(labels, size=16), strict=True):
            pixels = " ".join(f"{index + 1}:{pixel / 127.5 - 1:.4f}" for index, pixel in enumerate(image.reshape(-1)))
            lines.append(f"{label + 1} {pixels}")
        (root / file).write_bytes(bz2.compress("\n".join(lines).encode()))


def write_semeion(root, count=50):
    root.mkdir(parents=True)
    labels = cycle(count)
    pixels = np.random.default_rng(0).integers(0, 2, size=(count, 256))
    (root / "semeion.data").write_text(
        "\n".join(
            " ".join([*(f"{pixel:.4f}" for pixel in row), *("1" if c == label else "0" for c in range(10))]) + " "
            for row, label in zip(pixels, labels, strict=True)
        )
    )


def write_gtsrb(root, classes=3):
    base = root / "gtsrb"
    (base / "GTSRB" / "Final_Test" / "Images").mkdir(parents=True)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in range(classes):
        folder = base / "GTSRB" / "Training" / f"{label:05d}"
        folder.mkdir(parents=True)
        for index in range(4):
            save(folder / f"{index:05d}.ppm", label)
        save(base / "GTSRB" / "Final_Test" / "Images" / f"{label:05d}.ppm", label)
        rows.append(f"{label:05d}.ppm;32;32;0;0;31;31;{label}")
    (base / "GT-final_test.csv").write_text("\n".join(rows))


def write_folder(root, *, classes=("ash", "birch", "cedar"), train=6, test=3, form="png"):
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            for index in range(count):
                save(root / part / name / f"{index}.{form}", label, seed=index + 100 * (part == "test"))


def write_npz(path, *, counts=(30, 12), **changed):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"classes": np.array(["zero", "one", "two"])}
    for part, count in zip(("train", "test"), counts, strict=True):
        arrays |= {f"x_{part}": grey_images(cycle(count, 3), size=20), f"y_{part}": cycle(count, 3)}
    np.savez(path, **{key: value for key, value in {**arrays, **changed}.items() if value is not None})


def save(path, label, *, size=32, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey_images([label], size, seed)[0]).convert("RGB").save(path)
