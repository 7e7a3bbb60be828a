"""What bounds a client's influence on a round, for every method: `merging.clipping` and `merging.robust` applied.

Vectors are bounded before a method merges them. Trained heads travel beside them and are merged here. What is bounded
is the change of a head against the one that the server holds (zeros before the first round), among the changes of all
heads of the round. Their mean over a task's holders is taken in the same way as that of the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import WARNING

import torch
from flwr.common.logger import log
from torch import Tensor

from matu_flwr.backbones import LinearHead
from matu_flwr.config.sections import RobustSettings
from matu_flwr.events import Clipped, Guards
from matu_flwr.merging import ClientUpdate, ClipOptions, HolderMean, SeparateTaskVectors, clip_updates
from matu_flwr.merging.averages import mean_of
from matu_flwr.merging.robust import FEWEST


def holder_mean(robust: RobustSettings) -> HolderMean:
    """How the vectors of a task's holders become one."""
    return HolderMean(robust.mean, robust.trim)


def clip_vectors(robust: RobustSettings) -> ClipOptions:
    """Bound on vectors."""
    return ClipOptions(robust.clip_norm, robust.clip_factor)


def clip_heads(robust: RobustSettings) -> ClipOptions:
    """Bound on the changes of heads."""
    return ClipOptions(robust.head_clip_norm, robust.clip_factor)


@dataclass(frozen=True)
class OfferedHeads:
    """One client's trained heads, with its images by task."""

    client: str
    heads: Mapping[str, LinearHead]
    num_examples: Mapping[str, int]


class Influence:
    """Applies `settings.robust` to the replies of a round.

    Parameters
    ----------
    options : RobustSettings
        What bounds a client.
    one_vector : bool
        Clients send one vector for all of their tasks.
    """

    def __init__(self, options: RobustSettings, one_vector: bool) -> None:
        self.options, self.one_vector = options, one_vector
        self.mean = holder_mean(options)
        self.clipped: Clipped = {}  # of the round, by "vectors" or "heads"
        self._announced: set[str] = set()

    def counted(self, num_examples: Mapping[str, int]) -> dict[str, int]:
        """Images that a client counts for."""
        most = self.options.max_examples
        return {task: min(count, most) if most else count for task, count in num_examples.items()}

    def bound(self, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """Shorten a round's updates to their bounds. Call it before `merge_heads`: it begins the notes of a round."""
        counted = [ClientUpdate(u.vectors, self.counted(u.num_examples), u.client) for u in updates]
        if self.mean.robust:
            self._announce(counted)
        bounded, ratios = clip_updates(counted, clip_vectors(self.options), one_vector=self.one_vector)
        self.clipped = {"vectors": ratios} if ratios else {}
        return bounded

    def merge_heads(self, offered: Sequence[OfferedHeads], before: Mapping[str, LinearHead]) -> dict[str, LinearHead]:
        """Mean of each task's heads over those that offer one; `before` are the heads that clients started from."""
        offered = [offer for offer in sorted(offered, key=lambda offer: offer.client) if offer.heads]
        offered, ratios = self._clip_heads(offered, before)
        if ratios:
            self.clipped["heads"] = ratios
        merged = {}
        for task in sorted({task for offer in offered for task in offer.heads}):
            holders = [offer for offer in offered if task in offer.heads]
            heads = [offer.heads[task] for offer in holders]
            weights = [self.counted(offer.num_examples)[task] for offer in holders]
            merged[task] = LinearHead(
                mean_of([head.weight for head in heads], weights, self.mean).float(),
                mean_of([head.bias for head in heads], weights, self.mean).float(),
            )
        return merged

    def event(self) -> Guards:
        """For the round's event: by client and task, to which share of its length an update was shortened."""
        return {"clipped": self.clipped} if self.clipped else {}

    def _clip_heads(
        self, offered: Sequence[OfferedHeads], before: Mapping[str, LinearHead]
    ) -> tuple[list[OfferedHeads], dict[str, dict[str, float]]]:
        """Bound the changes of heads. Flattened, they are `SeparateTaskVectors`, so the same function serves both."""
        options = clip_heads(self.options)
        if options.norm == 0 and options.factor == 0:
            return list(offered), {}
        changes = [
            ClientUpdate(
                SeparateTaskVectors({t: flat(head) - flat(before.get(t), head) for t, head in offer.heads.items()}),
                dict(offer.num_examples),
                offer.client,
            )
            for offer in offered
        ]
        _, ratios = clip_updates(changes, options)
        return [
            OfferedHeads(
                offer.client,
                {
                    task: moved(before.get(task), head, ratios.get(offer.client, {}).get(task, 1.0))
                    for task, head in offer.heads.items()
                },
                offer.num_examples,
            )
            for offer in offered
        ], ratios

    def _announce(self, updates: Sequence[ClientUpdate]) -> None:
        """Warn, once per task, that a robust mean cannot protect it: it has too few replies to leave one out."""
        tasks = {task for update in updates for task in update.num_examples}
        few = (
            {"the one vector of all tasks"}
            if self.one_vector and len(updates) < FEWEST
            else {t for t in tasks if sum(t in u.num_examples for u in updates) < FEWEST and not self.one_vector}
        )
        fresh = sorted(few - self._announced)
        self._announced |= few
        if fresh:
            log(
                WARNING,
                "robust.mean = %s leaves nothing out of fewer than %d replies: one is taken as it is, two are averaged "
                "without weights. No protection against a bad holder of: %s",
                self.options.mean,
                FEWEST,
                ", ".join(fresh),
            )


def flat(head: LinearHead | None, like: LinearHead | None = None) -> Tensor:
    """Weight and bias in one (C · F + C,) vector; zeros of that shape without a head."""
    if head is None:
        assert like is not None
        return torch.zeros(like.weight.numel() + like.bias.numel())
    return torch.cat([head.weight.reshape(-1), head.bias])


def moved(before: LinearHead | None, head: LinearHead, ratio: float) -> LinearHead:
    """Where a head is after `ratio` of its change; the head itself for 1."""
    if ratio == 1:
        return head
    start = (0.0, 0.0) if before is None else (before.weight, before.bias)
    return LinearHead(start[0] + ratio * (head.weight - start[0]), start[1] + ratio * (head.bias - start[1]))
