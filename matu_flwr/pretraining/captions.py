"""Writes captions from facts about an image, in varied words. A caption says nothing that is not a fact.

A caption states some of the facts, chosen at random. The facts that it states are returned with it, so that training
can tell for every image of a batch whether the caption is true of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from matu_flwr.pretraining.scenes import DIGITS, Facts

_DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PLURALS = {"triangle": "triangles", "star": "stars", "cross": "crosses", "ring": "rings", "ellipse": "ellipses"}
_OPENINGS = ("", "", "a picture of ", "an image of ", "a photo of ", "a drawing of ")


def caption(facts: Facts, rng: np.random.Generator) -> tuple[str, Facts]:
    """Write a caption that states some of the facts.

    Parameters
    ----------
    facts : frozenset of str
        What is true of the image, each as "key=value".
    rng : numpy.random.Generator
        Chooses the facts and the words.

    Returns
    -------
    text : str
        The caption, lower case.
    stated : frozenset of str
        The facts that it states, a subset of `facts`.
    """
    teller = _Teller(facts, rng)
    text = teller.one_of(_OPENINGS) + _PHRASES[teller.known["kind"]](teller)
    if "ground" in teller.known and teller.chance(0.2):
        text += f" on a {teller.tell('ground')} background"
    return text, frozenset(teller.said)


class _Teller:
    """Tells facts by key, and records which it told."""

    def __init__(self, facts: Facts, rng: np.random.Generator) -> None:
        # Sorted, because the order of a set differs from process to process.
        self.known = dict(fact.split("=", 1) for fact in sorted(facts))
        self.said: set[str] = set()
        self.rng = rng

    def chance(self, share: float) -> bool:
        return bool(self.rng.uniform() < share)

    def one_of(self, forms: Sequence[str]) -> str:
        return forms[int(self.rng.integers(len(forms)))]

    def tell(self, key: str) -> str:
        self.said.add(f"{key}={self.known[key]}")
        return self.known[key]

    def perhaps(self, key: str, share: float) -> str:
        """With probability `share` tell a fact and add a space; else say nothing."""
        return f"{self.tell(key)} " if key in self.known and self.chance(share) else ""


def _shape(say: _Teller) -> str:
    words = "a " + say.perhaps("size", 0.3) + say.perhaps("colour", 0.6) + say.tell("shape")
    if say.chance(0.35):
        column, row = say.tell("column"), say.tell("row")
        place = "middle" if (column, row) == ("middle", "centre") else f"{row} {column}"
        words += f" {say.one_of(('at', 'in'))} the {place}"
    return words


def _letter(say: _Teller) -> str:
    say.tell("kind")
    form = say.one_of(("the {}letter {}", "a {}letter {}", "the {}character {}", "the {}capital letter {}", "{}{}"))
    return form.format(say.perhaps("colour", 0.25), say.tell("letter"))


def _digit(say: _Teller) -> str:
    say.tell("kind")
    figure = say.tell("digit")
    if say.chance(0.3):
        figure = _DIGIT_WORDS[DIGITS.index(figure)]
    form = say.one_of(("the {}digit {}", "the {}number {}", "a {}digit {}", "the {}number: {}", "{}{}"))
    return form.format(say.perhaps("colour", 0.25), figure)


def _lines(say: _Teller) -> str:
    say.tell("kind")
    noun = say.one_of(("lines", "strokes", "stripes", "bars", "a pattern of lines"))
    degrees, colour = say.tell("direction"), say.perhaps("colour", 0.3)
    aside = {"0": "horizontal", "90": "vertical"}.get(degrees)
    if aside and say.chance(0.3):
        return f"{colour}{aside} {noun}"
    form = say.one_of(("{} at {} degrees", "{} at an angle of {} degrees", "{} turned by {} degrees", "{} {} degrees"))
    return form.format(colour + noun, degrees)


def _count(say: _Teller) -> str:
    say.tell("kind")
    number, colour = say.tell("number"), say.perhaps("colour", 0.4)
    if say.chance(0.5):
        mark = say.tell("mark")
        noun = mark if number == "one" else _PLURALS[mark]
    else:
        noun = say.one_of(("thing", "mark", "object", "shape")) + ("" if number == "one" else "s")
    return f"{number} {colour}{noun}"


def _surface(say: _Teller) -> str:
    colour = say.tell("colour")
    if say.chance(0.5):
        # These words are also true of a figure in this colour, so the kind "surface" is not stated.
        return say.one_of(("something {}", "the colour {}", "{}", "a {} thing")).format(colour)
    say.tell("kind")
    return say.one_of(("a {} surface", "a {} patch", "a {} area")).format(colour)


def _texture(say: _Teller) -> str:
    say.tell("kind")
    return say.one_of(("a {} texture", "a {} pattern", "a {} surface")).format(say.tell("texture"))


def _photo(say: _Teller) -> str:
    """A real image: the caption names its class, or only the kind of pictures in its data set."""
    say.tell("kind")
    if say.chance(0.85):
        say.tell("set")
        return say.one_of(("a {}", "{}")).format(say.tell("name"))
    return say.tell("set")


_PHRASES: dict[str, Callable[[_Teller], str]] = {
    "shape": _shape,
    "letter": _letter,
    "digit": _digit,
    "lines": _lines,
    "count": _count,
    "surface": _surface,
    "texture": _texture,
    "photo": _photo,
}
