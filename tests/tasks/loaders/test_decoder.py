"""The one decoder of image files, on files of two pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from matu_flwr.tasks.loaders.decoder import read_image

ORIENTATION = 0x0112  # EXIF: how the camera was held


def held_sideways():
    """One row of red and blue that was photographed with the camera turned: upright it is a column, blue on top."""
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    stream.seek(0)
    return stream


@pytest.mark.parametrize(
    ("upright", "pixels"), [(True, [[[0, 0, 255]], [[255, 0, 0]]]), (False, [[[255, 0, 0], [0, 0, 255]]])]
)
def test_photographs_are_turned_where_that_is_asked_for(upright, pixels):
    assert np.asarray(read_image(held_sideways(), upright=upright)).tolist() == pixels


@pytest.mark.parametrize("upright", [True, False])
def test_a_transparent_palette_and_grey_become_rgb(tmp_path, upright):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=b"\xff\x00")
    Image.new("L", (1, 1), 7).save(tmp_path / "b.png")
    assert np.asarray(read_image(tmp_path / "a.png", upright=upright)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert np.asarray(read_image(str(tmp_path / "b.png"), upright=upright)).tolist() == [[[7, 7, 7]]]
