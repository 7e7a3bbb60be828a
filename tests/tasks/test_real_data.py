"""The shipped suites against the real files; runs where MATU_DATA_DIR names their folder."""

import os
from pathlib import Path

import numpy as np
import pytest

from matu_flwr.tasks import TaskError, load_suite, load_task
from matu_flwr.tasks.canary import observe, verify
from matu_flwr.tasks.datasets import open_source
from matu_flwr.tasks.prepare.check import check_suite

pytestmark = pytest.mark.real_data

# classes, training and test images of the whole set, first class names in the order of their labels
KNOWN = {
    "mnist": (10, 60000, 10000, ("0", "1")),
    "kmnist": (10, 8000, 2000, ("o", "ki", "su")),
    "usps": (10, 7291, 2007, ("0", "1")),
    "cifar10": (10, 5000, 1000, ("airplane", "automobile", "bird")),
    "gtsrb": (43, 3440, 860, ("20 km/h speed limit", "30 km/h speed limit")),
    "flowers5": (5, 2500, 600, ("daisy", "dandelion", "rose")),
    "rsscn7": (7, 2240, 560, ("field", "forest", "grass")),
    "neu_steel": (6, 1439, 360, ("crazing", "inclusion", "patches", "pitted surface")),
    "weather4": (4, 877, 219, ("cloudy sky", "rain", "sunshine", "sunrise")),
    "corn_leaf": (4, 2257, 564, ("blight", "common rust")),
    "blood_cells": (4, 2000, 600, ("eosinophil", "lymphocyte")),
    "sign_digits": (10, 1651, 411, ("0", "1")),
    "fashion_mnist": (10, 60000, 10000, ("t-shirt", "trouser")),
    "semeion": (10, 1274, 319, ("0", "1")),
    "omniglot": (242, 3872, 968, ()),
    "olivetti": (40, 320, 80, ()),
    "pneumonia_xray": (2, 2023, 624, ("normal", "pneumonia")),
    "tiny_imagenet32": (40, 4000, 1000, ("goldfish", "bullfrog")),
    "fer2013": (7, 2943, 655, ("angry", "disgust")),
    "monkeys10": (10, 1045, 255, ("bald uakari",)),
}


@pytest.fixture(scope="module")
def data_dir():
    folder = os.environ.get("MATU_DATA_DIR")
    if not folder:
        pytest.skip("MATU_DATA_DIR is not set: no real data to read")
    return Path(folder)


@pytest.fixture
def cache_dir(decoded):
    return decoded


@pytest.mark.parametrize("task", KNOWN)
def test_sizes_classes_and_separation(data_dir, cache_dir, task):
    spec = load_suite("real-20").tasks[task]
    classes, train, test, names = KNOWN[task]
    data = load_task(spec, image_size=32, seed=0, data_dir=data_dir, cache_dir=cache_dir)
    assert len(data.classes) == len(set(data.classes)) == classes
    assert data.classes[: len(names)] == names
    assert data.train_images.shape == (min(train, 1000), 32, 32, 3)
    assert data.test_images.shape == (min(test, 500), 32, 32, 3)
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert set(labels) == set(range(classes))
        assert images.std() > 20
    assert not {i.tobytes() for i in data.train_images} & {i.tobytes() for i in data.test_images}


@pytest.mark.parametrize("task", KNOWN)
def test_canary_of_the_whole_set(data_dir, cache_dir, task):
    """Sizes before the caps, names, labels and sampled images are those that the suite has on record."""
    spec = load_suite("real-20").tasks[task]
    found = observe(open_source(spec, seed=0, data_dir=data_dir, cache_dir=cache_dir))
    assert (found.train, found.test) == KNOWN[task][1:3]
    assert spec.canary.pixels
    assert spec.canary.disjoint
    verify(task, spec.canary, found, data_dir / task)


@pytest.mark.parametrize("task", ["mnist", "fashion_mnist"])
def test_whole_published_sets_fit_the_suites_of_the_papers(data_dir, cache_dir, task):
    spec = load_suite("talls-20").tasks[task]
    verify(
        task, spec.canary, observe(open_source(spec, seed=0, data_dir=data_dir, cache_dir=cache_dir)), data_dir / task
    )


def test_subsets_do_not_pass_for_the_published_sets(data_dir, cache_dir):
    spec = load_suite("paper-8").tasks["gtsrb"]
    found = observe(open_source(spec, seed=0, data_dir=data_dir, cache_dir=cache_dir))
    with pytest.raises(
        TaskError, match=r"task 'gtsrb': .* expected 26640 train images, found 3440; expected 12630 test"
    ):
        verify("gtsrb", spec.canary, found, data_dir / "gtsrb")


def test_check_draws_a_sheet_of_every_task(data_dir, cache_dir):
    results = check_suite(
        load_suite("real-4"),
        image_size=32,
        seed=0,
        data_dir=data_dir,
        cache_dir=cache_dir,
        sheets=cache_dir / "sheets",
    )
    assert [(result.canary, result.error, result.duplicates) for result in results] == [("fits", "", 0)] * 4
    assert all(result.sheet.stat().st_size > 10_000 for result in results)


# Mean red, green, blue of the capped training sets at 32 px, seed 0: exchanged channels or a lost inversion would show.
MEANS = {
    "mnist": (33.9, 33.9, 33.9),
    "kmnist": (48.1, 48.1, 48.1),
    "usps": (65.8, 65.8, 65.8),
    "cifar10": (124.6, 122.2, 113.7),
    "gtsrb": (88.6, 82.1, 84.9),
    "flowers5": (117.7, 108.2, 79.0),
    "rsscn7": (94.9, 97.6, 87.3),
    "neu_steel": (129.3, 129.3, 129.3),
    "weather4": (124.7, 121.6, 117.9),
    "corn_leaf": (112.6, 127.8, 96.3),
    "blood_cells": (186.0, 175.7, 181.8),
    "sign_digits": (172.5, 165.0, 157.5),
}


@pytest.mark.parametrize("task", MEANS)
def test_mean_colour(data_dir, cache_dir, task):
    spec = load_suite("real-20").tasks[task]
    data = load_task(spec, image_size=32, seed=0, data_dir=data_dir, cache_dir=cache_dir)
    assert np.abs(data.train_images.mean(axis=(0, 1, 2)) - MEANS[task]).max() < 1
