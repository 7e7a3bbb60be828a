"""The server's side of one MaTU round, block by block over the packed replies.

Tsouvalas, Ozcelebi, Meratnia: Many-Task Federated Fine-Tuning via Unified Task Vectors. arXiv 2502.06376, 2025.
What the paper's abstract leaves open is our reading; `MergeOptions` names the alternatives.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from matu_flwr.merging.cross_task import combine_related
from matu_flwr.merging.errors import MergeError
from matu_flwr.merging.options import MergeOptions
from matu_flwr.merging.packing import check_masks
from matu_flwr.merging.task_aggregation import ClientUpdate, aggregate_task
from matu_flwr.merging.task_graph import SignAgreement, TaskGraph, relation_weights
from matu_flwr.merging.unify import blocks, first_non_finite


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


def aggregate(replies: Iterable[ClientUpdate], options: MergeOptions | None = None) -> MergeResult:
    """Merge the replies of one round into one vector per task (method, server steps 1 to 5).

    Parameters
    ----------
    replies : iterable of ClientUpdate
        In any order; they are merged in the order of client names, in float64 per block, so that the result does not
        depend on the order of arrival.
    options : MergeOptions, optional
        The switches; the defaults are our reading of the published method.

    Returns
    -------
    MergeResult

    Raises
    ------
    MergeError
        No replies; a client twice; vectors of different lengths; NaN or infinity; zero examples; tasks without weights.

    Notes
    -----
    Memory: the replies as they are (packed, if their masks are `PackedMasks`), one (T, d) float32 result, and blocks.
    """
    options = options or MergeOptions()
    updates = sorted(replies, key=lambda update: update.client)
    d = check_updates(updates)
    holders: dict[str, list[ClientUpdate]] = {}
    for update in updates:
        for task in update.unified.tasks:
            holders.setdefault(task, []).append(update)
    tasks = sorted(holders)

    merged = torch.empty(len(tasks), d, dtype=torch.float32)  # (T, d)
    index = {task: row for row, task in enumerate(tasks)}

    # Pass 1: τ̂^t of every task, and where the directions of tasks agree.
    def merge_block(limits: tuple[int, int]) -> SignAgreement:
        start, stop = limits
        signs = torch.empty(len(tasks), stop - start, dtype=torch.int8)
        for row, task in enumerate(tasks):
            block = aggregate_task(task, holders[task], start, stop, options)
            merged[row, start:stop] = block.tau
            signs[row] = block.sign
        return SignAgreement.of(signs)

    # Pass 2: the cross-task step needs the whole graph first. m̂^t is made again from the packed replies: that costs
    # less than keeping T·d numbers.
    def combine_block(limits: tuple[int, int]) -> None:
        start, stop = limits
        tau_hat = merged[:, start:stop].double()  # (T, B), a copy: every task reads the others as they were
        for task in learning:
            mask = aggregate_task(task, holders[task], start, stop, options).mask
            related = {other: tau_hat[index[other]] for other in weights[task]}
            row = index[task]
            merged[row, start:stop] = combine_related(tau_hat[row], mask, related, weights[task], options)

    # Blocks are independent and counts are whole numbers: any number of threads gives the same bits.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        counts = SignAgreement(len(tasks))
        for found in pool.map(merge_block, blocks(d)):
            counts.add(found)
        graph = counts.graph(tasks, options)
        weights = relation_weights(graph, options)
        learning = [task for task in tasks if sum(weights[task].values()) > 0]
        if learning:
            deque(pool.map(combine_block, blocks(d)), maxlen=0)  # runs to the end, raises what a block raised
    return MergeResult({task: merged[index[task]] for task in tasks}, graph)


def check_updates(updates: list[ClientUpdate]) -> int:
    """Refuse, by client and task, what cannot be merged; returns the common length d."""
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
        if first_non_finite(unified.vector) is not None:
            raise MergeError(f"{who}: the unified vector has NaN or infinity")
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
        for task in unified.opposites and unified.opposites.keys() | unified.rescalers.keys():
            opposite = unified.opposites.get(task, math.nan)
            if task not in unified.rescalers or not (math.isfinite(opposite) and opposite >= 0):
                raise MergeError(
                    f"{who}: rescaler of cleared bits of task {task!r} is {opposite}, expected a finite number ≥ 0 of "
                    f"one of the tasks {sorted(unified.rescalers)}"
                )
        check_masks(unified.masks, d, who)
    return d
