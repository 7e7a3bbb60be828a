"""Words for prompts: class names as people write them, and templates to put them in.

A zero-shot head is made from sentences such as "a photo of a tabby cat." (Radford et al., 2021). Both halves belong to
the data set: the templates say what kind of picture it is, the class names what is on it, in the order of the labels.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from importlib import resources
from typing import Any

import yaml

from matu_flwr import digests
from matu_flwr.tasks.errors import TaskError, nearest

GENERAL = (
    "a photo of a {}.",
    "a good photo of a {}.",
    "a close-up photo of a {}.",
    "a photo of the small {}.",
    "a photo of the large {}.",
    "a picture with a {} in it.",
)
"""The templates of a task that names none."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "general": GENERAL,
    "digits": ('a photo of the number: "{}".', 'the digit "{}" written by hand.', "a small picture of the number {}."),
    "street-numbers": ('a photo of the number: "{}".', "a house number {} on a wall.", "a street sign with a {}."),
    "characters": ('a photo of the character "{}".', 'the character "{}" written with a pen.'),
    "letters": ('a photo of the letter "{}".', 'the letter "{}" written by hand.', 'the printed letter "{}".'),
    "objects": ("a photo of a {}.", "a blurry photo of a {}.", "a small photo of a {}.", "a low-resolution {}."),
    "satellite": ("a satellite photo of {}.", "an aerial view of {}.", "a picture of {} taken from above."),
    "textures": ("a photo of a {} texture.", "a photo of a {} pattern.", "a photo of something {}."),
    "defects": ("a photo of steel with {}.", "a close-up of a steel surface with {}.", "a {} defect on metal."),
    "signs": ('a photo of a traffic sign that says "{}".', 'a close-up of a "{}" traffic sign.', "a road sign: {}."),
    "cars": (
        "a photo of a {}.",
        "a photo of my {}.",
        "a photo of a {} parked on the street.",
        "a photo of a clean {}.",
    ),
    "scenes": ("a photo of a {}.", "a photo of the {}.", "a picture taken at a {}."),
    "weather": ("a photo of {}.", "a photo of a landscape with {}.", "the weather: {}."),
    "flowers": ("a photo of a {}, a kind of flower.", "a close-up of a {} flower.", "a {} in bloom."),
    "plants": ("a photo of a {}.", "a photo of a {}, a part of a plant.", "a close-up of a {} on a plant."),
    "leaf-diseases": ("a photo of a leaf with {}.", "a photo of a plant: {}.", "a close-up of a leaf, {}."),
    "pets": ("a photo of a {}, a kind of pet.", "a photo of my {}.", "a close-up of the face of a {}."),
    "dogs": ("a photo of a {}, a breed of dog.", "a photo of my dog, a {}."),
    "birds": ("a photo of a {}, a kind of bird.", "a close-up of a {} on a branch."),
    "animals": ("a photo of a {}, a kind of animal.", "a photo of a {} in the wild.", "a close-up of a {}."),
    "food": ("a photo of {}, a kind of food.", "a plate of {}.", "a close-up of {}."),
    "produce": ("a photo of a {}.", "a photo of a fresh {}.", "several pieces of {}."),
    "tissue": ("a microscope picture of {}.", "a histology slide that shows {}."),
    "cells": ("a microscope picture of a {}.", "a blood smear with a {}, a white blood cell."),
    "x-rays": ("a chest X-ray: {}.", "an X-ray of a chest that shows {}."),
    "endoscopy": ("an endoscopic picture of {}.", "a photo from inside the gut: {}."),
    "faces": ("a photo of a face that looks {}.", "a person with a {} expression.", "a {} face."),
    "people": ("a photo of {}.", "a portrait of {}.", "the face of {}."),
    "gestures": ('a hand that shows the number "{}".', "a photo of a hand sign for {}."),
    "clothes": ("a photo of a {}.", "a {} in an online shop.", "a piece of clothing: {}."),
    "sentiment": ("a {} review of a film.", "a sentence with a {} opinion.", "a text that sounds {}."),
    "waste": ("a photo of {} to throw away.", "a piece of {} waste."),
    "orientations": ("a pattern of {} lines.", "stripes that run {}."),
    "colours": ("something {}.", "a {} thing.", "a patch of {} colour."),
    "counts": ("a picture of {} things.", "{} objects on a plain ground."),
}
"""Lists that a suite file can take by name."""


def read_templates(value: object, where: str) -> tuple[str, ...]:
    """Templates of a suite file: the name of a list in `TEMPLATES`, or a list of sentences with one ``{}`` each.

    Raises
    ------
    TaskError
        For an unknown name, an empty list, or a sentence without exactly one ``{}``.
    """
    if isinstance(value, str):
        if value not in TEMPLATES:
            raise TaskError(
                f"{where}: key 'templates' is {value!r}, which is no shipped list: {nearest(value, TEMPLATES)}; "
                "or give a list of sentences with {} for the class name"
            )
        return TEMPLATES[value]
    if not isinstance(value, list) or not value:
        raise TaskError(
            f"{where}: key 'templates' is {value!r}, expected the name of a shipped list or a list of sentences with "
            "{} for the class name"
        )
    for sentence in value:
        if not isinstance(sentence, str) or sentence.count("{}") != 1 or re.search(r"[{}]", sentence.replace("{}", "")):
            raise TaskError(
                f"{where}: template {sentence!r} cannot be filled in, expected a sentence with exactly one {{}} "
                "for the class name: correct it (and quote it in YAML)"
            )
    return tuple(value)


def humanise(name: str) -> str:
    """Turn the name of a class folder into words.

    In this order: an index in front goes (``012.``, ``03_`` or a WordNet number such as ``n02085620-``); what stands
    behind a slash comes to the front in a name of small letters (``church/indoor`` is an indoor church, an F/A-18 stays
    one); underscores and line ends become spaces; in a name without spaces a capital letter inside a word begins a new
    one (``AnnualCrop``). Upper and lower case stay.
    """
    words = re.sub(r"^(n\d{8}|\d+)[._\-]+(?=[A-Za-z])", "", name)
    if re.fullmatch(r"[a-z_]+(/[a-z_]+)+", words):
        words = " ".join(reversed(words.split("/")))
    if " " not in words:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words)
    return " ".join(words.replace("_", " ").split())


def humanised(names: Iterable[str]) -> tuple[str, ...]:
    """`humanise` every name; names that would fall together stay as they are."""
    raw = tuple(names)
    words = [humanise(name) for name in raw]
    return tuple(word if word and words.count(word) == 1 else name for word, name in zip(words, raw, strict=True))


_RULES = 2
"""Count up when `humanise` changes: class names are kept beside decoded images."""


@functools.cache
def written_class_names() -> dict[str, Any]:
    """Class names written by hand, by torchvision class: a list in label order, or a mapping from the files' names."""
    names: dict[str, Any] = yaml.safe_load(_written())
    return names


def words_version() -> str:
    """Tell apart two versions of what class names are made of."""
    return f"{_RULES}-{digests.of_bytes(_written().encode())[:12]}"


@functools.cache
def _written() -> str:
    return (resources.files("matu_flwr.tasks") / "class_names.yaml").read_text(encoding="utf-8")
