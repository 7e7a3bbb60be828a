"""Lossless compression of arrays with zstd. docs/lab/wire.md says how much it saves.

The bytes of an array are sorted into planes first: all lowest bytes, then all second ones, up to all highest bytes.
Signs and low bits look random and cannot be compressed. But most magnitudes share a few exponents or codes, and most
mask bits are 1, because tasks agree with the elected sign more often than not. Planes put such bytes side by side.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import zstandard

Compression = Literal["none", "zstd"]

HUFFMAN = {"hash_log": 6, "min_match": 7}
"""Settings that keep zstd from searching for repeated strings: only how often each byte occurs can be used here.
Plain level 1 and higher levels encode repetitions that are chance, which takes time and more bytes than it saves."""
# Bytes from which starting zstd's own threads pays off.
LONG = 1 << 22


def compress(values: np.ndarray) -> np.ndarray:
    """Compress an array into one zstd frame, (n,) uint8, whose header has the uncompressed size.

    The number of threads does not change the bytes.
    """
    bits = np.ascontiguousarray(values).view(f"u{values.itemsize}")
    planes = np.empty((bits.itemsize, bits.size), np.uint8)
    for n, plane in enumerate(planes):
        np.right_shift(bits, 8 * n, out=plane, casting="unsafe")
    # At a client `train.threads` has set PyTorch's number of threads. zstd keeps to the same share of the CPU.
    threads = torch.get_num_threads() if planes.nbytes >= LONG else 0
    parameters = zstandard.ZstdCompressionParameters.from_level(1, **HUFFMAN, threads=threads)
    return np.frombuffer(zstandard.ZstdCompressor(compression_params=parameters).compress(planes.data), np.uint8)


def largest_frame(size: int) -> int:
    """Upper bound in bytes for a zstd frame of `size` uncompressed bytes."""
    return size + size // 256 + 1024


def decompress(frame: memoryview, count: int, dtype: np.dtype) -> np.ndarray:
    """Decompress a frame into exactly `count` values, (count,) of `dtype`, writable.

    Takes at most twice the memory of these values, whatever size the frame claims.

    Raises
    ------
    ValueError
        `frame` is not one zstd frame of this size. The text says what it is instead.
    """
    size = count * dtype.itemsize
    try:
        # A short hostile frame can claim any size: it is compared before memory is taken.
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
    # From the highest byte down, in place: no second array of full width.
    for plane in planes[-2::-1]:
        bits <<= 8
        bits |= plane
    return bits.view(dtype)
