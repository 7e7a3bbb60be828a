"""How a vector is written in fewer bits: codes, scales, and their lengths. `merging.quantise` makes and reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from matu_flwr.choices import VectorDtype
from matu_flwr.merging.errors import MergeError

GROUP = 128  # parameters that share a scale; a power of two that divides BLOCK
LEVELS = {"int8": 127, "int4": 7}  # L: magnitudes above zero
# Scales are bfloat16 for its range: float16 has none left at the 1e-5 of fine-tuning. The floor keeps steps normal.
SCALE_FLOOR = 2.0**-100


@dataclass(frozen=True)
class Quantised:
    """A vector as it travels.

    Attributes
    ----------
    codes : Tensor
        (code_length(d, dtype),) uint8. int8: bit 7 the sign (1 is negative), bits 0 to 6 the magnitude's code. int4: so
        with bits 3 and 0 to 2 of a half byte; parameter i is the low half of byte i // 2 if i is even. The unused half
        of the last byte is zero.
    scales : Tensor
        s of each group, (scale_length(d),) bfloat16; at least SCALE_FLOOR, also where all is zero.
    """

    codes: Tensor
    scales: Tensor


def code_length(d: int, dtype: VectorDtype) -> int:
    """Bytes that the codes of d parameters take."""
    return d if dtype == "int8" else -(-d // 2)


def scale_length(d: int) -> int:
    """Number of groups of d parameters."""
    return -(-d // GROUP)


def vector_bytes(d: int, dtype: VectorDtype) -> int:
    """Bytes of a vector of d parameters as it travels, scales included."""
    if dtype in LEVELS:
        return code_length(d, dtype) + 2 * scale_length(d)
    return d * (2 if dtype == "bfloat16" else 4)


def held_as(dtype: VectorDtype) -> VectorDtype:
    """What a received vector is in memory: quantised ones become bfloat16, whose rounding is finer than theirs."""
    return "bfloat16" if dtype in LEVELS else dtype


def values_of_bytes(dtype: VectorDtype) -> Tensor:
    """What a byte of codes stands for where the scale is 1: (256, 1) for int8, (256, 2) for int4, float32."""
    levels = levels_of(dtype)
    magnitudes = (torch.arange(levels + 1) - 0.5) / (levels - 0.5)
    magnitudes[0] = 0
    signed = torch.cat([magnitudes, -magnitudes])
    signed[levels + 1] = 0  # not -0
    if dtype == "int8":
        return signed[:, None]
    byte = torch.arange(256)
    return torch.stack([signed[byte & 15], signed[byte >> 4]], dim=1)


def levels_of(dtype: VectorDtype) -> int:
    """L of a dtype that has codes.

    Raises
    ------
    MergeError
        Another dtype.
    """
    if dtype not in LEVELS:
        raise MergeError(f"dtype {dtype!r} has no codes, expected one of {list(LEVELS)}")
    return LEVELS[dtype]
