"""Turns image files, opened images and arrays into square RGB pictures of 8 bits. All loaders use this module.

The same content gives the same picture, whichever loader reads it:

- The orientation that a camera stored is applied. Damaged EXIF data are ignored.
- What is transparent is laid on white.
- Several frames or pages: the first one.
- Grey of more than 8 bits, and floats, become 8 bits by `eight_bits`, picture by picture. Of colours of 16 bits PIL
  keeps the upper 8.
- CMYK, YCbCr, HSV and palettes are converted by PIL, without colour profiles. LAB is converted as sRGB.
- The middle square is cut out and resized.
- A picture of more than `MOST_PIXELS` is refused before it is decoded.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from matu_flwr.tasks.errors import TaskError
from matu_flwr.tasks.loaders.sources import BrokenImageError, Images, Indices, Labels, Oddities, Request, Split, reading

VERSION = 1
"""Raise this number when the same file would give another picture: the cache's key has it."""

MOST_PIXELS = 89_478_485
"""Largest number of pixels of a picture: a quarter of a GiB as RGB. It is PIL's own limit."""

# The formats of PIL that hold pictures. Others hold documents (PDF, and EPS, for which PIL starts Ghostscript), films,
# measurements or parts of games.
_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "SUN",
    "TGA", "TIFF", "WEBP", "XBM", "XPM",
)  # fmt: skip
# Formats that share the endings of another one.
_ALIASES = {"MPO": "JPEG", "DIB": "BMP"}

_TOO_LARGE = f"it has more than the {MOST_PIXELS:,} pixels that are decoded at most: shrink it"
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags


@functools.cache
def endings() -> dict[str, str]:
    """The endings of file names that are taken for images, in lower case with the dot, and PIL's name of the format."""
    return {end: form for end, form in Image.registered_extensions().items() if form in _formats()}


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that PIL reads as it was built."""
    Image.init()
    return tuple(form for form in _FORMATS if form in Image.OPEN)


def read_image(file: str | Path | BinaryIO, oddities: Oddities | None = None, where: str = "") -> Image.Image:
    """Decode one image file to RGB. Its orientation, transparency and depth are dealt with as the module's text says.

    Parameters
    ----------
    file : path or binary stream
        An image in one of the formats that `endings` lists. Its content decides, not its name.
    oddities : Oddities, optional
        Is told of several frames, and of a name that promises another format.
    where : str
        The file, for `oddities`.

    Raises
    ------
    ValueError, OSError, and others of PIL
        It is not an image, it is damaged or too large, or it holds NaN. See `matu_flwr.tasks.loaders.sources.reading`.
    """
    if isinstance(file, str | Path):
        with Path(file).open("rb") as stream:
            return read_image(stream, oddities, where)
    head = file.read(40)
    file.seek(0)
    if not head:
        raise ValueError("it is empty")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError("it is a pointer of Git LFS and not the file itself: run `git lfs pull`")
    with warnings.catch_warnings():
        # PIL warns of damaged EXIF data and the like. Large pictures are refused below, with their size.
        warnings.simplefilter("ignore")
        try:
            opened = Image.open(file, formats=_formats())
        except Image.DecompressionBombError:
            raise ValueError(_TOO_LARGE) from None
        except UnidentifiedImageError:
            raise UnidentifiedImageError(f"its content is not a whole file of {', '.join(_formats())}") from None
        with opened as image:
            _check_size(*image.size)
            orientation = _take_orientation(image)
            picture = _turned(to_rgb(image), orientation)
            if oddities is not None:
                _observe(image, oddities, where)
            return picture


def upright(image: Image.Image) -> Image.Image:
    """Convert an opened image to RGB by `to_rgb`, and turn it as `read_image` does. The image itself stays as it is."""
    # PIL turns a TIFF while it is loaded, and then removes the entry.
    picture = to_rgb(image)
    orientation = 1
    with suppress(Exception):  # of damaged EXIF data
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return _turned(picture, orientation if isinstance(orientation, int) else 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image of any mode to RGB; what is transparent is laid on white."""
    _check_size(*image.size)
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        levels = eight_bits(_values(image))
        # X-rays may be stored as negatives. PIL turns those of 8 bits and leaves the others.
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
            levels = 255 - levels
        return Image.fromarray(levels).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        found = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert found is not None, "not done in place"
        return found
    if not image.has_transparency_data:
        return image.convert("RGB")
    # Colours that were multiplied by their opacity have to be divided by it first.
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    layer = (image.convert(straight) if straight else image).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def rgb_of_array(array: npt.NDArray[Any], *, unit: bool | None = None) -> Image.Image:
    """Make an RGB picture of an array (H, W), or (H, W, C) with C = 1, 3 or 4, of any type that `eight_bits` takes."""
    levels = eight_bits(array, unit=unit)
    return to_rgb(Image.fromarray(levels[..., 0] if levels.ndim == 3 and levels.shape[-1] == 1 else levels))


def eight_bits(values: npt.NDArray[Any], *, unit: bool | None = None) -> npt.NDArray[np.uint8]:
    """Bring the values of one picture to 0 .. 255.

    - uint8 stays as it is. False is black, True is white.
    - Floats from 0 to 1 are multiplied by 255.
    - Numbers from 0 to 255 are rounded.
    - All others are stretched: the picture's smallest value becomes 0 and its largest 255, as programs for X-rays and
      microscopes show them. So 12 bits in a file of 16 bits keep their levels. The brightness of one picture can then
      not be compared with another's.
    - A stretched picture of one single value gets its place between 0 and 65535.

    Parameters
    ----------
    values : ndarray
        Booleans, integers or floats of any size.
    unit : bool, optional
        Whether floats lie between 0 and 1, if that is known from many pictures. By default the picture decides.

    Returns
    -------
    ndarray of uint8
        The same shape.

    Raises
    ------
    ValueError
        A value is NaN or infinite, or the type has no levels.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"its values are {values.dtype}, which are no levels of brightness")
    # Of more than 52 bits the last few are lost here, and 8 are kept in the end.
    levels = values.astype(np.float64)
    low, high = levels.min(), levels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it holds NaN or infinity, which are no levels of brightness")
    if values.dtype.kind == "f" and low >= 0 and high <= 1 and unit is not False:
        levels *= 255
    elif low < 0 or high > 255:
        # Halves, because the difference of two floats may be too large for one.
        span = high / 2 - low / 2
        levels = (levels / 2 - low / 2) / span * 255 if span > 0 else levels / 65535 * 255
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def square_rgb(image: Image.Image, size: int) -> Images:
    """Cut the middle square out of an RGB image and resize it: uint8 (size, size, 3)."""
    # Lanczos avoids aliasing when an image shrinks. When it grows, Lanczos adds bright and dark rims along edges, and
    # bicubic adds weaker ones.
    method = Image.Resampling.LANCZOS if min(image.size) > size else Image.Resampling.BICUBIC
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=method)
    return np.asarray(image, dtype=np.uint8)


def pictures(
    request: Request, labels: Labels, where: Callable[[int], str], opened: Callable[[int], Image.Image]
) -> Split:
    """Make a split whose images are opened one after the other when they are needed.

    Parameters
    ----------
    request : Request
        The task, for errors.
    labels : ndarray of int64, shape (N,)
        The labels.
    where : callable
        Gives the place of an image, for errors: its path, or the table and the row.
    opened : callable
        Gives the image at an index, by `read_image`, `to_rgb` or `rgb_of_array`.

    Returns
    -------
    Split
        If an image cannot be decoded, it raises `BrokenImageError`.
    """

    def images(indices: Indices, size: int) -> Images:
        out = np.empty((len(indices), size, size, 3), dtype=np.uint8)
        for place, index in enumerate(indices):
            with reading_image(request, where(int(index))):
                out[place] = square_rgb(opened(int(index)), size)
        return out

    return Split(labels, images)


@contextmanager
def reading_image(request: Request, where: str) -> Iterator[None]:
    """Turn all errors of decoding the image at `where` into a `BrokenImageError`; see `reading`."""
    advice = "replace it by an undamaged copy, or set the option skip-broken: true to leave such images out"
    try:
        with reading(request, where, "an image", advice):
            yield
    # A loader of torchvision knows the file, and `pictures` only the place in the list.
    except BrokenImageError:
        raise
    except TaskError as error:
        raise BrokenImageError(str(error), where) from error.__cause__


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"it has {width} x {height} pixels")
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height}: {_TOO_LARGE}")


def _take_orientation(image: Image.Image) -> int:
    """Read how the camera was held, 1 to 8, and remove all EXIF data; 1 if it is not known."""
    # A damaged entry raises whatever its parser stumbles over. It says nothing about the pixels.
    with suppress(Exception):
        exif = image.getexif()
        found = exif.get(ExifTags.Base.Orientation, 1)
        # PIL turns TIFF files itself while it loads them, and fails there if it cannot write the other entries again.
        for tag in list(exif):
            del exif[tag]
        return found if isinstance(found, int) else 1
    return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image upright."""
    # Nothing of the file's metadata is kept, so that PIL has nothing to write again.
    image.info = {}
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def _values(image: Image.Image) -> npt.NDArray[Any]:
    """The grey values of an image of mode I, I;16 or F, as they are in the file."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    # PIL reads unsigned numbers of 32 bits as signed ones.
    if image.mode == "I" and tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,):
        return values.view(np.uint32)
    return values


def _observe(image: Image.Image, oddities: Oddities, where: str) -> None:
    """Tell of what a person would not expect of this file."""
    # Looking for a second frame reads on in the file, and may stumble over what is behind the first.
    with suppress(Exception):
        if getattr(image, "is_animated", False):
            oddities.add("files of several frames or pages, of which the first is used", where)
    promised = endings().get(Path(where).suffix.lower())
    form = str(image.format)
    if promised and _ALIASES.get(form, form) != _ALIASES.get(promised, promised):
        oddities.add("files whose content is of another format than their name says, read as what they are", where)
