"""One task over its holders: agreement, aggregated mask, weighted mean (method, server steps 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from matu_flwr.merging.averages import mean_of
from matu_flwr.merging.masks import mask_block
from matu_flwr.merging.options import MergeOptions
from matu_flwr.merging.robust import WEIGHTED, HolderMean
from matu_flwr.merging.task_vectors import ClientUpdate, UnifiedTaskVector


@dataclass(frozen=True)
class TaskBlock:
    """One task over one block of B parameters.

    Attributes
    ----------
    tau : Tensor
        τ̂^t, (B,) float64.
    mask : Tensor
        m̂^t, (B,) float64 in [0, 1].
    sign : Tensor
        (B,) int8 in {-1, 0, 1}: the direction that the task graph compares.
    """

    tau: Tensor
    mask: Tensor
    sign: Tensor


def task_sign(unified: UnifiedTaskVector, task: str, start: int, stop: int, options: MergeOptions) -> Tensor:
    """Sign of one client's vector of `task`, (B,) int8.

    complete: sgn(τ) ⊙ (2m − 1): where τ ≠ 0 and the mask bit is 0 the task's own sign was not the elected one.
    masked, as published: sgn(m ⊙ τ). A task with rescaler 0 has no direction, and all its signs are 0.
    """
    sigma = unified.vector[start:stop].sign().to(torch.int8)
    if unified.rescalers[task] == 0 and not unified.opposites.get(task):
        return sigma.zero_()
    mask = mask_block(unified.masks, task, start, stop)
    return torch.where(mask, sigma, -sigma) if options.signs == "complete" else sigma * mask


def aggregated_mask(alpha: Tensor, options: MergeOptions) -> Tensor:
    """m̂ from the agreement α, both (B,) float64: 1 everywhere; or as published, 1 where α ≥ ρ and α elsewhere."""
    if options.agreement == "none":
        return torch.ones_like(alpha)
    if options.agreement == "soft":
        return alpha
    agreed = alpha >= options.rho
    if options.agreement == "hard":
        return agreed.double()
    return torch.where(agreed, 1.0, alpha)


def aggregate_task(
    task: str,
    holders: Sequence[ClientUpdate],
    start: int,
    stop: int,
    options: MergeOptions,
    mean: HolderMean = WEIGHTED,
) -> TaskBlock:
    """Merge one task over its holders, for the block start..stop of the parameters.

    α^t = |1/|N_t| Σ_n s_n^t|,  τ̂^t = m̂^t ⊙ Σ_n γ_n^t τ̄_n^t  with γ_n^t = |D_n^t| / Σ_n |D_n^t|.

    With a robust mean weights play no part, in the direction neither: every holder counts once.
    """
    # step 1: α counts holders, and m̂ follows from it
    signs = [task_sign(update.modulated, task, start, stop, options) for update in holders]  # (B,) int8 each
    votes = torch.stack(signs).sum(dim=0, dtype=torch.int32)
    mask = aggregated_mask(votes.abs().double() / len(holders), options)
    # step 2: the mean of what the server reconstructs
    examples = [update.num_examples[task] for update in holders]
    vectors = (update.vectors.reconstruct_block(task, start, stop) for update in holders)
    tau = mean_of(vectors, examples, mean) * mask  # (B,) float64
    # for step 3: the holders' vote, weighted as their vectors are; as published, the sign of τ̂
    if options.signs == "masked":
        return TaskBlock(tau, mask, tau.sign().to(torch.int8))
    direction = torch.zeros_like(votes, dtype=torch.int64)  # whole numbers, so never doubtful
    for sign, count in zip(signs, examples, strict=True):
        direction += sign.long() * (1 if mean.robust else count)
    return TaskBlock(tau, mask, direction.sign().to(torch.int8))
