"""Compiled loops of `quantise` and `dequantise` on a CPU: a group of parameters after the other.

Imported where it is needed, kept and run like `cpu_unify`. LLVM makes vector code of these loops by itself. Floats
are compared and rounded by their bits, which have the order of magnitudes, NaN last.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from matu_flwr.merging.codes import GROUP, SCALE_FLOOR
from matu_flwr.merging.kernels.lanes import compiled

SIGN = np.uint32(0x80000000)
INFINITY = np.uint32(0x7F800000)
FLOOR = np.float32(SCALE_FLOOR).view(np.uint32)


@njit(nogil=True, inline="always")
def to_bfloat16(bits):  # type: ignore[no-untyped-def]
    """The 16 bits of the nearest bfloat16, ties to even; of NaN PyTorch's."""
    if bits & ~SIGN > INFINITY:
        return np.uint16(0x7FC0)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@compiled("void(float32[::1], uint32[::1], int64, boolean, uint8[::1], uint16[::1])")
def quantise_block(vector, bits, levels, halves, codes, scales):  # type: ignore[no-untyped-def]
    """Codes and scales of a block of whole groups, or of the end of a vector.

    Parameters
    ----------
    vector, bits : array
        (n,) float32, and the same memory as uint32.
    levels : int
        L.
    halves : bool
        Two codes in a byte.
    codes, scales : array
        Where the results go: (n,) or (ceil(n / 2),) uint8, and (ceil(n / GROUP),) bfloat16 as uint16.
    """
    one_by_one = np.zeros(GROUP, np.uint8)
    scale_bits = np.zeros(1, np.uint32)
    scale = scale_bits.view(np.float32)
    last = np.float32(levels - 1)
    for group in range(len(scales)):
        start = group * GROUP
        size = min(GROUP, len(vector) - start)
        largest = FLOOR
        for i in range(size):
            largest = max(largest, bits[start + i] & ~SIGN)
        scales[group] = to_bfloat16(largest)
        scale_bits[0] = np.uint32(scales[group]) << np.uint32(16)
        steps = np.float32(levels - 0.5) / scale[0]
        for i in range(size):
            x = vector[start + i]
            step = abs(x) * steps
            code = np.uint8(np.int32(step if step < last else last)) + np.uint8(1)
            code = code if abs(x) > 0 else np.uint8(0)
            one_by_one[i] = code | (np.uint8(levels + 1) if x < 0 else np.uint8(0))
        if halves:
            one_by_one[size:] = 0
            for i in range((size + 1) // 2):
                codes[start // 2 + i] = one_by_one[2 * i] | one_by_one[2 * i + 1] << np.uint8(4)
        else:
            codes[start : start + size] = one_by_one[:size]


@compiled("void(uint8[::1], uint16[::1], float32[:, ::1], uint16[::1])")
def dequantise_block(codes, scales, values, vector):  # type: ignore[no-untyped-def]
    """What the codes of a block of whole groups, or of the end of a vector, stand for.

    Parameters
    ----------
    codes, scales : array
        As `quantise_block` makes them.
    values : array
        (256, 1) or (256, 2) float32: of each byte, where the scale is 1.
    vector : array
        Where the result goes: (n,) bfloat16 as uint16.
    """
    product = np.zeros(GROUP, np.float32)
    product_bits = product.view(np.uint32)
    scale_bits = np.zeros(1, np.uint32)
    scale = scale_bits.view(np.float32)
    halves = values.shape[1] == 2
    for group in range(len(scales)):
        start = group * GROUP
        size = min(GROUP, len(vector) - start)
        scale_bits[0] = np.uint32(scales[group]) << np.uint32(16)
        if halves:
            for i in range((size + 1) // 2):
                code = codes[start // 2 + i]
                product[2 * i], product[2 * i + 1] = values[code, 0] * scale[0], values[code, 1] * scale[0]
        else:
            for i in range(size):
                product[i] = values[codes[start + i], 0] * scale[0]
        for i in range(size):
            vector[start + i] = to_bfloat16(product_bits[i])
