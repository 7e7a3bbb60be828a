"""Lossless compression of what travels: zstd over the bytes of an array, first all lowest bytes, last all highest.

What it saves stands in docs/lab/wire.md. Signs and low bits are noise. What is left is that magnitudes crowd in a few
exponents or codes, and that tasks agree with the elected sign more often than not.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import zstandard

Compression = Literal["none", "zstd"]

HUFFMAN = {"hash_log": 6, "min_match": 7}
"""zstd that hardly looks for repeated strings, only for zeros and the like: there is nothing to find but the frequency
of bytes. Chance repetitions, which level 1 and higher ones take up, cost time and more bytes than they save."""
LONG = 1 << 22  # bytes from which zstd's own threads are worth their start


def compress(values: np.ndarray) -> np.ndarray:
    """One zstd frame, uint8, that knows its length; the same bytes whatever the number of threads."""
    bits = np.ascontiguousarray(values).view(f"u{values.itemsize}")
    planes = np.empty((bits.itemsize, bits.size), np.uint8)
    for n, plane in enumerate(planes):
        np.right_shift(bits, 8 * n, out=plane, casting="unsafe")
    threads = torch.get_num_threads() if planes.nbytes >= LONG else 0  # as PyTorch has: a client has its share
    parameters = zstandard.ZstdCompressionParameters.from_level(1, **HUFFMAN, threads=threads)
    return np.frombuffer(zstandard.ZstdCompressor(compression_params=parameters).compress(planes.data), np.uint8)


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
        raise ValueError("bytes that are not a zstd frame") from None
    if len(raw) != size:
        raise ValueError(f"a zstd frame of {len(raw)} bytes")
    planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, count)
    bits: np.ndarray = planes[-1].astype(f"u{dtype.itemsize}")
    for plane in planes[-2::-1]:
        bits <<= 8
        bits |= plane
    return bits.view(dtype)
