"""Turns image files and opened images into square arrays of pixels. All loaders use this module.

torchvision's own data sets open their files themselves. The images that they give go through `decode` like all others.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from matu_flwr.tasks.loaders.sources import Images, Indices


def read_image(file: str | Path | BinaryIO, *, upright: bool = True) -> Image.Image:
    """Decode one image file to RGB.

    Parameters
    ----------
    file : path or binary stream
        An image in any format that PIL reads.
    upright : bool
        Whether to turn a photograph upright, by the orientation that the camera stored with it. Photographs in folders
        are turned. Images in published tables are not, so that their pixels stay those of earlier runs.
    """
    with Image.open(file) as image:
        turned = ImageOps.exif_transpose(image) if upright else image
        return to_rgb(turned)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image of any mode to RGB."""
    # A palette may have transparent colours. PIL wants such an image as RGBA before it becomes RGB.
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def rgb_of_array(array: npt.NDArray[Any], *, unit: bool | None = None) -> Image.Image:
    """Make an RGB picture of an array (H, W), or (H, W, C) with C = 1, 3 or 4.

    Levels are 0 to 255; floats 0 to 1 where `unit` says so, or where none is larger.
    """
    scale = 255 if array.dtype.kind == "f" and (array.max() <= 1 if unit is None else unit) else 1
    levels = np.clip(np.rint(array * scale), 0, 255).astype(np.uint8)
    return to_rgb(Image.fromarray(levels[..., 0] if levels.ndim == 3 and levels.shape[-1] == 1 else levels))


def square_rgb(image: Image.Image, size: int) -> Images:
    """Cut the middle square out of an image and resize it: uint8 (size, size, 3)."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    # Lanczos avoids aliasing when an image shrinks. When it grows, Lanczos adds bright and dark rims along edges, and
    # bicubic adds weaker ones.
    method = Image.Resampling.LANCZOS if min(image.size) > size else Image.Resampling.BICUBIC
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=method)
    return np.asarray(image, dtype=np.uint8)


def decode(open_image: Callable[[int], Image.Image], indices: Indices, size: int) -> Images:
    """Open and resize the images at `indices`, one after the other: uint8 (n, size, size, 3)."""
    images = np.empty((len(indices), size, size, 3), dtype=np.uint8)
    for place, index in enumerate(indices):
        images[place] = square_rgb(open_image(int(index)), size)
    return images
