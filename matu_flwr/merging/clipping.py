"""Bounds on how far one client can move a task: the norm of what it sends, and how many images it counts for.

A contribution is x = τ̄_n^t, what the server reconstructs of client n for task t (a client with one vector for all of
its tasks makes one contribution). It is scaled to

    x ← x · min(1, C / ‖x‖₂),    C = min(clip_norm, clip_factor · R)

    R = lower median over clients n of (lower median over its tasks t of ‖τ̄_n^t‖₂)

x is linear in λ and λ₋, so scaling those two numbers scales x: nothing is unpacked. R is taken over the whole round,
not over a task's holders, because a task often has one or two: the median of one is the holder's own norm, which bounds
nothing. One client has one vote, whatever the number of its tasks; and a lower median cannot be raised above the
largest honest norm while at most half of the clients are hostile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from matu_flwr.merging.blocks import blocks
from matu_flwr.merging.errors import MergeError
from matu_flwr.merging.masks import mask_block
from matu_flwr.merging.task_vectors import ClientUpdate, SeparateTaskVectors, TaskVectors, UnifiedTaskVector

TaskNorms = Mapping[str, Mapping[str, float]]
"""‖τ̄_n^t‖₂ by client and task."""


@dataclass(frozen=True)
class ClipOptions:
    """How contributions are bounded.

    Attributes
    ----------
    norm : float ≥ 0
        C in the units of the vectors; 0 = no such bound.
    factor : float ≥ 0
        C in units of R, the round's median norm; 0 = no such bound.

    Raises
    ------
    MergeError
        A value that is negative or not finite.
    """

    norm: float = 0.0
    factor: float = 0.0

    def __post_init__(self) -> None:
        for name in ("norm", "factor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise MergeError(f"clip {name} = {value}: expected a finite number ≥ 0; 0 = no such bound")

    def limit(self, norms: TaskNorms) -> float:
        """C for a round with these norms; infinity without a bound."""
        absolute = self.norm if self.norm > 0 else math.inf
        relative = self.factor * reference_norm(norms) if self.factor > 0 else math.inf
        return min(absolute, relative)


def lower_median(values: Sequence[float]) -> float:
    """The middle value; of an even number, the smaller of the two in the middle."""
    return sorted(values)[(len(values) - 1) // 2]


def reference_norm(norms: TaskNorms) -> float:
    """R: lower median over clients of the lower median over each one's tasks."""
    return lower_median([lower_median(list(of_client.values())) for of_client in norms.values()])


def clip_ratio(norm: float, limit: float) -> float:
    """min(1, C / ‖x‖)."""
    return 1.0 if norm <= limit else limit / norm


def task_norms(vectors: TaskVectors) -> dict[str, float]:
    """‖τ̄^t‖₂ by task, block by block in float64; nothing of length d is made."""
    if isinstance(vectors, UnifiedTaskVector):
        return _unified_norms(vectors)
    return {task: _norm(vectors.vectors[task]) for task in vectors.tasks}


def _norm(vector: Tensor) -> float:
    return math.sqrt(math.fsum(float(_squares(vector, *block).sum()) for block in blocks(vector.numel())))


def _squares(vector: Tensor, start: int, stop: int) -> Tensor:
    return vector[start:stop].double().square_()


def _unified_norms(unified: UnifiedTaskVector) -> dict[str, float]:
    """‖τ̄^t‖² = λ² Σ_{m=1} τ² + λ₋² Σ_{m=0} τ², in one pass over τ for all tasks."""
    kept = {task: [0.0, 0.0] for task in unified.tasks}  # over set, over cleared bits
    for start, stop in blocks(unified.d):
        squares = _squares(unified.vector, start, stop)
        for task, sums in kept.items():
            # A scalar product with the mask as numbers is several times as fast as a product with bits and its sum.
            mask = mask_block(unified.masks, task, start, stop).double()
            sums[0] += float(torch.dot(squares, mask))
            if unified.opposites:
                sums[1] += float(torch.dot(squares, mask.neg_().add_(1)))
    return {
        # Two roots, not one: λ² Σ τ² may leave float64 where the norm itself does not.
        task: math.hypot(
            unified.rescalers[task] * math.sqrt(sums[0]),
            unified.opposites.get(task, 0.0) * math.sqrt(sums[1]),
        )
        for task, sums in kept.items()
    }


def scaled(vectors: TaskVectors, ratios: Mapping[str, float]) -> TaskVectors:
    """The same task vectors, each times its ratio: modulators of a unified vector, else new vectors where ratio ≠ 1."""
    if isinstance(vectors, UnifiedTaskVector):
        return replace(
            vectors,
            rescalers={task: ratios[task] * value for task, value in vectors.rescalers.items()},
            opposites={task: ratios[task] * value for task, value in vectors.opposites.items()},
        )
    return SeparateTaskVectors(
        {t: v if ratios[t] == 1 else v.float() * ratios[t] for t, v in vectors.vectors.items()},
    )


def clip_updates(
    updates: Sequence[ClientUpdate], options: ClipOptions, *, one_vector: bool = False
) -> tuple[list[ClientUpdate], dict[str, dict[str, float]]]:
    """Bound the norm of every contribution of a round.

    Parameters
    ----------
    updates : sequence of ClientUpdate
        In any order.
    options : ClipOptions
        What bounds them.
    one_vector : bool
        Every client sent one vector for all of its tasks: it is one contribution, read under its first task's name.

    Returns
    -------
    updates : list of ClientUpdate
        In the order given; those within the bound are the same objects.
    ratios : dict
        By client and task, min(1, C / ‖x‖) of the contributions that were shortened.
    """
    if not updates or (options.norm == 0 and options.factor == 0):
        return list(updates), {}
    norms: dict[str, dict[str, float]] = {}
    for update in updates:
        found = task_norms(update.vectors)
        norms[update.client] = dict.fromkeys(found, found[min(found)]) if one_vector else found
    limit = options.limit(norms)
    clipped, shortened = [], {}
    for update in updates:
        ratios = {task: clip_ratio(norm, limit) for task, norm in norms[update.client].items()}
        below = {task: ratio for task, ratio in ratios.items() if ratio < 1}
        if below:
            shortened[update.client] = below
            update = replace(update, vectors=scaled(update.vectors, ratios))
        clipped.append(update)
    return clipped, shortened
