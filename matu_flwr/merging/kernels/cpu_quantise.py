"""Hands the loops of `cpu_codes` their blocks, a block per thread at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from matu_flwr.merging.blocks import blocks
from matu_flwr.merging.codes import GROUP, scale_length
from matu_flwr.merging.kernels.cpu_blocks import in_threads

CODES_BLOCK = 1 << 18  # parameters of one call of a loop; whole groups, so no result depends on it


def quantise_on_cpu(vector: Tensor, levels: int, per_byte: int, codes: Tensor, scales: Tensor) -> None:
    """As `merging.quantise.quantise_in_torch`."""
    from matu_flwr.merging.kernels.cpu_codes import quantise_block

    codes_, scales_ = codes.numpy(), scales.view(torch.uint16).numpy()

    def quantise_range(limits: tuple[int, int]) -> None:
        start, stop = limits
        part = vector[start:stop].float().contiguous().numpy()
        into = codes_[start // per_byte : -(-stop // per_byte)], scales_[start // GROUP : scale_length(stop)]
        quantise_block(part, part.view(np.uint32), levels, per_byte == 2, *into)

    in_threads(quantise_range, list(blocks(len(vector), CODES_BLOCK)))


def dequantise_on_cpu(codes: Tensor, scales: Tensor, values: Tensor, vector: Tensor) -> None:
    """As `merging.quantise.dequantise_in_torch`."""
    from matu_flwr.merging.kernels.cpu_codes import dequantise_block

    per_byte, table = values.shape[1], values.contiguous().numpy()
    codes_, scales_ = codes.contiguous().numpy(), scales.contiguous().view(torch.uint16).numpy()
    into = vector.view(torch.uint16).numpy()

    def dequantise_range(limits: tuple[int, int]) -> None:
        start, stop = limits
        of = codes_[start // per_byte : -(-stop // per_byte)], scales_[start // GROUP : scale_length(stop)]
        dequantise_block(*of, table, into[start:stop])

    in_threads(dequantise_range, list(blocks(len(vector), CODES_BLOCK)))
