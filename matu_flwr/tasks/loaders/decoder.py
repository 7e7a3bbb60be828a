"""From image files and opened images to squares of pixels: what every loader decodes with.

Only torchvision's own data sets open their files themselves; what they give goes through `decode` like the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from matu_flwr.tasks.loaders.sources import Images, Indices


def read_image(file: str | Path | BinaryIO, *, upright: bool) -> Image.Image:
    """Decode one image file to RGB; palette images go by way of RGBA, because their palette may be transparent.

    Parameters
    ----------
    file : path or binary stream
        In any format that PIL reads.
    upright : bool
        Turn it as the camera was held, which it notes beside the pixels. Photographs in folders are turned; rows of a
        published table are taken as they are, so that their pixels are those of every run before.
    """
    with Image.open(file) as image:
        turned = ImageOps.exif_transpose(image) if upright else image
        return (turned.convert("RGBA") if turned.mode == "P" else turned).convert("RGB")


def square_rgb(image: Image.Image, size: int) -> Images:
    """Cut the middle square out of `image` and resize it with an antialiasing filter: uint8 (size, size, 3)."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    # Lanczos rings when it enlarges; bicubic does so less, and shrinking is where aliasing matters
    method = Image.Resampling.LANCZOS if min(image.size) > size else Image.Resampling.BICUBIC
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=method)
    return np.asarray(image, dtype=np.uint8)


def decode(open_image: Callable[[int], Image.Image], indices: Indices, size: int) -> Images:
    """Decode one image after the other: uint8 (n, size, size, 3)."""
    images = np.empty((len(indices), size, size, 3), dtype=np.uint8)
    for place, index in enumerate(indices):
        images[place] = square_rgb(open_image(int(index)), size)
    return images
