"""Hands `cpu_unify` its blocks: whole vectors on the CPU in, addresses out, a block per thread at a time.

The kernels know whole groups of parameters. What is left at the end of a vector is copied into a group filled up
with zeros, which are of no task and vote for nothing, and its results are copied back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matu_flwr.choices import Magnitude
from matu_flwr.merging.blocks import Norms
from matu_flwr.merging.masks import packed_length

GROUP = 64  # parameters: whole vectors of lanes, whole bytes and whole words of a mask
# Parameters of one call of a kernel: long beside the tens of microseconds that a call takes to set up. What is added up
# in float64 is added up within blocks first, so these numbers are part of the last bit of a rescaler.
UNIFY_BLOCK = 1 << 18

Result = TypeVar("Result")
Addresses = NDArray[np.uint64]


def empty(*shape: int, dtype: Any = np.float32) -> Any:
    """Make an array of NumPy, which asks Linux for large pages: to touch small ones costs more than to fill them."""
    return np.empty(shape, dtype)


def row_addresses(array: NDArray[Any]) -> Addresses:
    """Where each row of a contiguous (R, ...) array is."""
    first, step = array.ctypes.data, array.strides[0]
    return np.uint64(first) + np.arange(len(array), dtype=np.uint64) * np.uint64(step)


def ranges(d: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) of at most `size` parameters that cover 0..d; all but the last are whole groups."""
    whole = d // GROUP * GROUP
    for start in range(0, whole, size):
        yield start, min(start + size, whole)
    if whole < d:
        yield whole, d


def in_threads(work: Callable[[tuple[int, int]], Result], parts: Sequence[tuple[int, int]]) -> list[Result]:
    """Results in the order of the parts, by as many threads as PyTorch uses."""
    threads = min(torch.get_num_threads(), len(parts))
    if threads <= 1:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))


def unify_on_cpu(taus: Sequence[Tensor], magnitude: Magnitude = "mean") -> tuple[Tensor, list[Tensor], list[Norms]]:
    """Elect and mask, as `merging.unify.elect_and_mask` does."""
    from matu_flwr.merging.kernels import cpu_unify

    taus = [tau.contiguous() for tau in taus]
    tasks, d = len(taus), taus[0].numel()
    unified = empty(d)
    masks = [empty(packed_length(d), dtype=np.uint8) for _ in taus]
    at = np.array([tau.data_ptr() for tau in taus], dtype=np.uint64)

    def unify_range(limits: tuple[int, int]) -> NDArray[np.float64]:
        start, stop = limits
        size = -(-(stop - start) // GROUP) * GROUP
        work = np.empty(cpu_unify.WORK, np.uint8)
        norms = np.zeros((tasks, 5, 16))
        whole = size == stop - start
        if whole:
            inputs, result = at + np.uint64(4 * start), unified[start:stop]
            bits = np.array([mask.ctypes.data + start // 8 for mask in masks], np.uint64)
        else:
            padded = np.zeros((tasks, size), np.float32)
            for row, tau in enumerate(taus):
                padded[row, : stop - start] = tau[start:stop].numpy()
            inputs, result = row_addresses(padded), np.empty(size, np.float32)
            planes = np.empty((tasks, size // 8), np.uint8)
            bits = row_addresses(planes)
        cpu_unify.unify_block(
            inputs.ctypes.data, tasks, size, magnitude == "mean", work.ctypes.data, result.ctypes.data,
            bits.ctypes.data, norms.ctypes.data,
        )  # fmt: skip
        if not whole:
            unified[start:stop] = result[: stop - start]
            for mask, plane in zip(masks, planes, strict=True):
                mask[start // 8 :] = plane[: packed_length(stop - start)]
        return norms

    sums = in_threads(unify_range, list(ranges(d, UNIFY_BLOCK)))
    # Rounded once, so in whatever order: the blocks and the 16 sums in each are the same for any number of threads.
    norms = [_norms([part[row] for part in sums]) for row in range(tasks)]
    return torch.from_numpy(unified), [torch.from_numpy(mask) for mask in masks], norms


def _norms(parts: Sequence[NDArray[np.float64]]) -> Norms:
    """Norms of one task from the sums of `unify_block`, (5, 16) of each block."""
    unelected, *others = ([part[row] for part in parts] for row in range(5))
    _, own_set, own_cleared, _ = others
    return Norms(_exact_sum([*unelected, *own_set, *own_cleared]), *map(_exact_sum, others))


def _exact_sum(parts: Sequence[NDArray[np.float64]]) -> float:
    """Sum rounded once; NaN where a part is NaN or infinite."""
    total = np.concatenate(parts) if parts else np.zeros(0)
    return math.fsum(total.tolist()) if bool(np.isfinite(total).all()) else math.nan
