"""Draws image tasks from random numbers. They need no file and no network, and have the same pixels on every machine.

Five families have two styles each. The styles of a family have the same classes in the same order, but draw them
differently. So they are related tasks, whose fine-tuning should agree. A sixth family, the printed digits, has one
style: scikit-learn's handwritten digits are its partner. Place, size, colours, a cloudy background and noise do not
depend on the class.

A style is a function of a random generator, the class of each image and the image side. It returns images in [0, 1].
`draw_images` adds noise and rounds to bytes. The arithmetic is in float64, whose last bits differ between machines, but
rounding to bytes removes the difference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from matu_flwr.tasks.errors import TaskError

VERSION = 2
"""Raise this number when any pixel changes. Images in the cache from older versions are then not used any more."""

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Rng = np.random.Generator
Render = Callable[[Rng, Labels, int], Floats]
"""Random generator, (n,) labels and image side S to images (n, S, S, 3) in [0, 1]."""

# Characters and shapes are drawn this many times larger and averaged down, for smooth edges.
OVERSAMPLING = 4


@dataclass(frozen=True)
class Family:
    """A kind of task, with one or two ways of drawing it.

    Attributes
    ----------
    classes : tuple of str
        Class names, the same for every style.
    styles : dict of str to callable
        For each style the function that draws it.
    """

    classes: tuple[str, ...]
    styles: dict[str, Render]


def draw_labels(family: Family, count: int, rng: Rng) -> Labels:
    """Labels of `count` images, (count,) int64, in random order. All classes occur equally often, or nearly so."""
    return rng.permutation(np.arange(count, dtype=np.int64) % len(family.classes))


def draw_images(family: Family, style: str, labels: Labels, size: int, rng: Rng) -> npt.NDArray[np.uint8]:
    """Draw one image for each label.

    Parameters
    ----------
    family : Family
        An entry of `FAMILIES`.
    style : str
        A key of ``family.styles``.
    labels : ndarray of int64, shape (n,)
        Positions in ``family.classes``.
    size : int
        Side of the images in pixels, S.
    rng : numpy.random.Generator
        Source of all randomness; each task and split has its own.

    Returns
    -------
    ndarray of uint8, shape (n, S, S, 3)
        RGB.
    """
    images = family.styles[style](rng, labels, size)
    # Camera noise, stronger in some images than in others.
    images = images + rng.normal(size=images.shape) * _column(rng, 0.01, 0.05, len(labels))[..., None]
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


# --- what the families share ------------------------------------------------------------------------------------------


def _grid(size: int) -> tuple[Floats, Floats]:
    """Return x and y of the pixel centres in the unit square, each (S, S)."""
    centres = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    return x, y


def _column(rng: Rng, low: float, high: float, count: int) -> Floats:
    """Draw one number in [low, high] per image, (n, 1, 1)."""
    return rng.uniform(low, high, size=(count, 1, 1))


def _clouds(rng: Rng, count: int, size: int, cells: int = 4) -> Floats:
    """Smooth noise in [-1, 1], (n, S, S): a random grid of `cells` x `cells` values, interpolated."""
    knots = np.linspace(0, 1, cells)
    weights = np.stack(
        [np.interp((np.arange(size) + 0.5) / size, knots, row) for row in np.eye(cells)], axis=1
    )  # (S, cells)
    smooth: Floats = weights @ rng.uniform(-1, 1, size=(count, cells, cells)) @ weights.T
    return smooth


def _scene(rng: Rng, mask: Floats) -> Floats:
    """Paint a light figure on a dark cloudy background, (n, S, S, 3).

    `mask` (n, S, S) has the share of each pixel that the figure covers.
    """
    count, size, _ = mask.shape
    ground = rng.uniform(0.05, 0.3, size=(count, 1, 1, 3)) + 0.08 * _clouds(rng, count, size)[..., None]
    figure = rng.uniform(0.65, 1.0, size=(count, 1, 1, 3))
    painted: Floats = ground + mask[..., None] * (figure - ground)
    return painted


def _drawn(count: int, size: int, draw: Callable[[int, int], Image.Image]) -> Floats:
    """Masks (n, S, S) in [0, 1]. ``draw(index, side)`` draws each as a larger grey image, which is averaged down."""
    masks = np.empty((count, size, size))
    for index in range(count):
        masks[index] = np.asarray(draw(index, size * OVERSAMPLING).reduce(OVERSAMPLING), dtype=np.float64) / 255
    return masks


# --- glyphs: digits and letters ---------------------------------------------------------------------------------------

SERIF = ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "cmr10", "cmb10")
BOLD = ("DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Bold", "STIXGeneralBol", "cmb10")
SANS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold", "cmss10")


@functools.cache
def matplotlib_font(name: str, pixels: int, characters: str) -> ImageFont.FreeTypeFont:
    """Open one of the TrueType fonts that come with Matplotlib, and check that it has all `characters`."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    if not path.is_file():
        raise TaskError(
            f"generated tasks: font {path} is missing, expected among Matplotlib's own files: reinstall Matplotlib"
        )
    charmap = FT2Font(str(path)).get_charmap()
    if missing := [character for character in characters if ord(character) not in charmap]:
        raise TaskError(f"generated tasks: font {path} has no glyph for {missing}: reinstall Matplotlib")
    return ImageFont.truetype(str(path), pixels, layout_engine=ImageFont.Layout.BASIC)


def _glyph_masks(rng: Rng, labels: Labels, size: int, *, characters: str, fonts: Sequence[str]) -> Floats:
    """Masks (n, S, S) of one character each, in a random font, size and place, tilted by up to 8 degrees."""
    count = len(labels)
    kinds, heights = rng.integers(len(fonts), size=count), rng.uniform(0.8, 1.0, size=count)
    shifts, tilts = rng.uniform(-0.04, 0.04, size=(count, 2)), rng.uniform(-8, 8, size=count)

    def draw(index: int, side: int) -> Image.Image:
        canvas = Image.new("L", (side, side))
        # Sizes come in steps of four pixels, so that a few fonts are opened and not one for each image.
        font = matplotlib_font(fonts[kinds[index]], max(8, round(heights[index] * side / 4) * 4), characters)
        character = characters[labels[index]]
        left, top, right, bottom = font.getbbox(character)
        centre = side * (0.5 + shifts[index])
        corner = (centre[0] - (left + right) / 2, centre[1] - (top + bottom) / 2)
        ImageDraw.Draw(canvas).text(corner, character, fill=255, font=font)
        return canvas.rotate(tilts[index], Image.Resampling.BILINEAR)

    return _drawn(count, size, draw)


def _glyphs(rng: Rng, labels: Labels, size: int, *, characters: str, fonts: Sequence[str]) -> Floats:
    """Images of one light character on a dark cloudy background."""
    return _scene(rng, _glyph_masks(rng, labels, size, characters=characters, fonts=fonts))


def _scans(rng: Rng, labels: Labels, size: int, *, characters: str, fonts: Sequence[str]) -> Floats:
    """Images of one white character on black, drawn at 8 x 8 pixels and enlarged.

    This is what scikit-learn's handwritten digits look like, to which these tasks are related.
    """
    masks = _glyph_masks(rng, labels, 8, characters=characters, fonts=fonts)
    masks = np.clip(1.6 * masks, 0, 1)
    scans = [Image.fromarray(np.round(mask * 255).astype(np.uint8)).resize((size, size)) for mask in masks]
    return np.stack([np.asarray(scan, dtype=np.float64) for scan in scans])[..., None].repeat(3, axis=3) / 255


# --- shapes -----------------------------------------------------------------------------------------------------------


def _regular(corners: int, inner: float = 1.0) -> Floats:
    """Corners of a regular polygon or star, (corners, 2). The first is at the top; every second has radius `inner`."""
    angle = 2 * np.pi * np.arange(corners) / corners
    radius = np.where(np.arange(corners) % 2, inner, 1.0)
    corner: Floats = radius[:, None] * np.stack([np.sin(angle), -np.cos(angle)], axis=1)
    return corner


OUTLINES: dict[str, Floats] = {
    "circle": _regular(40),
    "triangle": _regular(3),
    "square": 0.8 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]),
    "pentagon": _regular(5),
    "star": _regular(10, inner=0.42),
    "cross": 0.33
    * np.array(
        [[-1, -3], [1, -3], [1, -1], [3, -1], [3, 1], [1, 1], [1, 3], [-1, 3], [-1, 1], [-3, 1], [-3, -1], [-1, -1]]
    ),
    "arrow": np.array([[0, -1], [0.8, 0], [0.35, 0], [0.35, 1], [-0.35, 1], [-0.35, 0], [-0.8, 0]]),
    "half-disc": _regular(40)[:21] * [1.3, 1.0] - [0.5, 0.0],
}
"""Corners of each shape, (corners, 2), within the unit circle. The second coordinate runs downwards."""


def _shapes(rng: Rng, labels: Labels, size: int, *, filled: bool) -> Floats:
    """Images of one shape each, turned by up to 10 degrees and stretched a little."""
    count = len(labels)
    outlines = list(OUTLINES.values())
    radii, stretch = rng.uniform(0.3, 0.42, size=count), rng.uniform(0.9, 1.1, size=(count, 2))
    turns, centres = np.deg2rad(rng.uniform(-10, 10, size=count)), rng.uniform(0.46, 0.54, size=(count, 2))
    widths = rng.uniform(0.08, 0.12, size=count)

    def draw(index: int, side: int) -> Image.Image:
        canvas = Image.new("L", (side, side))
        cosine, sine = np.cos(turns[index]), np.sin(turns[index])
        corners = outlines[labels[index]] * stretch[index] @ np.array([[cosine, sine], [-sine, cosine]])
        points = [tuple(point) for point in (side * (centres[index] + radii[index] * corners)).tolist()]
        pen = ImageDraw.Draw(canvas)
        if filled:
            pen.polygon(points, fill=255)
        else:
            # The line goes on to the second corner, so that the joint at the first corner is drawn like the others.
            pen.line([*points, *points[:2]], fill=255, width=max(1, round(widths[index] * side)), joint="curve")
        return canvas

    return _scene(rng, _drawn(count, size, draw))


# --- orientations -----------------------------------------------------------------------------------------------------

_DIRECTIONS = 8


def _angles(rng: Rng, labels: Labels) -> Floats:
    """The direction of each image in radians, (n, 1, 1). It differs by up to 9 degrees from its class's direction.

    Two neighbouring classes are 22.5 degrees apart, so directions of two classes do not overlap.
    """
    angle: Floats = np.deg2rad(labels * 180 / _DIRECTIONS + rng.uniform(-9, 9, size=len(labels)))
    return angle[:, None, None]


def _gratings(rng: Rng, labels: Labels, size: int, *, edges: float) -> Floats:
    """Images of waves whose crests run in the class's direction: sines with `edges` 0, sharp stripes with 1."""
    count = len(labels)
    angle = _angles(rng, labels)
    x, y = _grid(size)
    across = x * np.sin(angle) + y * np.cos(angle)  # (n, S, S), constant along a crest
    wave = np.sin(2 * np.pi * (_column(rng, 2, 6, count) * across + _column(rng, 0, 1, count)))
    wave = np.clip(wave * (1 + 4 * edges), -1, 1)
    return _scene(rng, 0.5 + _column(rng, 0.1, 0.45, count) * wave)


def _inside(distance: Floats, size: int) -> Floats:
    """Share of each pixel that lies within a figure.

    `distance` is the pixel's distance to the figure's edge, in image sides, and is negative inside.
    """
    return np.clip(0.5 - distance * size, 0, 1)


# --- colours ----------------------------------------------------------------------------------------------------------

_HUES = ("red", "orange", "yellow", "green", "turquoise", "blue", "violet", "pink")
_DEGREES = np.array([0, 28, 55, 115, 170, 215, 265, 320])


def _rgb(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    """RGB colours from hue (1 = full circle), saturation and value. The result has one more axis, of length 3."""
    position = (np.array([5, 3, 1]) + 6 * hue[..., None]) % 6
    colour: Floats = value[..., None] * (1 - saturation[..., None] * np.clip(np.minimum(position, 4 - position), 0, 1))
    return colour


def _hues(rng: Rng, labels: Labels) -> Floats:
    """The hue of each image, (n, 1, 1), with 1 for the full circle. It differs by about 11 degrees from its class's."""
    hue: Floats = (_DEGREES[labels] + rng.normal(0, 11, size=len(labels))) / 360
    return hue[:, None, None]


def _patches(rng: Rng, labels: Labels, size: int) -> Floats:
    """Images of cloudy surfaces in one hue."""
    count = len(labels)
    saturation = _column(rng, 0.35, 0.8, count) + 0.2 * _clouds(rng, count, size)
    value = _column(rng, 0.45, 0.85, count) + 0.25 * _clouds(rng, count, size, cells=7)
    hue = _hues(rng, labels) + 0.02 * _clouds(rng, count, size)
    return _rgb(hue, np.clip(saturation, 0.15, 1), np.clip(value, 0.1, 1))


def _objects(rng: Rng, labels: Labels, size: int) -> Floats:
    """Images of a coloured disc or square, with a second, grey one behind it, on a nearly grey background."""
    count = len(labels)
    x, y = _grid(size)
    images = _rgb(_column(rng, 0, 1, count), _column(rng, 0, 0.25, count), 0.5 + 0.4 * _clouds(rng, count, size))
    grey = np.repeat(_column(rng, 0.1, 0.9, count)[..., None], 3, axis=-1)
    hue = _rgb(_hues(rng, labels), _column(rng, 0.45, 0.9, count), _column(rng, 0.45, 0.95, count))
    for colour in (grey, hue):
        mask = _blob(rng, x - _column(rng, 0.3, 0.7, count), y - _column(rng, 0.3, 0.7, count), size)[..., None]
        images = images + mask * (colour - images)
    return images


def _blob(rng: Rng, dx: Floats, dy: Floats, size: int) -> Floats:
    """Masks (n, S, S) of a disc or a square whose centre is where `dx` and `dy` are 0."""
    count = len(dx)
    # 1.13 = 2 / √π gives a square the area of the disc.
    disc, square = np.hypot(dx, dy), np.maximum(np.abs(dx), np.abs(dy)) * 1.13
    return _inside(np.where(_column(rng, 0, 1, count) < 0.5, disc, square) - _column(rng, 0.13, 0.25, count), size)


# --- counts -----------------------------------------------------------------------------------------------------------

_MOST = 6


def _counted(rng: Rng, labels: Labels, size: int, *, square: bool) -> Floats:
    """Images of ``label + 1`` equal marks. Each is in its own cell of a 3 x 3 grid, and the whole grid is shifted."""
    count = len(labels)
    x, y = _grid(size)
    # (n, 6): the cells of an image's marks, all different.
    cells = rng.permuted(np.tile(np.arange(9), (count, 1)), axis=1)[:, :_MOST]
    pitch = 0.3
    shift_x, shift_y = _column(rng, -0.04, 0.04, count), _column(rng, -0.04, 0.04, count)
    radius = _column(rng, 0.08, 0.1, count)
    mask = np.zeros((count, size, size))
    for mark in range(_MOST):
        column, row = (cells[:, mark] % 3)[:, None, None] - 1, (cells[:, mark] // 3)[:, None, None] - 1
        dx = x - 0.5 - pitch * column - shift_x - _column(rng, -0.04, 0.04, count)
        dy = y - 0.5 - pitch * row - shift_y - _column(rng, -0.04, 0.04, count)
        distance = np.maximum(np.abs(dx), np.abs(dy)) if square else np.hypot(dx, dy)
        mask = np.maximum(mask, _inside(distance - radius, size) * (labels >= mark)[:, None, None])
    return _scene(rng, mask)


# --- the registry -----------------------------------------------------------------------------------------------------

_DIGITS, _LETTERS = "0123456789", "ABCDEFGHKMRS"

FAMILIES: dict[str, Family] = {
    "digits": Family(tuple(_DIGITS), {"printed": functools.partial(_scans, characters=_DIGITS, fonts=BOLD)}),
    "letters": Family(
        tuple(_LETTERS),
        {
            "serif": functools.partial(_glyphs, characters=_LETTERS, fonts=SERIF),
            "sans": functools.partial(_glyphs, characters=_LETTERS, fonts=SANS),
        },
    ),
    "shapes": Family(
        tuple(OUTLINES),
        {"filled": functools.partial(_shapes, filled=True), "outline": functools.partial(_shapes, filled=False)},
    ),
    "orientations": Family(
        tuple(f"{180 * index / _DIRECTIONS:g} degrees" for index in range(_DIRECTIONS)),
        {"gratings": functools.partial(_gratings, edges=0.0), "stripes": functools.partial(_gratings, edges=1.0)},
    ),
    "colours": Family(_HUES, {"patches": _patches, "objects": _objects}),
    "counts": Family(
        ("one", "two", "three", "four", "five", "six"),
        {"dots": functools.partial(_counted, square=False), "squares": functools.partial(_counted, square=True)},
    ),
}
