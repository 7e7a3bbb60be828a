"""Vectors in fewer bits: a sign and a short magnitude per parameter, and a scale per group of parameters.

A mask bit says whether a task agrees with the sign of the unified vector, so signs have to arrive as they are. Hence
the sign is a bit of its own, magnitudes are coded apart, and only an exact zero has the code zero. With L codes for
magnitudes above zero, and s the largest magnitude of a group,

    code    c = 0 if x = 0, else min(L, 1 + ⌊(L − ½) |x| / s⌋)
    value   x̂ = sgn(x) · s · (c − ½) / (L − ½), 0 if c = 0
    bound   |x̂ − x| ≤ s / (2L − 1)

The middle of each interval of the grid stands for it, and the last one is s itself: what was sent once comes out the
same when it is sent again, so no parameter shrinks from round to round. L is 127 with 8 bits and 7 with 4 bits.

docs/lab/wire.md has the measurements behind the grid, the group and the rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from matu_flwr.merging.errors import MergeError
from matu_flwr.merging.unify import blocks

VectorDtype = Literal["float32", "bfloat16", "int8", "int4"]
"""How a vector travels."""

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


def as_sent(vector: Tensor, dtype: VectorDtype) -> Tensor:
    """The vector that the receiver has: (d,) float32 or bfloat16, as `held_as` says."""
    if dtype in LEVELS:
        return dequantise(quantise(vector, dtype), vector.shape[0], dtype)
    return vector.bfloat16() if dtype == "bfloat16" else vector.float()


def quantise(vector: Tensor, dtype: VectorDtype) -> Quantised:
    """Codes and scales of a vector.

    Parameters
    ----------
    vector : Tensor
        (d,) float32 or bfloat16, finite. NaN or infinity gives a scale that no receiver takes.
    dtype : {"int8", "int4"}
        8 or 4 bits.

    Raises
    ------
    MergeError
        Another dtype: it has no codes.

    Notes
    -----
    Rounds to the nearest level. Working memory beyond the result: a few blocks of parameters.
    """
    levels, per_byte = _levels(dtype), 2 if dtype == "int4" else 1
    d, device = vector.shape[0], vector.device
    codes = torch.empty(code_length(d, dtype), dtype=torch.uint8, device=device)
    scales = torch.empty(scale_length(d), dtype=torch.bfloat16, device=device)
    if device.type == "cpu":
        from matu_flwr.merging.kernels.cpu_quantise import quantise_on_cpu

        quantise_on_cpu(vector, levels, per_byte, codes, scales)
    else:
        quantise_in_torch(vector, levels, per_byte, codes, scales)
    return Quantised(codes, scales)


def dequantise(quantised: Quantised, d: int, dtype: VectorDtype) -> Tensor:
    """The vector that codes and scales stand for, (d,) bfloat16. A negative zero reads as zero."""
    vector = torch.empty(d, dtype=torch.bfloat16, device=quantised.codes.device)
    if vector.device.type == "cpu":
        from matu_flwr.merging.kernels.cpu_quantise import dequantise_on_cpu

        dequantise_on_cpu(quantised.codes, quantised.scales, values_of_bytes(dtype), vector)
    else:
        dequantise_in_torch(quantised.codes, quantised.scales, values_of_bytes(dtype), vector)
    return vector


def quantise_in_torch(vector: Tensor, levels: int, per_byte: int, codes: Tensor, scales: Tensor) -> None:
    """Write codes, so many in a byte, and scales, on any device."""
    for start, stop in blocks(len(vector)):
        groups = pad(vector[start:stop].float(), (0, -(stop - start) % GROUP)).view(-1, GROUP)
        magnitudes = groups.abs()
        scale = _largest(magnitudes).clamp_(min=SCALE_FLOOR).bfloat16()
        scales[start // GROUP : scale_length(stop)] = scale
        steps = magnitudes * ((levels - 0.5) / scale.float())[:, None]
        code = steps.clamp_(max=levels - 1).to(torch.uint8).add_(1)  # to an integer: towards zero
        code = code.mul_(magnitudes > 0).add_(groups < 0, alpha=levels + 1).view(-1)
        if per_byte == 2:
            code = code[::2] | code[1::2] << 4
        first, last = start // per_byte, -(-stop // per_byte)
        codes[first:last] = code[: last - first]


def dequantise_in_torch(codes: Tensor, scales: Tensor, values: Tensor, vector: Tensor) -> None:
    """Write what codes and scales stand for, on any device; `values` are those of a byte."""
    values = values.to(vector.device)
    per_byte = values.shape[1]
    for start, stop in blocks(len(vector)):
        code = codes[start // per_byte : -(-stop // per_byte)]
        scale = scales[start // GROUP : scale_length(stop)].float()
        units = values.index_select(0, code.int()).view(-1)[: stop - start]
        groups = pad(units, (0, -(stop - start) % GROUP)).view(-1, GROUP)
        vector[start:stop] = (groups * scale[:, None]).view(-1)[: stop - start]


def _largest(groups: Tensor) -> Tensor:
    """Row by row, (rows, GROUP) -> (rows,). `amax` would start PyTorch's threads for every block; halving does not."""
    while groups.shape[1] > 1:
        half = groups.shape[1] // 2
        groups = torch.maximum(groups[:, :half], groups[:, half:])
    return groups[:, 0]


def _levels(dtype: VectorDtype) -> int:
    if dtype not in LEVELS:
        raise MergeError(f"dtype {dtype!r} has no codes, expected one of {list(LEVELS)}")
    return LEVELS[dtype]


def values_of_bytes(dtype: VectorDtype) -> Tensor:
    """What a byte of codes stands for where the scale is 1: (256, 1) for int8, (256, 2) for int4, float32."""
    levels = _levels(dtype)
    magnitudes = (torch.arange(levels + 1) - 0.5) / (levels - 0.5)
    magnitudes[0] = 0
    signed = torch.cat([magnitudes, -magnitudes])
    signed[levels + 1] = 0  # not -0
    if dtype == "int8":
        return signed[:, None]
    byte = torch.arange(256)
    return torch.stack([signed[byte & 15], signed[byte >> 4]], dim=1)
