"""The client's and the server's arithmetic in plain torch, block by block: for devices without kernels of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from matu_flwr.merging.cross_task import combine_related
from matu_flwr.merging.masks import pack, packed_length
from matu_flwr.merging.options import Magnitude, MergeOptions
from matu_flwr.merging.task_aggregation import ClientUpdate, TaskBlock, aggregate_task
from matu_flwr.merging.task_graph import SignAgreement
from matu_flwr.merging.unify import Norms, blocks

BLOCK = 1 << 22  # parameters handled at a time; a multiple of 8


def unify_in_torch(
    taus: Sequence[Tensor], *, packed: bool, magnitude: Magnitude = "max"
) -> tuple[Tensor, list[Tensor], list[Norms]]:
    """What `unify_on_cpu` does, in torch's operations on whatever device the vectors are on."""
    d, device = taus[0].numel(), taus[0].device
    unified = torch.empty(d, device=device)
    if packed:
        masks = [torch.empty(packed_length(d), dtype=torch.uint8, device=device) for _ in taus]
    else:
        masks = [torch.empty(d, dtype=torch.bool, device=device) for _ in taus]
    norms = torch.zeros(len(taus), 5, dtype=torch.float64, device=device)  # the fields of Norms
    for start, stop in blocks(d) if device.type == "cpu" else _ranges(d):
        parts = [tau[start:stop] for tau in taus]
        total = torch.zeros(stop - start, dtype=torch.float64, device=device)
        for tau in parts:
            total += tau
        sigma = total.sign_().float()  # (B,) in {-1, 0, 1}
        mu = _largest_agreeing(parts, sigma) if magnitude == "max" else _mean_magnitude(parts, sigma)
        torch.mul(sigma, mu, out=unified[start:stop])
        elected = mu.double()
        sigma *= mu > 0  # a mean of the smallest numbers may be rounded to 0
        for row, tau in enumerate(parts):
            # sgn τ^t = σ, which is τ^t ⊙ τ > 0 without the underflow of a product of two tiny numbers.
            mask = tau * sigma > 0
            if packed:
                masks[row][start // 8 : packed_length(stop)] = pack(mask)
            else:
                masks[row][start:stop] = mask
            own, cleared = tau.double().abs_(), ~mask & (elected > 0)
            parts_of_norms = (own, elected * mask, own * mask, own * cleared, elected * cleared)
            norms[row] += torch.stack([part.sum() for part in parts_of_norms])
    return unified, masks, [Norms(*row) for row in norms.tolist()]


def _largest_agreeing(taus: Sequence[Tensor], sigma: Tensor) -> Tensor:
    """μ of EMR-Merging, (B,) float32.

    τ^t ⊙ σ is |τ^t| where the task agrees with the elected sign and ≤ 0 elsewhere, so its maximum over tasks is μ.
    Where σ ≠ 0 at least one task agrees; where σ = 0 all products are 0.
    """
    mu = torch.zeros_like(sigma)
    for tau in taus:
        torch.maximum(mu, tau * sigma, out=mu)
    return mu


def _mean_magnitude(taus: Sequence[Tensor], sigma: Tensor) -> Tensor:
    """Mean of |τ^t| over the tasks where σ ≠ 0, (B,) float32."""
    total = torch.zeros(sigma.shape, dtype=torch.float64, device=sigma.device)
    for tau in taus:
        total += tau.abs()
    count = torch.full_like(total[:1], len(taus))  # by a number of the host a GPU multiplies with its reciprocal
    return (total / count).float().mul_(sigma != 0)


class MergeInTorch:
    """What `MergeOnCpu` does, in torch's operations on whatever device the replies are on."""

    def __init__(
        self, updates: Sequence[ClientUpdate], tasks: list[str], options: MergeOptions, merged: Tensor
    ) -> None:
        self.updates, self.tasks, self.options, self.merged = updates, tasks, options, merged
        self.holders = {task: [update for update in updates if task in update.num_examples] for task in tasks}

    def merge(self) -> tuple[SignAgreement, int | None]:
        """Pass 1: τ̂^t of every task, where directions agree, and the first client whose vector has NaN or infinity."""
        for n, update in enumerate(self.updates):
            if any(not bool(torch.isfinite(part).all()) for part in torch.split(update.modulated.vector, BLOCK)):
                return SignAgreement(len(self.tasks)), n
        counts = SignAgreement(len(self.tasks))
        for start, stop in self.ranges():
            signs = torch.empty(len(self.tasks), stop - start, dtype=torch.int8, device=self.merged.device)
            for row, task in enumerate(self.tasks):
                block = self.block(task, start, stop)
                self.merged[row, start:stop] = block.tau
                signs[row] = block.sign
            counts.add(SignAgreement.of(signs))
        return counts, None

    def combine(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        """Pass 2: the cross-task step, in place."""
        index = {task: row for row, task in enumerate(self.tasks)}
        for start, stop in self.ranges():
            tau_hat = self.merged[:, start:stop].double()  # (T, B), a copy: every task reads the others as they were
            for task, others in weights.items():
                mask = self.block(task, start, stop).mask
                related = {other: tau_hat[index[other]] for other in others}
                row = index[task]
                self.merged[row, start:stop] = combine_related(tau_hat[row], mask, related, others, self.options)

    def ranges(self) -> Iterable[tuple[int, int]]:
        """Blocks of parameters."""
        return _ranges(self.merged.shape[1])

    def block(self, task: str, start: int, stop: int) -> TaskBlock:
        """One task over its holders."""
        return aggregate_task(task, self.holders[task], start, stop, self.options)


def _ranges(d: int) -> list[tuple[int, int]]:
    """Blocks that a GPU takes at a time."""
    return [(start, min(start + BLOCK, d)) for start in range(0, d, BLOCK)]
