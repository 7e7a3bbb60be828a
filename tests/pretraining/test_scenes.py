"""Drawn scenes and their captions: functions of the seed, true, and drawn by nothing that a suite draws with."""

import numpy as np
import pytest

from matu_flwr.pretraining import corpus
from matu_flwr.pretraining.captions import caption
from matu_flwr.pretraining.scenes import DIRECTIONS, FONTS, HUES, KINDS, LETTERS, NUMBERS, draw_scene
from matu_flwr.tasks.loaders import generated


def some(count, seed=0, kind=None):
    rng = np.random.default_rng(seed)
    return [KINDS[kind][0](rng) if kind else draw_scene(rng) for _ in range(count)]


def facts_of(scene):
    return dict(fact.split("=", 1) for fact in scene.facts)


def test_the_pool_is_a_function_of_the_seed_and_not_of_the_processes():
    one, two = corpus.drawn(2500, seed=3), corpus.drawn(2500, seed=3, processes=2)
    assert np.array_equal(one[0], two[0])
    assert one[1] == two[1]
    assert not np.array_equal(one[0], corpus.drawn(2500, seed=4)[0])
    assert np.array_equal(one[0][:100], corpus.drawn(100, seed=3)[0])


def test_images_are_small_colour_pictures_and_none_is_empty():
    for scene in some(200):
        assert scene.image.shape == (32, 32, 3)
        assert scene.image.dtype == np.uint8
    assert all(
        scene.image.std() > 3 for kind in ("shapes", "glyphs", "lines", "counts") for scene in some(20, kind=kind)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_states_facts_of_its_image_alone(kind):
    rng = np.random.default_rng(1)
    for scene in some(60, kind=kind):
        text, stated = caption(scene.facts, rng)
        assert stated
        assert stated <= scene.facts
        assert text == text.strip()
        for value in (fact.split("=", 1)[1] for fact in stated if fact.startswith(("colour=", "shape=", "number="))):
            assert value in text


def test_captions_vary():
    (scene,) = some(1, kind="shapes")
    rng = np.random.default_rng(0)
    assert len({caption(scene.facts, rng)[0] for _ in range(40)}) > 20


def test_the_colour_is_in_the_pixels():
    """Of a surface in a colour with a hue: the median pixel's hue is within 40 degrees of the colour's."""
    import colorsys

    for scene in some(120, kind="colours"):
        colour = facts_of(scene)["colour"]
        pixel = np.median(scene.image.reshape(-1, 3), axis=0) / 255
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        if colour in HUES:
            assert abs((hue * 360 - HUES[colour] + 180) % 360 - 180) < 40
            assert saturation > 0.2
        else:
            assert {"black": value < 0.25, "grey": 0.3 < value < 0.7, "white": value > 0.75}[colour]


def test_the_number_is_in_the_pixels():
    """Marks do not touch: connected regions of a clean scene are as many as the caption says, rings and all."""
    from scipy.ndimage import label

    hits = 0
    found = some(40, kind="counts")
    for scene in found:
        grey = scene.image.astype(float).mean(axis=2)
        far = np.abs(scene.image.astype(float) - np.median(scene.image.reshape(-1, 3), axis=0)).max(axis=2) > 70
        regions, count = label(far, structure=np.ones((3, 3)))
        large = sum((regions == index).sum() >= 4 for index in range(1, count + 1))
        hits += large == NUMBERS.index(facts_of(scene)["number"]) + 1
        assert grey.std() > 0
    assert hits >= 0.75 * len(found)  # the rest is noise and colours close to the ground


def test_lines_run_in_the_named_direction():
    """The structure tensor's main direction across the strokes is the caption's, turned by 90 degrees."""
    errors = []
    for scene in some(80, kind="lines"):
        grey = scene.image.astype(float).mean(axis=2)
        dy, dx = np.gradient(grey)
        across = 0.5 * np.arctan2(2 * (dx * dy).sum(), (dx * dx - dy * dy).sum())
        along = np.rad2deg(-(across + np.pi / 2)) % 180  # y runs downwards
        wanted = float(facts_of(scene)["direction"])
        errors.append(abs((along - wanted + 90) % 180 - 90))
    assert np.median(errors) < 8


# --- what is held out ---


def test_no_drawing_of_a_suite_is_used(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a suite's family was drawn")

    for family in generated.FAMILIES.values():
        for style in family.styles:
            monkeypatch.setitem(family.styles, style, forbidden)
    for name in ("draw_images", "_glyph_masks", "_scene", "_gratings", "_patches", "_objects", "_counted", "_shapes"):
        monkeypatch.setattr(generated, name, forbidden)
    assert len(some(100)) == 100


def test_no_font_of_a_suite_is_used():
    assert not {*FONTS} & {*generated.SERIF, *generated.SANS, *generated.BOLD}


def test_no_pooled_image_is_a_test_image_of_the_offline_suite(tmp_path):
    from matu_flwr.tasks import load_suite, load_task

    pooled = {image.tobytes() for image in corpus.drawn(2048, seed=0)[0]}
    for spec in load_suite("offline").tasks.values():
        data = load_task(spec, image_size=32, seed=0, data_dir=None, cache_dir=tmp_path)
        assert not pooled & {image.tobytes() for image in data.test_images}


def test_the_words_of_the_held_out_classes_are_known():
    """Known concepts, unseen drawings: every class of every family is named in captions."""
    rng = np.random.default_rng(0)
    said = " ".join(f" {caption(scene.facts, rng)[0]} " for scene in some(6000))
    for name, family in generated.FAMILIES.items():
        for word in family.classes:
            assert f" {word.lower()} " in said, (name, word)
    assert set(DIRECTIONS) == {name.split()[0] for name in generated.FAMILIES["orientations"].classes}
    assert set(generated.FAMILIES["letters"].classes) <= set(LETTERS)
