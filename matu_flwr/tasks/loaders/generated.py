"""Image tasks made of numbers: no file, no network, the same pixels on every machine.

Five families of two styles each. The styles of a family share their classes and the order of these, and differ in how
the class is drawn: related tasks, whose fine-tuning should agree. Nuisances (place, size, colours, a cloudy backdrop,
noise) are drawn independently of the class. Scikit-learn's handwritten digits are the partner of the printed ones.

Every family is one function of (random generator, class of each image, image side) to images in [0, 1]; `draw_images`
adds noise and rounds to bytes. Arithmetic is in float64, so that the last bits, which differ between machines,
do not reach the bytes.
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
"""To be raised when any pixel changes: decoded caches of older versions are then left aside."""

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Rng = np.random.Generator
Render = Callable[[Rng, Labels, int], Floats]  # generator, (n,) labels, S -> (n, S, S, 3) in [0, 1]

OVERSAMPLING = 4  # glyphs and shapes are drawn this much larger, then averaged down


@dataclass(frozen=True)
class Family:
    """A kind of task.

    Attributes
    ----------
    classes : tuple of str
        Class names, the same for every style.
    styles : dict of str to callable
        How the classes are drawn.
    """

    classes: tuple[str, ...]
    styles: dict[str, Render]


def draw_labels(family: Family, count: int, rng: Rng) -> Labels:
    """Labels of `count` images, (count,) int64: all classes equally often, in random order."""
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
        Source of all randomness; one per task and split.

    Returns
    -------
    ndarray of uint8, shape (n, S, S, 3)
        RGB.
    """
    images = family.styles[style](rng, labels, size)
    images = images + rng.normal(size=images.shape) * _column(rng, 0.01, 0.05, len(labels))[..., None]  # camera noise
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


# --- what the families share ------------------------------------------------------------------------------------------


def _grid(size: int) -> tuple[Floats, Floats]:
    """Return x and y of the pixel centres in the unit square, each (S, S)."""
    centres = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    return x, y


def _column(rng: Rng, low: float, high: float, count: int) -> Floats:
    """One number per image, (n, 1, 1)."""
    return rng.uniform(low, high, size=(count, 1, 1))


def _clouds(rng: Rng, count: int, size: int, cells: int = 4) -> Floats:
    """Smooth noise in [-1, 1], (n, S, S): a coarse random grid, interpolated."""
    knots = np.linspace(0, 1, cells)
    weights = np.stack(
        [np.interp((np.arange(size) + 0.5) / size, knots, row) for row in np.eye(cells)], axis=1
    )  # (S, 4)
    smooth: Floats = weights @ rng.uniform(-1, 1, size=(count, cells, cells)) @ weights.T
    return smooth


def _scene(rng: Rng, mask: Floats) -> Floats:
    """Paint a light figure on a dark cloudy ground, (n, S, S, 3); `mask` (n, S, S): share of a pixel that it covers."""
    count, size, _ = mask.shape
    ground = rng.uniform(0.05, 0.3, size=(count, 1, 1, 3)) + 0.08 * _clouds(rng, count, size)[..., None]
    figure = rng.uniform(0.65, 1.0, size=(count, 1, 1, 3))
    painted: Floats = ground + mask[..., None] * (figure - ground)
    return painted


def _drawn(count: int, size: int, draw: Callable[[int, int], Image.Image]) -> Floats:
    """Masks (n, S, S) in [0, 1] from ``draw(index, canvas side)``, an oversampled grey image each."""
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
    """One of the TrueType fonts that Matplotlib ships, after a look whether it has all `characters`."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    if not path.is_file():
        raise TaskError(f"generated tasks: font {path} is missing, expected among Matplotlib's own files: reinstall it")
    charmap = FT2Font(str(path)).get_charmap()
    if missing := [character for character in characters if ord(character) not in charmap]:
        raise TaskError(f"generated tasks: font {path} has no glyph for {missing}: reinstall Matplotlib")
    return ImageFont.truetype(str(path), pixels, layout_engine=ImageFont.Layout.BASIC)


def _glyph_masks(rng: Rng, labels: Labels, size: int, *, characters: str, fonts: Sequence[str]) -> Floats:
    """One character per mask (n, S, S): any of the fonts, size, place, up to 8 degrees of tilt."""
    count = len(labels)
    kinds, heights = rng.integers(len(fonts), size=count), rng.uniform(0.8, 1.0, size=count)
    shifts, tilts = rng.uniform(-0.04, 0.04, size=(count, 2)), rng.uniform(-8, 8, size=count)

    def draw(index: int, side: int) -> Image.Image:
        canvas = Image.new("L", (side, side))
        # sizes in steps of four pixels, so that a few fonts are opened, not one per image
        font = matplotlib_font(fonts[kinds[index]], max(8, round(heights[index] * side / 4) * 4), characters)
        character = characters[labels[index]]
        left, top, right, bottom = font.getbbox(character)
        centre = side * (0.5 + shifts[index])
        corner = (centre[0] - (left + right) / 2, centre[1] - (top + bottom) / 2)
        ImageDraw.Draw(canvas).text(corner, character, fill=255, font=font)
        return canvas.rotate(tilts[index], Image.Resampling.BILINEAR)

    return _drawn(count, size, draw)


def _glyphs(rng: Rng, labels: Labels, size: int, *, characters: str, fonts: Sequence[str]) -> Floats:
    """One light character on a dark cloudy ground."""
    return _scene(rng, _glyph_masks(rng, labels, size, characters=characters, fonts=fonts))


def _scans(rng: Rng, labels: Labels, size: int, *, characters: str, fonts: Sequence[str]) -> Floats:
    """One white character on black at 8 x 8 pixels, enlarged: what scikit-learn's handwritten digits look like."""
    masks = _glyph_masks(rng, labels, 8, characters=characters, fonts=fonts)
    masks = np.clip(1.6 * masks, 0, 1)
    scans = [Image.fromarray(np.round(mask * 255).astype(np.uint8)).resize((size, size)) for mask in masks]
    return np.stack([np.asarray(scan, dtype=np.float64) for scan in scans])[..., None].repeat(3, axis=3) / 255


# --- shapes -----------------------------------------------------------------------------------------------------------


def _regular(corners: int, inner: float = 1.0) -> Floats:
    """Corners of a regular polygon, first one up, (corners, 2); every second one at radius `inner`."""
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
}  # (corners, 2) each, within the unit circle, y downwards


def _shapes(rng: Rng, labels: Labels, size: int, *, filled: bool) -> Floats:
    """One figure per image, turned by up to 10 degrees and stretched a little."""
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
            # two corners past the start, so that the last joint is drawn like the others
            pen.line([*points, *points[:2]], fill=255, width=max(1, round(widths[index] * side)), joint="curve")
        return canvas

    return _scene(rng, _drawn(count, size, draw))


# --- orientations -----------------------------------------------------------------------------------------------------

_DIRECTIONS = 8


def _angles(rng: Rng, labels: Labels) -> Floats:
    """Radians, (n, 1, 1): the class's direction, off by up to 9 of the 22.5 degrees between two classes."""
    angle: Floats = np.deg2rad(labels * 180 / _DIRECTIONS + rng.uniform(-9, 9, size=len(labels)))
    return angle[:, None, None]


def _gratings(rng: Rng, labels: Labels, size: int, *, edges: float) -> Floats:
    """A wave over the whole image whose crests run in the class's direction; `edges`: 0 a sine, 1 sharp stripes."""
    count = len(labels)
    angle = _angles(rng, labels)
    x, y = _grid(size)
    across = x * np.sin(angle) + y * np.cos(angle)  # (n, S, S), constant along a crest
    wave = np.sin(2 * np.pi * (_column(rng, 2, 6, count) * across + _column(rng, 0, 1, count)))
    wave = np.clip(wave * (1 + 4 * edges), -1, 1)
    return _scene(rng, 0.5 + _column(rng, 0.1, 0.45, count) * wave)


def _inside(distance: Floats, size: int) -> Floats:
    """Share of a pixel that lies within a figure, from the signed distance to its edge (in image sides)."""
    return np.clip(0.5 - distance * size, 0, 1)


# --- colours ----------------------------------------------------------------------------------------------------------

_HUES = ("red", "orange", "yellow", "green", "turquoise", "blue", "violet", "pink")
_DEGREES = np.array([0, 28, 55, 115, 170, 215, 265, 320])


def _rgb(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    """Colour from hue (1 = full circle), saturation and value; the result has one more axis of length 3."""
    position = (np.array([5, 3, 1]) + 6 * hue[..., None]) % 6
    colour: Floats = value[..., None] * (1 - saturation[..., None] * np.clip(np.minimum(position, 4 - position), 0, 1))
    return colour


def _hues(rng: Rng, labels: Labels) -> Floats:
    """Hue (1 = full circle), (n, 1, 1): the class's own, off by about 11 degrees."""
    hue: Floats = (_DEGREES[labels] + rng.normal(0, 11, size=len(labels))) / 360
    return hue[:, None, None]


def _patches(rng: Rng, labels: Labels, size: int) -> Floats:
    """Cloudy surfaces of one hue."""
    count = len(labels)
    saturation = _column(rng, 0.35, 0.8, count) + 0.2 * _clouds(rng, count, size)
    value = _column(rng, 0.45, 0.85, count) + 0.25 * _clouds(rng, count, size, cells=7)
    hue = _hues(rng, labels) + 0.02 * _clouds(rng, count, size)
    return _rgb(hue, np.clip(saturation, 0.15, 1), np.clip(value, 0.1, 1))


def _objects(rng: Rng, labels: Labels, size: int) -> Floats:
    """A coloured disc or square before a nearly grey ground with a second, grey one."""
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
    """Mask (n, S, S) of a disc or a square around the origin of `dx`, `dy`."""
    count = len(dx)
    disc, square = np.hypot(dx, dy), np.maximum(np.abs(dx), np.abs(dy)) * 1.13  # of about equal area
    return _inside(np.where(_column(rng, 0, 1, count) < 0.5, disc, square) - _column(rng, 0.13, 0.25, count), size)


# --- counts -----------------------------------------------------------------------------------------------------------

_MOST = 6


def _counted(rng: Rng, labels: Labels, size: int, *, square: bool) -> Floats:
    """``label + 1`` equal marks, each in a cell of its own of a 3 x 3 grid that is shifted as a whole."""
    count = len(labels)
    x, y = _grid(size)
    cells = rng.permuted(np.tile(np.arange(9), (count, 1)), axis=1)[:, :_MOST]  # (n, 6), different within an image
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
