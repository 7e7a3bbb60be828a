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

import torch
from torch import Tensor
from torch.nn.functional import pad

from matu_flwr.choices import VectorDtype
from matu_flwr.merging.blocks import blocks
from matu_flwr.merging.codes import (
    GROUP,
    LEVELS,
    SCALE_FLOOR,
    Quantised,
    code_length,
    levels_of,
    scale_length,
    values_of_bytes,
)
from matu_flwr.merging.kernels import for_device


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
    levels, per_byte = levels_of(dtype), 2 if dtype == "int4" else 1
    d, device = vector.shape[0], vector.device
    codes = torch.empty(code_length(d, dtype), dtype=torch.uint8, device=device)
    scales = torch.empty(scale_length(d), dtype=torch.bfloat16, device=device)
    run = for_device(device).quantise or quantise_in_torch
    run(vector, levels, per_byte, codes, scales)
    return Quantised(codes, scales)


def dequantise(quantised: Quantised, d: int, dtype: VectorDtype) -> Tensor:
    """The vector that codes and scales stand for, (d,) bfloat16. A negative zero reads as zero."""
    vector = torch.empty(d, dtype=torch.bfloat16, device=quantised.codes.device)
    run = for_device(vector.device).dequantise or dequantise_in_torch
    run(quantised.codes, quantised.scales, values_of_bytes(dtype), vector)
    return vector


def quantise_in_torch(vector: Tensor, levels: int, per_byte: int, codes: Tensor, scales: Tensor) -> None:
    """Write codes, so many in a byte, and scales, on any device: what every kernel has to give.

    Parameters
    ----------
    vector : Tensor
        (d,) float32 or bfloat16.
    levels, per_byte : int
        L, and 1 or 2 codes in a byte.
    codes, scales : Tensor
        Where the results go; see `Quantised`.
    """
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
    """Write what codes and scales stand for into (d,) bfloat16, on any device.

    `values` are those of a byte, (256, 1) or (256, 2); see `values_of_bytes`.
    """
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
