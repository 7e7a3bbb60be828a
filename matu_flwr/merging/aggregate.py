"""The server's side of one MaTU round, block by block over the packed replies.

Tsouvalas, Ozcelebi, Meratnia: Many-Task Federated Fine-Tuning via Unified Task Vectors. arXiv 2502.06376, 2025.
What the paper's abstract leaves open is our reading; `MergeOptions` names the alternatives. By default, for every task
t over the clients n that hold it, N_t of them, with γ_n^t = |D_n^t| / Σ_n |D_n^t|:

    1. m̂^t = 1                                        no parameter is damped (`task_aggregation.aggregated_mask`)
    2. τ̂^t = m̂^t ⊙ Σ_n γ_n^t τ̄_n^t                       the mean of what clients sent (`task_aggregation`)
       s^t = sgn Σ_n |D_n^t| · sgn(τ_n) ⊙ (2 m_n^t − 1)     its direction: the holders' vote
    3. S^{t,t'} = ½ (1 + 1/d Σ_i s^t[i] · s^{t'}[i])       similarity of two tasks; ½ = unrelated (`task_graph`)
    4. Z^t = the κ most similar t' with z ≥ ε, and their weights w = max(0, 2S − 1)
    5. τ^t = (τ̂^t + Σ_{t' ∈ Z^t} w m̂^t ⊙ τ̂^{t'}) / (1 + Σ w)   learn from related tasks (`cross_task`)

As published, in our reading (`MergeOptions.paper()`), these lines differ:

    1. α^t = |1/N_t Σ_n sgn(m_n^t ⊙ τ_n)|,  m̂^t = 1 where α^t ≥ ρ, α^t elsewhere
    3. s^t = sgn τ̂^t
    4. Z^t = the κ most similar t' with S ≥ ε, and w = S

`MergeInTorch` below does this in plain torch. A CPU and an NVIDIA GPU run the same as compiled loops
(`merging.kernels`), which tests compare with it to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matu_flwr.merging.blocks import GPU_BLOCK, blocks
from matu_flwr.merging.cross_task import combine_related
from matu_flwr.merging.errors import MergeError
from matu_flwr.merging.inputs import as_count, check_names
from matu_flwr.merging.kernels import Merge, for_device
from matu_flwr.merging.masks import check_masks
from matu_flwr.merging.options import MAX_RESCALER, MergeOptions
from matu_flwr.merging.robust import WEIGHTED, HolderMean
from matu_flwr.merging.task_aggregation import TaskBlock, aggregate_task
from matu_flwr.merging.task_graph import SignAgreement, TaskGraph, relation_weights
from matu_flwr.merging.task_vectors import ClientUpdate, first_non_finite
from matu_flwr.texts import short


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
        The switches; `MergeOptions.paper()` is our reading of the published method.
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
        rescalers above 10⁶; `out` of another shape.

    Notes
    -----
    No sum overflows where no vector has a number above 10³¹ in magnitude, with `combine = "sum"` neither: what `unify`
    gives and the wire lets through has none. Vectors that are made by hand are not searched for such numbers.

    One pass over the replies, and one over the results if a task learns from another, which reads the replies again
    unless agreement = "none". Memory: the replies as they are (packed, if their masks are `PackedMasks`), one (T, d)
    float32 result, and blocks.
    """
    options = options or MergeOptions()
    if not isinstance(options, MergeOptions):
        raise MergeError(f"options is a {type(options).__name__}, expected MergeOptions(…)")
    if not isinstance(mean, HolderMean):
        raise MergeError(f"mean is {short(mean)}, expected HolderMean(…)")
    updates = _ordered(replies)
    d = check_updates(updates)
    tasks = sorted({task for update in updates for task in update.vectors.tasks})
    merged = _result(out, len(tasks), d, updates[0].modulated.vector.device)
    merge = _merge(updates, tasks, options, merged, mean)
    agreement, broken = merge.merge()  # steps 1 and 2, and the sums of step 3
    if broken is not None:
        raise MergeError(f"client {updates[broken].client!r}: the unified vector has NaN or infinity")
    graph = agreement.graph(tasks, options)  # steps 3 and 4
    weights = relation_weights(graph, options)
    learning = {task: weights[task] for task in tasks if sum(weights[task].values()) > 0}
    if learning:
        merge.combine(learning)  # step 5
    return MergeResult({task: merged[row] for row, task in enumerate(tasks)}, graph)


class MergeInTorch:
    """The five steps on whatever device the replies are on: what every kernel has to give.

    Parameters
    ----------
    updates : sequence of ClientUpdate
        Checked, in the order of clients' names.
    tasks : list of str
        Sorted.
    options : MergeOptions
        Read: rho, agreement, signs, combine.
    merged : Tensor
        (T, d) float32: τ^t is written there.
    mean : HolderMean
        How the vectors of a task's holders become one. No kernel has another one than the weighted.

    Notes
    -----
    Memory beyond the result: blocks; with a robust mean (n, B) float32, twice, for the n holders of one task.
    """

    def __init__(
        self,
        updates: Sequence[ClientUpdate],
        tasks: list[str],
        options: MergeOptions,
        merged: Tensor,
        mean: HolderMean = WEIGHTED,
    ) -> None:
        self.updates, self.tasks, self.options, self.merged, self.mean = updates, tasks, options, merged, mean
        self.holders = {task: [update for update in updates if task in update.num_examples] for task in tasks}

    def merge(self) -> tuple[SignAgreement, int | None]:
        """Pass 1: τ̂^t of every task, where directions agree, and the first client whose vector has NaN or infinity."""
        for n, update in enumerate(self.updates):
            if first_non_finite(update.modulated.vector) is not None:
                return SignAgreement(len(self.tasks)), n
        counts = SignAgreement(len(self.tasks))
        for start, stop in self.ranges():
            signs = torch.empty(len(self.tasks), stop - start, dtype=torch.int8, device=self.merged.device)  # (T, B)
            for row, task in enumerate(self.tasks):
                block = self.block(task, start, stop)  # steps 1 and 2
                self.merged[row, start:stop] = block.tau
                signs[row] = block.sign
            counts.add(SignAgreement.of(signs))  # step 3
        return counts, None

    def combine(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        """Pass 2: the cross-task step, in place, for the tasks in `weights`. It needs the whole graph first."""
        index = {task: row for row, task in enumerate(self.tasks)}
        for start, stop in self.ranges():
            tau_hat = self.merged[:, start:stop].double()  # (T, B), a copy: every task reads the others as they were
            for task, others in weights.items():
                mask = self.block(task, start, stop).mask
                related = {other: tau_hat[index[other]] for other in others}
                row = index[task]
                self.merged[row, start:stop] = combine_related(tau_hat[row], mask, related, others, self.options)

    def ranges(self) -> Iterable[tuple[int, int]]:
        """Blocks of parameters: small ones where a column per holder lies in memory."""
        small = self.merged.device.type == "cpu" or self.mean.robust
        return blocks(self.merged.shape[1], None if small else GPU_BLOCK)

    def block(self, task: str, start: int, stop: int) -> TaskBlock:
        """One task over its holders."""
        return aggregate_task(task, self.holders[task], start, stop, self.options, self.mean)


def _merge(
    updates: list[ClientUpdate], tasks: list[str], options: MergeOptions, merged: Tensor, mean: HolderMean
) -> Merge:
    """Whoever merges on this device."""
    compiled = for_device(merged.device).merge
    if compiled is None or mean.robust:
        return MergeInTorch(updates, tasks, options, merged, mean)
    return compiled(updates, tasks, options, merged)


def room_for(num_tasks: int, d: int, device: torch.device | None = None) -> Tensor:
    """(T, d) float32 of any content, for `aggregate` to write into; on the CPU unless another device is given."""
    if device is None or device.type == "cpu":
        return torch.from_numpy(np.empty((num_tasks, d), np.float32))  # NumPy asks for large pages: quick to fill first
    return torch.empty(num_tasks, d, device=device)


def _result(out: Tensor | None, num_tasks: int, d: int, device: torch.device) -> Tensor:
    """(T, d) float32 to write into."""
    if out is None:
        return room_for(num_tasks, d, device)
    if not isinstance(out, Tensor):
        raise MergeError(f"out is a {type(out).__name__}, expected a tensor, such as torch.from_numpy(array)")
    if out.shape != (num_tasks, d) or out.dtype != torch.float32 or out.device != device or not out.is_contiguous():
        raise MergeError(
            f"out is {tuple(out.shape)} of {out.dtype} on {out.device}, expected ({num_tasks}, {d}) of torch.float32 "
            f"on {device}, contiguous: a row for each of the tasks"
        )
    return out


def _ordered(replies: Iterable[Any]) -> list[ClientUpdate]:
    """The replies in the order of clients' names, with whole numbers of examples."""
    if isinstance(replies, ClientUpdate | Mapping) or not isinstance(replies, Iterable):
        raise MergeError(f"replies is a {type(replies).__name__}, expected a list of ClientUpdate")
    updates = []
    for update in replies:
        if not isinstance(update, ClientUpdate):
            kind = type(update).__name__
            raise MergeError(f"a reply is a {kind}, expected ClientUpdate(vectors, num_examples, client)")
        if not isinstance(update.client, str):
            raise MergeError(f"client {short(update.client)}: expected a name as text")
        who = f"client {update.client!r}"
        check_names(update.num_examples, f"{who}: num_examples")
        counts = {task: as_count(count, f"{who}: task {task!r}") for task, count in update.num_examples.items()}
        updates.append(replace(update, num_examples=counts))
    return sorted(updates, key=lambda update: update.client)


def _is_rescaler(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    number: Any = value  # whole numbers may be too large for a float
    return bool(0 <= number <= MAX_RESCALER)


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
            if not _is_rescaler(rescaler):
                raise MergeError(
                    f"{who}: rescaler of task {task!r} is {short(rescaler)}, expected a finite number ≥ 0, at most "
                    f"{MAX_RESCALER:g}"
                )
        for task in (*unified.opposites, *unified.rescalers) if unified.opposites else ():
            opposite = unified.opposites.get(task, math.nan)
            if task not in unified.rescalers or not _is_rescaler(opposite):
                raise MergeError(
                    f"{who}: rescaler of cleared bits of task {task!r} is {short(opposite)}, expected a finite number "
                    f"≥ 0, at most {MAX_RESCALER:g}, of one of the tasks {sorted(unified.rescalers)}"
                )
        check_masks(unified.masks, d, who)
    return d
