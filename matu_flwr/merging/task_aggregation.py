"""One task over its holders: agreement, aggregated mask, weighted mean (method, server steps 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from matu_flwr.merging.errors import MergeError
from matu_flwr.merging.masks import mask_block
from matu_flwr.merging.options import MergeOptions
from matu_flwr.merging.separate import TaskVectors
from matu_flwr.merging.unify import UnifiedTaskVector


@dataclass(frozen=True)
class ClientUpdate:
    """What one client sent for one round.

    Attributes
    ----------
    vectors : UnifiedTaskVector or SeparateTaskVectors
        Of the client's task vectors, or of this round's updates (payload = "update"). MaTU merges unified ones.
    num_examples : dict of str to int
        |D_n^t| by task: training examples, at least 1.
    client : str
        The client's name: replies are merged in the order of names, so their order of arrival does not matter.
    """

    vectors: TaskVectors
    num_examples: dict[str, int]
    client: str

    @property
    def modulated(self) -> UnifiedTaskVector:
        """The unified vector with its masks and rescalers, where the method needs one.

        Raises
        ------
        MergeError
            The client sent separate vectors.
        """
        if not isinstance(self.vectors, UnifiedTaskVector):
            raise MergeError(f"client {self.client!r} sent separate task vectors, expected one unified task vector")
        return self.vectors


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

    masked: sgn(m ⊙ τ). complete: sgn(τ) ⊙ (2m − 1): where τ ≠ 0 and the mask bit is 0 the task's own sign was not the
    elected one. A task with rescaler 0 has no direction, and all its signs are 0.
    """
    sigma = unified.vector[start:stop].sign().to(torch.int8)
    if unified.rescalers[task] == 0 and not unified.opposites.get(task):
        return sigma.zero_()
    mask = mask_block(unified.masks, task, start, stop)
    if options.signs == "masked":
        return sigma * mask
    return torch.where(mask, sigma, -sigma)


def aggregated_mask(alpha: Tensor, options: MergeOptions) -> Tensor:
    """m̂ from the agreement α, both (B,) float64."""
    if options.agreement == "none":
        return torch.ones_like(alpha)
    if options.agreement == "soft":
        return alpha
    agreed = alpha >= options.rho
    if options.agreement == "hard":
        return agreed.double()
    return torch.where(agreed, 1.0, alpha)


def aggregate_task(task: str, holders: list[ClientUpdate], start: int, stop: int, options: MergeOptions) -> TaskBlock:
    """Merge one task over its holders, for the block start..stop of the parameters.

    α^t = |1/|N_t| Σ_n s_n^t|,  τ̂^t = m̂^t ⊙ Σ_n γ_n^t τ̄_n^t  with γ_n^t = |D_n^t| / Σ_n |D_n^t|.
    """
    size, device = stop - start, holders[0].modulated.vector.device
    total_examples = sum(update.num_examples[task] for update in holders)
    votes = torch.zeros(size, dtype=torch.int32, device=device)
    weighted_votes = torch.zeros(size, dtype=torch.int64, device=device)
    tau = torch.zeros(size, dtype=torch.float64, device=device)
    for update in holders:
        sign = task_sign(update.modulated, task, start, stop, options)
        votes += sign
        gamma = update.num_examples[task] / total_examples
        tau += gamma * update.vectors.reconstruct_block(task, start, stop).double()
        if options.signs == "complete":
            weighted_votes += sign.long() * update.num_examples[task]  # int8 would overflow
    alpha = votes.abs().double() / len(holders)
    mask = aggregated_mask(alpha, options)
    tau *= mask
    direction = weighted_votes if options.signs == "complete" else tau
    return TaskBlock(tau, mask, direction.sign().to(torch.int8))
