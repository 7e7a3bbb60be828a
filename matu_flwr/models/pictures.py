"""Whatever a caller has for images, as the array of pixels that a fine-tuned model was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from matu_flwr.tasks.loaders.decoder import read_image, rgb_of_array, square_rgb, upright
from matu_flwr.texts import Brief, short

# Lists in lists that are looked into. A list may hold itself.
_DEEPEST = 4

COLOURS = (1, 3, 4)
WANTED = (
    "expected images: a path, a picture of PIL, an array (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 colours, a list "
    "of these, or a batch (B, H, W, C) or (B, C, H, W); of uint8, or of floats in [0, 1] or [0, 255]"
)


class PictureError(Brief, ValueError):
    """What was given for images cannot be read as such; the text says what was found and what is wanted."""


def as_batch(images: Any, size: int) -> Tensor:
    """Turn images of any form into (B, size, size, 3) uint8 RGB, as a task's images were made for training.

    A path, a picture of PIL, an array of NumPy or a tensor; one image, a batch, or a list of images that need not be
    alike. The middle square of an image is cut out and resized. Floats of one array whose largest is at most 1 are
    taken to be in [0, 1], others to be in [0, 255]. An array (3, H, W) is one picture and not three grey ones.

    Raises
    ------
    PictureError
        It is something else, it was normalised already, or an image cannot be read.
    """
    if (
        isinstance(images, Tensor)
        and not images.is_meta
        and images.dtype == torch.uint8
        and images.shape[1:] == (size, size, 3)
    ):
        return images.detach()
    squares = [square_rgb(picture, size) for picture in _pictures(images, "images")]
    if not squares:
        return torch.empty(0, size, size, 3, dtype=torch.uint8)
    return torch.from_numpy(np.stack(squares))


def _pictures(images: Any, what: str, level: int = 0) -> Iterable[Image.Image]:
    """The images one after the other, as RGB."""
    if isinstance(images, list | tuple):
        if level == _DEEPEST:
            raise PictureError(f"{what}: found more than {_DEEPEST} lists in each other, {WANTED}")
        for number, image in enumerate(images):
            yield from _pictures(image, f"image {number}", level + 1)
    elif isinstance(images, str | Path):
        yield _read(Path(images), what)
    elif isinstance(images, Image.Image):
        yield _converted(lambda: upright(images), what)
    elif isinstance(images, Tensor) or hasattr(images, "__array__"):
        yield from _of_array(_numbers(images, what), what)
    else:
        raise PictureError(f"{what}: found {short(images)}, {WANTED}")


def _read(path: Path, what: str) -> Image.Image:
    def opened() -> Image.Image:
        if path.exists() and not path.is_file():
            raise ValueError("it is a folder, a pipe or a device")
        return read_image(path)

    return _converted(opened, f"{what}, {path}")


def _converted(make: Any, what: str) -> Image.Image:
    try:
        picture: Image.Image = make()
    # PIL raises many kinds of exceptions for damaged images.
    except Exception as error:
        raise PictureError(f"{what} cannot be read ({type(error).__name__}: {error}), expected an image") from error
    return picture


def _numbers(images: Any, what: str) -> NDArray[Any]:
    """An array of uint8, of other whole numbers, or of float32."""
    if isinstance(images, Tensor):
        if images.layout != torch.strided or images.is_meta or images.is_quantized:
            kind = f"{images.dtype}, layout {images.layout}, on {images.device}"
            raise PictureError(f"{what}: found a tensor of {kind}, {WANTED}")
        plain = images.detach().resolve_neg().cpu()
        # NumPy has no bfloat16.
        images = (plain.float() if plain.is_floating_point() else plain).numpy()
    if isinstance(images, np.ma.MaskedArray):
        raise PictureError(f"{what}: found a masked array, expected one without gaps: fill them with .filled()")
    array = np.asarray(images)
    if array.dtype.kind not in "uif":
        raise PictureError(f"{what}: found an array of {array.dtype}, {WANTED}")
    # Big-endian numbers, and floats of 16 and 128 bits, which PIL does not know.
    plain_type = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    with np.errstate(over="ignore"):
        return array.astype(plain_type, copy=False)


def _of_array(array: NDArray[Any], what: str) -> Iterable[Image.Image]:
    """The images of an array of 2, 3 or 4 dimensions."""
    if array.ndim in (3, 4) and array.shape[-1] not in COLOURS and array.shape[-3] in COLOURS:
        array = np.moveaxis(array, -3, -1)
    if array.ndim not in (2, 3, 4) or (array.ndim > 2 and array.shape[-1] not in COLOURS):
        raise PictureError(f"{what}: found an array of shape {array.shape}, {WANTED}")
    if array.ndim < 4:
        array = array[None]
    if array.size == 0 and len(array):
        raise PictureError(f"{what}: found an array of shape {array.shape}, which has no pixels, {WANTED}")
    _check_levels(array, what)
    unit = bool(array.size) and float(array.max()) <= 1
    for number, image in enumerate(array):
        yield _converted(lambda image=image: rgb_of_array(np.ascontiguousarray(image), unit=unit), f"{what} [{number}]")


def _check_levels(array: NDArray[Any], what: str) -> None:
    if array.dtype == np.uint8 or not array.size:
        return
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise PictureError(f"{what}: found NaN or infinity among the pixels, {WANTED}")
    if low < 0 or high > 255:
        raise PictureError(
            f"{what}: found pixels from {low:g} to {high:g}, expected levels in [0, 255], or in [0, 1]; give them "
            "before normalisation, which is done here"
        )
