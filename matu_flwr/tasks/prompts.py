"""Words for prompts: class names as people write them, and the sentences they are put into.

A zero-shot head is made from sentences such as "a photo of a tabby cat." (Radford et al., 2021). A data set brings both
parts of them: the templates say what kind of picture it has, and the class names say what a picture shows.
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
"""The templates of a task whose suite file gives none."""

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
"""Lists of templates that a suite file can use by name."""


def read_templates(value: object, where: str) -> tuple[str, ...]:
    """Read the key `templates` of a suite file: the name of a list in `TEMPLATES`, or a list of sentences.

    Parameters
    ----------
    value : object
        The key's value.
    where : str
        Suite and task, for the error.

    Raises
    ------
    TaskError
        The name is unknown, the list is empty, or a sentence does not have exactly one ``{}``.
    """
    if isinstance(value, str):
        if value not in TEMPLATES:
            raise TaskError(
                f"{where}: key 'templates' is {value!r}, which is not a shipped list: {nearest(value, TEMPLATES)}; "
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
    """Turn the name of a class folder into words. Upper and lower case are not changed.

    1. An index in front is removed: ``012.``, ``03_``, or a WordNet number such as ``n02085620-``.
    2. In a name of lower-case letters, the part after a slash moves to the front: ``church/indoor`` becomes "indoor
       church". ``F/A-18`` has capitals and stays.
    3. In a name without spaces, a capital letter inside a word starts a new word: ``AnnualCrop`` becomes "Annual Crop".
    4. Underscores and line breaks become spaces.
    """
    words = re.sub(r"^(n\d{8}|\d+)[._\-]+(?=[A-Za-z])", "", name)
    if re.fullmatch(r"[a-z_]+(/[a-z_]+)+", words):
        words = " ".join(reversed(words.split("/")))
    if " " not in words:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words)
    return " ".join(words.replace("_", " ").split())


def humanised(names: Iterable[str]) -> tuple[str, ...]:
    """Turn names into words with `humanise`. Names that would become equal are left as they are."""
    raw = tuple(names)
    words = [humanise(name) for name in raw]
    return tuple(word if word and words.count(word) == 1 else name for word, name in zip(words, raw, strict=True))


_RULES = 2
"""Raise this number when `humanise` changes: the cache keeps class names, and its key has this number."""


@functools.cache
def written_class_names() -> dict[str, Any]:
    """Class names that were written by hand, by torchvision class.

    They are a list in the order of the labels, or a mapping from the names in the files to the words.
    """
    names: dict[str, Any] = yaml.safe_load(_written())
    return names


def words_version() -> str:
    """A text that changes whenever class names could change. It is part of the cache's key."""
    return f"{_RULES}-{digests.of_bytes(_written().encode())[:12]}"


@functools.cache
def _written() -> str:
    return (resources.files("matu_flwr.tasks") / "class_names.yaml").read_text(encoding="utf-8")
