"""Lossless compression of what travels: zstd over the bytes of an array, first all lowest bytes, last all highest.

What it saves stands in docs/wire.md. Signs and low bits are noise. What is left is that magnitudes crowd in a few
exponents or codes, and that tasks agree with the elected sign more often than not.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import zstandard

Compression = Literal["none", "zstd"]

LEVEL = 1  # higher ones take longer and save nothing more: there is nothing to find but the frequency of bytes


def compress(values: np.ndarray) -> np.ndarray:
    """One zstd frame, uint8, that knows its length."""
    planes = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.itemsize).T
    return np.frombuffer(zstandard.ZstdCompressor(level=LEVEL).compress(planes.tobytes()), np.uint8)


def largest_frame(size: int) -> int:
    """Bytes that no frame of `size` bytes exceeds."""
    return size + size // 256 + 1024


def decompress(frame: memoryview, count: int, dtype: np.dtype) -> np.ndarray:
    """Exactly `count` values, writable; takes no more memory than these twice, whatever the frame says.

    Raises
    ------
    ValueError
        Not a single frame of this many bytes.
    """
    size = count * dtype.itemsize
    try:
        claimed = zstandard.frame_content_size(frame)
        if claimed != size:
            raise ValueError(f"a zstd frame of {claimed} bytes")
        raw = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError:
        raise ValueError("what is no zstd frame") from None
    if len(raw) != size:
        raise ValueError(f"a zstd frame of {len(raw)} bytes")
    planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, count)
    return np.array(planes.T, order="C").view(dtype).reshape(count)
