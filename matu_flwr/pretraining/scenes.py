"""Draws images for pre-training, each with the facts that are true of it.

There are six kinds of scenes: figures, glyphs, lines, counts, colours and textures. They share *concepts* with the
generated tasks of the suites: colours, directions, numbers, letters, shapes. They do not share *drawings*, except the
outlines of shapes: fonts, marks, backgrounds and layouts differ. So zero-shot accuracy on the generated tasks shows how
well concepts carry over to images of a new kind.

A fact is a text "key=value", such as "colour=red" or "shape=star".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from matu_flwr.tasks.loaders.generated import OUTLINES, matplotlib_font

Rng = np.random.Generator
Facts = frozenset[str]
RGB = tuple[int, int, int]

# Side of a scene in pixels. It is drawn three times as large and averaged down, for smooth edges.
SIZE = 32
_OVERSAMPLING = 3
_SIDE = SIZE * _OVERSAMPLING

# Hues in degrees of the colours that the suites name, and the RGB values of colours without a hue.
HUES = {"red": 0, "orange": 28, "yellow": 55, "green": 115, "turquoise": 170, "blue": 215, "violet": 265, "pink": 320}
GREYS: dict[str, RGB] = {"black": (15, 15, 15), "grey": (128, 128, 128), "white": (240, 240, 240)}
SHAPES = tuple(OUTLINES)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
NUMBERS = ("one", "two", "three", "four", "five", "six")
# Degrees, counter-clockwise from the horizontal.
DIRECTIONS = tuple(f"{22.5 * step:g}" for step in range(8))
COLUMNS, ROWS = ("left", "middle", "right"), ("top", "centre", "bottom")
TEXTURES = ("checkerboard", "dotted", "speckled", "smooth", "blurred", "grid", "woven")
# Fonts that come with Matplotlib and that no generated task uses.
FONTS = (
    "cmtt10",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif-BoldItalic",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
)


@dataclass(frozen=True)
class Scene:
    """One image, (32, 32, 3) uint8 RGB, and the facts that are true of it."""

    image: npt.NDArray[np.uint8]
    facts: Facts


# --- colours and grounds -------------------------------------------------------------------------------------------


def _hue(rng: Rng, name: str) -> RGB:
    """A shade of a named colour."""
    if name in GREYS:
        return tuple(int(c) for c in np.clip(np.array(GREYS[name]) + rng.integers(-15, 16), 0, 255))  # type: ignore[return-value]
    degrees = (HUES[name] + rng.normal(0, 9)) % 360
    return _from_hsv(degrees, rng.uniform(0.45, 1.0), rng.uniform(0.5, 1.0))


def _from_hsv(degrees: float, saturation: float, value: float) -> RGB:
    import colorsys

    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(degrees / 360, saturation, value))  # type: ignore[return-value]


def _ground(rng: Rng, light: bool) -> Image.Image:
    """A nearly grey background, light or dark, whose brightness changes from corner to corner."""
    low, high = (0.62, 0.98) if light else (0.02, 0.4)
    corners = rng.uniform(low, high, size=(2, 2, 1)) + rng.uniform(-0.06, 0.06, size=(1, 1, 3))
    small = Image.fromarray(np.round(np.clip(corners, 0, 1) * 255).astype(np.uint8))
    return small.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)


def _finish(rng: Rng, canvas: Image.Image) -> npt.NDArray[np.uint8]:
    """Average down to (32, 32, 3) uint8, and add some camera noise."""
    image = np.asarray(canvas.reduce(_OVERSAMPLING), dtype=np.float64)
    image = image + rng.normal(0, rng.uniform(1, 12), size=image.shape)
    return np.round(np.clip(image, 0, 255)).astype(np.uint8)


def _colour_on(rng: Rng, light: bool) -> str:
    """Choose the name of a colour that stands out from the background."""
    names = [*HUES, "black" if light else "white"]
    return names[rng.integers(len(names))]


def _ground_fact(light: bool) -> str:
    return f"ground={'light' if light else 'dark'}"


def _outline(shape: str, centre: tuple[float, float], radius: float, degrees: float) -> list[tuple[float, float]]:
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = OUTLINES[shape] @ turn * radius + np.array(centre)
    return [(float(x), float(y)) for x, y in corners]


# --- the kinds of scenes -------------------------------------------------------------------------------------------


def _figure(rng: Rng) -> Scene:
    """One shape in one of nine places, large or small, with a rim of another brightness."""
    light = bool(rng.integers(2))
    shape, colour = SHAPES[rng.integers(len(SHAPES))], _colour_on(rng, light)
    # Two of three figures are large. Only small ones leave the middle.
    large = bool(rng.integers(3))
    radius = _SIDE * (rng.uniform(0.28, 0.4) if large else rng.uniform(0.14, 0.2))
    column, row = (1, 1) if large else (int(rng.integers(3)), int(rng.integers(3)))
    centre = tuple(_SIDE * (0.5 + 0.28 * (place - 1) + rng.uniform(-0.05, 0.05)) for place in (column, row))
    canvas = _ground(rng, light)
    points = _outline(shape, centre, radius, rng.uniform(-25, 25))  # type: ignore[arg-type]
    rim = _hue(rng, colour)
    inside = tuple(round(c * rng.uniform(0.7, 1.0)) for c in rim) if rng.integers(2) else None
    pen = ImageDraw.Draw(canvas)
    if inside is not None:
        pen.polygon(points, fill=inside)
    pen.line([*points, *points[:2]], fill=rim, width=max(3, round(radius * rng.uniform(0.1, 0.3))), joint="curve")
    facts = {"kind=shape", f"shape={shape}", f"colour={colour}", _ground_fact(light)}
    facts |= {f"size={'large' if large else 'small'}", f"column={COLUMNS[column]}", f"row={ROWS[row]}"}
    return Scene(_finish(rng, canvas), frozenset(facts))


def _glyph(rng: Rng) -> Scene:
    """A letter or a digit in a random font, size, place and slant."""
    light = bool(rng.integers(2))
    letter = bool(rng.integers(5) > 1)
    characters = LETTERS if letter else DIGITS
    character = characters[rng.integers(len(characters))]
    colour = _colour_on(rng, light)
    font = _font(FONTS[rng.integers(len(FONTS))], int(_SIDE * rng.uniform(0.55, 1.05) / 4) * 4)
    left, top, right, bottom = font.getbbox(character)
    mask = Image.new("L", (_SIDE, _SIDE))
    centre = rng.uniform(0.44, 0.56, size=2) * _SIDE
    corner = (centre[0] - (left + right) / 2, centre[1] - (top + bottom) / 2)
    pen = ImageDraw.Draw(mask)
    pen.text(corner, character, fill=255, font=font, stroke_width=int(rng.integers(0, 4)))
    mask = mask.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
    # One glyph of four is blurred to what a coarse scan would leave of it.
    if rng.integers(4) == 0:
        mask = mask.resize((10, 10), Image.Resampling.BOX).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    canvas = _ground(rng, light)
    canvas.paste(_hue(rng, colour), (0, 0), mask)
    kind = f"letter={character.lower()}" if letter else f"digit={character}"
    facts = {f"kind={'letter' if letter else 'digit'}", kind, f"colour={colour}", _ground_fact(light)}
    return Scene(_finish(rng, canvas), frozenset(facts))


@functools.cache
def _font(name: str, pixels: int) -> ImageFont.FreeTypeFont:
    return matplotlib_font(name, pixels, LETTERS + DIGITS)


def _lines(rng: Rng) -> Scene:
    """Some separate strokes, all in one direction."""
    light = bool(rng.integers(2))
    index = int(rng.integers(len(DIRECTIONS)))
    colour = _colour_on(rng, light)
    canvas, ink = _ground(rng, light), _hue(rng, colour)
    pen = ImageDraw.Draw(canvas)
    count = int(rng.integers(1, 14))
    for _ in range(count):
        angle = np.deg2rad(22.5 * index + rng.uniform(-6, 6))
        length = _SIDE * (rng.uniform(0.5, 0.9) if count < 4 else rng.uniform(0.25, 0.6))
        x, y = _SIDE * rng.uniform(0.15, 0.85, size=2)
        dx, dy = length / 2 * np.cos(angle), -length / 2 * np.sin(angle)  # y runs downwards
        pen.line([(x - dx, y - dy), (x + dx, y + dy)], fill=ink, width=int(rng.integers(4, 12)))
    facts = {"kind=lines", f"direction={DIRECTIONS[index]}", f"colour={colour}", _ground_fact(light)}
    return Scene(_finish(rng, canvas), frozenset(facts))


# No discs or squares: the generated tasks count those.
_MARKS = ("triangle", "star", "cross", "ring", "ellipse")


def _count(rng: Rng) -> Scene:
    """One to six equal marks at random places that do not touch."""
    light = bool(rng.integers(2))
    number = int(rng.integers(1, 7))
    mark, colour = _MARKS[rng.integers(len(_MARKS))], _colour_on(rng, light)
    radius = _SIDE * rng.uniform(0.075, 0.115)
    canvas, ink = _ground(rng, light), _hue(rng, colour)
    pen = ImageDraw.Draw(canvas)
    for x, y in _apart(rng, number, radius):
        if mark in OUTLINES:
            pen.polygon(_outline(mark, (x, y), radius * 1.15, rng.uniform(0, 360)), fill=ink)
        elif mark == "ring":
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], outline=ink, width=max(5, round(radius / 2)))
        else:
            tall = radius * 0.6
            pen.ellipse([x - radius, y - tall, x + radius, y + tall], fill=ink)
    facts = {"kind=count", f"number={NUMBERS[number - 1]}", f"mark={mark}", f"colour={colour}", _ground_fact(light)}
    return Scene(_finish(rng, canvas), frozenset(facts))


def _apart(rng: Rng, number: int, radius: float) -> npt.NDArray[np.float64]:
    """Draw centres (number, 2) of marks that do not touch each other."""
    # Draws 64 layouts at once and takes the first in which all marks are far enough apart.
    while True:
        places = rng.uniform(radius * 1.2, _SIDE - radius * 1.2, size=(64, number, 2))
        gaps = np.linalg.norm(places[:, :, None] - places[:, None], axis=-1) + 1e9 * np.eye(number)
        good = np.flatnonzero(gaps.min(axis=(1, 2)) > 2.5 * radius)
        if len(good):
            chosen: npt.NDArray[np.float64] = places[good[0]]
            return chosen


def _colour(rng: Rng) -> Scene:
    """A surface in two shades of one colour: shading into each other, as a spot, or side by side."""
    names = [*HUES, *GREYS]
    colour = names[rng.integers(len(names))]
    one, other = (np.array(_hue(rng, colour), dtype=np.float64) for _ in range(2))
    x, y = np.meshgrid(*[np.linspace(0, 1, _SIDE)] * 2)
    kind = rng.integers(3)
    if kind == 0:
        share = np.clip(x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1) + 0.5, 0, 1)
    elif kind == 1:
        share = np.exp(-(((x - rng.uniform()) ** 2 + (y - rng.uniform()) ** 2) / rng.uniform(0.02, 0.3)))
    else:
        share = (x * np.cos(a := rng.uniform(0, np.pi)) + y * np.sin(a) > rng.uniform(0.2, 0.8)).astype(np.float64)
    pixels = one + share[..., None] * (other - one)
    canvas = Image.fromarray(np.round(np.clip(pixels, 0, 255)).astype(np.uint8))
    return Scene(_finish(rng, canvas), frozenset({"kind=surface", f"colour={colour}"}))


def _texture(rng: Rng) -> Scene:
    """A pattern in two shades."""
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    cell = int(rng.integers(9, 22))
    y, x = np.mgrid[:_SIDE, :_SIDE] + rng.integers(0, 30, size=(2, 1, 1))
    if texture == "checkerboard":
        share = ((x // cell + y // cell) % 2).astype(np.float64)
    elif texture == "dotted":
        share = (np.hypot(x % cell - cell / 2, y % cell - cell / 2) < 0.32 * cell).astype(np.float64)
    elif texture == "grid":
        share = ((x % cell < 3) | (y % cell < 3)).astype(np.float64)
    elif texture == "woven":
        share = np.where((x // cell + y // cell) % 2, x % cell > cell / 2, y % cell > cell / 2).astype(np.float64)
    elif texture == "speckled":
        share = (rng.uniform(size=(SIZE, SIZE)) < rng.uniform(0.15, 0.5)).astype(np.float64).repeat(3, 0).repeat(3, 1)
    elif texture == "blurred":
        noise = Image.fromarray(rng.integers(0, 256, size=(_SIDE, _SIDE), dtype=np.uint8))
        blurred = np.asarray(noise.filter(ImageFilter.GaussianBlur(float(rng.uniform(6, 12)))), dtype=np.float64)
        share = (blurred - blurred.min()) / max(float(np.ptp(blurred)), 1.0)
    else:
        share = np.clip(x * rng.uniform(-1, 1) / _SIDE + y * rng.uniform(-1, 1) / _SIDE, 0, 1)
    one, other = rng.integers(0, 256, size=(2, 3)).astype(np.float64)
    if np.abs(one - other).max() < 80:
        other = 255 - one
    canvas = Image.fromarray(np.round(one + share[..., None] * (other - one)).astype(np.uint8))
    return Scene(_finish(rng, canvas), frozenset({"kind=texture", f"texture={texture}"}))


KINDS: dict[str, tuple[Callable[[Rng], Scene], float]] = {
    "shapes": (_figure, 0.25),
    "glyphs": (_glyph, 0.3),
    "lines": (_lines, 0.15),
    "counts": (_count, 0.15),
    "colours": (_colour, 0.08),
    "textures": (_texture, 0.07),
}
"""For each kind of scene the function that draws it, and its share of all scenes."""


def draw_scene(rng: Rng) -> Scene:
    """Draw one scene of a random kind."""
    names = list(KINDS)
    kind = names[rng.choice(len(names), p=[share for _, share in KINDS.values()])]
    return KINDS[kind][0](rng)
