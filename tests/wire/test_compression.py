"""Frames and the check of magnitudes against their plain twins."""

import math

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.merging.blocks import BLOCK
from matu_flwr.wire.compression import LONG, compress, decompress
from matu_flwr.wire.reader import largest_magnitude


@given(st.binary(max_size=200), st.sampled_from(["u1", "u2", "f4"]))
def test_a_frame_holds_the_lowest_byte_of_every_value_then_the_next(data, dtype):
    width = np.dtype(dtype).itemsize
    data = data[: len(data) // width * width]
    values = np.frombuffer(data, f"<{dtype}").astype(dtype)
    frame = compress(values)
    assert zstandard.decompress(frame.tobytes()) == b"".join(data[n::width] for n in range(width))
    found = decompress(memoryview(frame.tobytes()), len(values), values.dtype)
    assert (found.dtype, found.tobytes()) == (values.dtype, values.tobytes())
    assert found.flags.writeable


def test_a_long_frame_comes_back_and_is_the_same_whoever_made_it():
    values = np.random.default_rng(0).normal(size=LONG // 2 + 3).astype(np.float32)
    before, frames = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            frames.append(compress(values).tobytes())
    finally:
        torch.set_num_threads(before)
    assert frames[0] == frames[1] == frames[2]
    assert np.array_equal(decompress(memoryview(frames[0]), len(values), values.dtype), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(st.lists(st.floats(width=32), max_size=9))
def test_the_largest_magnitude_is_that_of_a_loop(dtype, values):
    vector = torch.tensor(values, dtype=dtype)
    found = [abs(value) for value in vector.tolist()]
    expected = math.nan if any(map(math.isnan, found)) else max(found, default=0.0)
    assert largest_magnitude(vector) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("value", [math.nan, -math.inf, -3e38, 7.0])
@pytest.mark.parametrize("at", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 2])
def test_no_block_is_left_out(value, at):
    vector = torch.ones(2 * BLOCK + 3)
    vector[at] = value
    assert largest_magnitude(vector) == pytest.approx(abs(float(vector[at])), nan_ok=True)
