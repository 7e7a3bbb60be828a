import hashlib

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from matu_flwr.seeds import generator
from matu_flwr.tasks import TaskError, TaskSpec, load_suite, load_task
from matu_flwr.tasks.loaders.generated import FAMILIES, draw_images, draw_labels

STYLES = [(family, style) for family in FAMILIES for style in FAMILIES[family].styles]


def drawn(family, style, *, seed=0, count=60, size=32):
    rng = generator(seed, family, style)
    labels = draw_labels(FAMILIES[family], count, rng)
    return draw_images(FAMILIES[family], style, labels, size, rng), labels


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    cache = tmp_path_factory.mktemp("offline")
    return {
        name: load_task(spec, image_size=32, seed=0, data_dir=None, cache_dir=cache)
        for name, spec in load_suite("offline").tasks.items()
    }


@pytest.mark.parametrize(("family", "style"), STYLES)
def test_same_seed_same_pixels_other_seed_other_pixels(family, style):
    images, labels = drawn(family, style)
    again, same_labels = drawn(family, style)
    assert np.array_equal(images, again)
    assert np.array_equal(labels, same_labels)
    assert not np.array_equal(images, drawn(family, style, seed=1)[0])


@pytest.mark.parametrize("size", [16, 33, 64])
def test_drawn_at_any_size(size):
    for family, style in STYLES:
        images, _ = drawn(family, style, count=13, size=size)
        assert images.shape == (13, size, size, 3)
        assert images.dtype == np.uint8
        assert images.std() > 10


def test_pixels_are_the_same_on_every_machine():
    # Of the families that numpy alone draws; glyphs and shapes may differ by a grey level between versions of Pillow.
    digest = hashlib.sha256()
    for family, style in STYLES:
        if family in ("orientations", "colours", "counts"):
            digest.update(drawn(family, style)[0].tobytes())
    assert digest.hexdigest()[:16] == "85e2d28ddb6f0765"


def test_suite_is_balanced_and_no_image_is_in_both_parts(offline):
    for name, data in offline.items():
        assert data.train_images.shape == (480, 32, 32, 3), name
        assert data.test_images.shape == (200, 32, 32, 3), name
        for labels in (data.train_labels, data.test_labels):
            counts = np.bincount(labels, minlength=len(data.classes))
            assert counts.max() - counts.min() <= (6 if name == "digits-hand" else 1), name
        train = {image.tobytes() for image in data.train_images}
        assert not train & {image.tobytes() for image in data.test_images}, name


def test_related_tasks_have_the_same_classes_in_the_same_order(offline):
    groups = {}
    for name, spec in load_suite("offline").tasks.items():
        groups.setdefault(spec.group, set()).add(offline[name].classes)
    assert {group: len(classes) for group, classes in groups.items()} == dict.fromkeys(groups, 1)


# A linear classifier on grey pixels, or for colours on the mean hue and its harmonics: far above chance (0.08 to 0.17).
# Stripes have no fixed phase, so no linear map of pixels tells them apart; they have a test of their own below.
LINEAR = {"digits-hand": 0.8, "digits-printed": 0.8, "letters-serif": 0.8, "letters-sans": 0.8,
          "colour-patches": 0.8, "colour-objects": 0.3, "count-dots": 0.3,
          "count-squares": 0.3}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_classes_can_be_told_from_the_pixels(offline, name):
    data = offline[name]

    def features(images):
        if name.startswith("colour"):
            red, green, blue = np.moveaxis(images.mean(axis=(1, 2)), -1, 0)
            hue = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)
            return np.stack([wave(order * hue) for order in (1, 2, 3, 4) for wave in (np.sin, np.cos)], axis=1)
        return images.mean(axis=-1).reshape(len(images), -1) / 128 - 1

    model = RidgeClassifier(alpha=1.0 if name.startswith("colour") else 300.0)
    model.fit(features(data.train_images), data.train_labels)
    assert model.score(features(data.test_images), data.test_labels) >= LINEAR[name]


@pytest.mark.parametrize("name", ["orientation-gratings", "orientation-stripes"])
def test_orientation_is_the_direction_of_least_change(offline, name):
    data = offline[name]
    grey = data.test_images.mean(axis=-1)  # (n, S, S)
    dy, dx = np.gradient(grey, axis=(1, 2))
    # The structure tensor's main direction is across the stripes; image rows run downwards.
    across = 0.5 * np.arctan2(2 * (dx * dy).sum((1, 2)), (dx * dx - dy * dy).sum((1, 2)))
    along = np.rad2deg(-across) + 90
    found = np.round(along / 22.5).astype(int) % 8
    assert np.mean(found == data.test_labels) > 0.7


def test_wrong_options_are_refused(tmp_path):
    def load(**options):
        spec = TaskSpec("mine", "generated", options)
        return load_task(spec, image_size=32, seed=0, data_dir=None, cache_dir=tmp_path)

    with pytest.raises(TaskError, match=r"task 'mine': unknown family 'shape': did you mean 'shapes'\? known: colours"):
        load(family="shape", style="filled")
    with pytest.raises(TaskError, match=r"family 'shapes' has no style 'fill': did you mean 'filled'\? known: filled"):
        load(family="shapes", style="fill")
    with pytest.raises(TaskError, match="task 'mine': option 'test' is 3, expected at least one image per class"):
        load(family="shapes", style="filled", test=3)
    with pytest.raises(TaskError, match="task 'mine': loader 'generated' needs the option 'style'"):
        load(family="shapes")


def test_a_font_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    from matu_flwr.tasks.loaders import generated

    monkeypatch.setattr(generated, "matplotlib_font", generated.matplotlib_font.__wrapped__)
    with pytest.raises(TaskError, match=r"font .*\.ttf is missing, expected among Matplotlib's own files: reinstall M"):
        drawn("digits", "printed")


def test_image_size_and_seed_give_other_images(tmp_path):
    spec = load_suite("offline").tasks["count-dots"]
    arguments = {"data_dir": None, "cache_dir": tmp_path}
    first = load_task(spec, image_size=32, seed=0, **arguments)
    other = load_task(spec, image_size=32, seed=1, **arguments)
    large = load_task(spec, image_size=64, seed=0, **arguments)
    assert not np.array_equal(first.train_labels, other.train_labels)
    assert np.array_equal(first.train_labels, large.train_labels)
    assert large.train_images.shape[1:] == (64, 64, 3)
    with pytest.raises(TaskError, match="task 'count-dots': image_size is 4, expected 8 pixels or more"):
        load_task(spec, image_size=4, seed=0, **arguments)
