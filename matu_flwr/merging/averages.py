"""Weighted means of vectors, and the one-model merges of the literature. Exact in any order of their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from matu_flwr.merging.blocks import blocks
from matu_flwr.merging.errors import MergeError
from matu_flwr.merging.robust import WEIGHTED, HolderMean
from matu_flwr.merging.task_vectors import ClientUpdate, check_task_vectors

Block = Callable[[int, int], Tensor]


def weighted_mean(tensors: Iterable[Tensor], weights: Sequence[int]) -> Tensor:
    """Σ_k γ_k x_k with γ_k = w_k / Σ_k w_k, in the order given; as float64 of the shape of each.

    A generator of tensors is taken one at a time: no two of them need to be in memory.
    """
    total, mean = sum(weights), torch.zeros((), dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        mean = mean + tensor.double() * (weight / total)  # γ_k x_k
    return mean


def mean_of(tensors: Iterable[Tensor], weights: Sequence[int], mean: HolderMean = WEIGHTED) -> Tensor:
    """`weighted_mean`, or the robust mean of `merging.robust`, which has no use for the weights; float64."""
    return mean.of(torch.stack(list(tensors))) if mean.robust else weighted_mean(tensors, weights)


def holder_mean(d: int, parts: Sequence[tuple[int, Block]], mean: HolderMean) -> Tensor:
    """`mean_of` over long vectors, block by block; (d,) float32.

    Parameters
    ----------
    d : int
        Length of the vectors.
    parts : sequence of (int, callable)
        Weight, and the vector as a function of the block start..stop.
    mean : HolderMean
        How they become one.
    """
    weights = [weight for weight, _ in parts]
    found = torch.empty(d)
    for start, stop in blocks(d):
        found[start:stop] = mean_of((vector(start, stop) for _, vector in parts), weights, mean)
    return found


def mean_by_task(updates: Iterable[ClientUpdate], d: int, mean: HolderMean = WEIGHTED) -> dict[str, Tensor]:
    """Each task's vector over its holders, weighted by their examples of it; clients in the order of names."""
    ordered = sorted(updates, key=lambda update: update.client)
    tasks = sorted({task for update in ordered for task in update.num_examples})

    def part(update: ClientUpdate, task: str) -> tuple[int, Block]:
        return update.num_examples[task], lambda start, stop: update.vectors.reconstruct_block(task, start, stop)

    return {task: holder_mean(d, [part(u, task) for u in ordered if task in u.num_examples], mean) for task in tasks}


def task_arithmetic(task_vectors: Mapping[str, Tensor], scale: float) -> Tensor:
    """λ Σ_t τ^t, (d,) float32: one vector for all tasks (Ilharco et al., 2023).

    Raises
    ------
    MergeError
        See `check_task_vectors`.
    """
    d = check_task_vectors(task_vectors)
    merged = torch.empty(d)
    for start, stop in blocks(d):
        total = torch.zeros(stop - start, dtype=torch.float64)
        for task in sorted(task_vectors):
            total += task_vectors[task][start:stop]
        merged[start:stop] = scale * total
    return merged


def ties(task_vectors: Mapping[str, Tensor], keep: float, scale: float) -> Tensor:
    """Trim, elect signs, mean of those that agree; (d,) float32: one vector for all tasks (Yadav et al., 2023).

    Parameters
    ----------
    task_vectors : mapping of str to Tensor
        τ^t by task, (d,) float32.
    keep : float in (0, 1]
        Share of each vector's parameters that survives: the largest by magnitude. All that are as large as the
        smallest survivor survive too.
    scale : float
        Of the result.

    Raises
    ------
    MergeError
        See `check_task_vectors`; or `keep` outside (0, 1].

    Notes
    -----
    The elected sign of a parameter is that of the sum of the trimmed vectors; zeros vote for nothing and are not
    counted in the mean.
    """
    if not 0 < keep <= 1:
        raise MergeError(f"keep = {keep} is outside (0, 1]: it is the share of parameters that survives trimming")
    d = check_task_vectors(task_vectors)
    tasks = sorted(task_vectors)
    least = {task: _smallest_survivor(task_vectors[task], keep) for task in tasks}
    merged = torch.empty(d)
    for start, stop in blocks(d):
        trimmed = []
        for task in tasks:
            part = task_vectors[task][start:stop].double()
            trimmed.append(torch.where(part.abs() >= least[task], part, 0.0))
        stacked = torch.stack(trimmed)  # (T, B)
        sigma = stacked.sum(dim=0).sign()
        agreeing = (stacked * sigma) > 0
        count = agreeing.sum(dim=0).clamp(min=1)
        merged[start:stop] = scale * (stacked * agreeing).sum(dim=0) / count
    return merged


def _smallest_survivor(vector: Tensor, keep: float) -> float:
    """Magnitude from which a parameter is among the largest `keep` share; at least one survives."""
    d = vector.numel()
    survivors = max(1, round(keep * d))
    return float(vector.abs().kthvalue(d - survivors + 1).values) if d else 0.0
