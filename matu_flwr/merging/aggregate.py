"""The server's side of one MaTU round, block by block over the packed replies.

Tsouvalas, Ozcelebi, Meratnia: Many-Task Federated Fine-Tuning via Unified Task Vectors. arXiv 2502.06376, 2025.
What the paper's abstract leaves open is our reading; `MergeOptions` names the alternatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from matu_flwr.merging.errors import MergeError
from matu_flwr.merging.masks import check_masks
from matu_flwr.merging.options import MergeOptions
from matu_flwr.merging.robust import WEIGHTED, HolderMean, MergeRobustly
from matu_flwr.merging.task_aggregation import ClientUpdate
from matu_flwr.merging.task_graph import SignAgreement, TaskGraph, relation_weights


@dataclass(frozen=True)
class MergeResult:
    """What one round's replies say about every task that somebody held.

    Attributes
    ----------
    task_vectors : dict of str to Tensor
        τ^t after the cross-task step, (d,) float32: rows of one (T, d) tensor.
    graph : TaskGraph
        Similarity, z-scores and related tasks.
    """

    task_vectors: dict[str, Tensor]
    graph: TaskGraph

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, sorted: the order of the rows of `similarity`."""
        return self.graph.tasks

    @property
    def similarity(self) -> Tensor:
        """S, (T, T) float64."""
        return self.graph.similarity

    @property
    def related(self) -> dict[str, list[str]]:
        """Z^t by task."""
        return self.graph.related


class Merge(Protocol):
    """The arithmetic of one round on one kind of device: `MergeOnCpu`, `MergeInTorch`."""

    def merge(self) -> tuple[SignAgreement, int | None]:
        """Pass 1: τ̂^t of every task, where directions agree, and the first client whose vector is not finite."""

    def combine(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        """Pass 2: the cross-task step, for the tasks in `weights`."""


def aggregate(
    replies: Iterable[ClientUpdate],
    options: MergeOptions | None = None,
    *,
    out: Tensor | None = None,
    mean: HolderMean = WEIGHTED,
) -> MergeResult:
    """Merge the replies of one round into one vector per task (method, server steps 1 to 5).

    Parameters
    ----------
    replies : iterable of ClientUpdate
        In any order; they are merged in the order of client names, in float64 per block, so that the result does not
        depend on the order of arrival. All on one device.
    options : MergeOptions, optional
        The switches; the defaults are our reading of the published method.
    out : Tensor, optional
        (T, d) float32, contiguous: where the result goes, row by row in the order of the names of tasks. For results
        larger than memory: a memory-mapped file. For merging in every round: the same tensor again, since memory that
        is new to a process takes two to three times as long to fill.
    mean : HolderMean
        How the vectors of a task's holders become one; see `merging.robust`.

    Returns
    -------
    MergeResult

    Raises
    ------
    MergeError
        No replies; a client twice; vectors of different lengths; NaN or infinity; zero examples; tasks without weights;
        `out` of another shape.

    Notes
    -----
    One pass over the replies, and one over the results if a task learns from another, which reads the replies again
    unless agreement = "none". Memory: the replies as they are (packed, if their masks are `PackedMasks`), one (T, d)
    float32 result, and blocks.
    """
    options = options or MergeOptions()
    updates = sorted(replies, key=lambda update: update.client)
    d = check_updates(updates)
    tasks = sorted({task for update in updates for task in update.vectors.tasks})
    merged = _result(out, len(tasks), d, updates[0].modulated.vector.device)
    merge: Merge
    if mean.robust:
        merge = MergeRobustly(updates, tasks, options, merged, mean)
    else:
        merge = _backend(merged.device)(updates, tasks, options, merged)
    agreement, broken = merge.merge()
    if broken is not None:
        raise MergeError(f"client {updates[broken].client!r}: the unified vector has NaN or infinity")
    graph = agreement.graph(tasks, options)
    weights = relation_weights(graph, options)
    learning = {task: weights[task] for task in tasks if sum(weights[task].values()) > 0}
    if learning:
        merge.combine(learning)
    return MergeResult({task: merged[row] for row, task in enumerate(tasks)}, graph)


def room_for(num_tasks: int, d: int, device: torch.device | None = None) -> Tensor:
    """(T, d) float32 of any content, for `aggregate` to write into; on the CPU unless another device is given."""
    if device is None or device.type == "cpu":
        return torch.from_numpy(np.empty((num_tasks, d), np.float32))  # NumPy asks for large pages: quick to fill first
    return torch.empty(num_tasks, d, device=device)


def _result(out: Tensor | None, num_tasks: int, d: int, device: torch.device) -> Tensor:
    """(T, d) float32 to write into."""
    if out is None:
        return room_for(num_tasks, d, device)
    if out.shape != (num_tasks, d) or out.dtype != torch.float32 or out.device != device or not out.is_contiguous():
        raise MergeError(
            f"out is {tuple(out.shape)} of {out.dtype} on {out.device}, expected ({num_tasks}, {d}) of torch.float32 "
            f"on {device}, contiguous: a row for each of the tasks"
        )
    return out


def _backend(device: torch.device) -> Callable[[list[ClientUpdate], list[str], MergeOptions, Tensor], Merge]:
    """Whose arithmetic fits this device. Imported here: Numba takes its time."""
    if device.type == "cpu":
        from matu_flwr.merging.kernels.cpu_merge import MergeOnCpu

        return MergeOnCpu
    if device.type == "cuda" and find_spec("triton"):
        from matu_flwr.merging.kernels.triton_merge import MergeInTriton

        return MergeInTriton
    from matu_flwr.merging.kernels.torch_blocks import MergeInTorch

    return MergeInTorch


def check_updates(updates: list[ClientUpdate]) -> int:
    """Refuse, by client and task, what cannot be merged for its form; returns the common length d."""
    if not updates:
        raise MergeError("no replies to aggregate")
    first = updates[0]
    d = first.modulated.d
    names = [update.client for update in updates]
    for update in updates:
        who = f"client {update.client!r}"
        if names.count(update.client) > 1:
            raise MergeError(f"{who} replied twice in one round")
        unified = update.modulated
        if unified.vector.dtype not in (torch.float32, torch.bfloat16) or unified.vector.shape != (d,):
            raise MergeError(
                f"{who}: unified vector is {tuple(unified.vector.shape)} of {unified.vector.dtype}, expected ({d},) "
                f"of torch.float32 or torch.bfloat16 as client {first.client!r}"
            )
        if unified.vector.device != first.modulated.vector.device:
            raise MergeError(
                f"{who}: unified vector on {unified.vector.device}, expected {first.modulated.vector.device} as client "
                f"{first.client!r}"
            )
        if not unified.rescalers:
            raise MergeError(f"{who}: no tasks")
        if not set(unified.rescalers) == set(unified.masks) == set(update.num_examples):
            raise MergeError(
                f"{who}: tasks differ: rescalers {sorted(unified.rescalers)}, masks {sorted(unified.masks)}, "
                f"num_examples {sorted(update.num_examples)}"
            )
        for task, rescaler in unified.rescalers.items():
            if not (math.isfinite(rescaler) and rescaler >= 0):
                raise MergeError(f"{who}: rescaler of task {task!r} is {rescaler}, expected a finite number ≥ 0")
            if update.num_examples[task] < 1:
                raise MergeError(f"{who}: task {task!r} has {update.num_examples[task]} examples, expected at least 1")
        for task in (*unified.opposites, *unified.rescalers) if unified.opposites else ():
            opposite = unified.opposites.get(task, math.nan)
            if task not in unified.rescalers or not (math.isfinite(opposite) and opposite >= 0):
                raise MergeError(
                    f"{who}: rescaler of cleared bits of task {task!r} is {opposite}, expected a finite number ≥ 0 of "
                    f"one of the tasks {sorted(unified.rescalers)}"
                )
        check_masks(unified.masks, d, who)
    return d
