"""Bounds on the influence of a client on a round, for every method. It applies `merging.clipping` and `merging.robust`.

Vectors are bounded before a method merges them. Trained heads travel beside the vectors and are merged here. For a
head, the bound applies to its change: the head minus the one that the server holds, which is zeros before the first
round. The mean of a task's heads over its holders is of the same kind as the mean of their vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    """The mean by which the vectors of a task's holders become one, from `robust.mean` and `robust.trim`."""
    return HolderMean(robust.mean, robust.trim)


def clip_vectors(robust: RobustSettings) -> ClipOptions:
    """The bound on vectors, from `robust.clip-norm` and `robust.clip-factor`."""
    return ClipOptions(robust.clip_norm, robust.clip_factor)


def clip_heads(robust: RobustSettings) -> ClipOptions:
    """The bound on the changes of heads, from `robust.head-clip-norm` and `robust.clip-factor`."""
    return ClipOptions(robust.head_clip_norm, robust.clip_factor)


@dataclass(frozen=True)
class OfferedHeads:
    """One client's trained heads, its number of images, and the positions of the classes that it has none of, by task.

    A task that is missing in `absent` has images of every class.
    """

    client: str
    heads: Mapping[str, LinearHead]
    num_examples: Mapping[str, int]
    absent: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Influence:
    """Applies `settings.robust` to the replies of a round.

    Parameters
    ----------
    options : RobustSettings
        The bounds.
    one_vector : bool
        Whether clients send one vector for all of their tasks.
    """

    def __init__(self, options: RobustSettings, one_vector: bool) -> None:
        self.options, self.one_vector = options, one_vector
        self.mean = holder_mean(options)
        # What was shortened in this round, by "vectors" or "heads".
        self.clipped: Clipped = {}
        self._announced: set[str] = set()

    def counted(self, num_examples: Mapping[str, int]) -> dict[str, int]:
        """The number of images that a client counts for, by task: at most `robust.max-examples`, if that is set."""
        most = self.options.max_examples
        return {task: min(count, most) if most else count for task, count in num_examples.items()}

    def bound(self, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """Shorten a round's updates to their bounds.

        Call it before `merge_heads`, because it clears what was noted about the round before.
        """
        counted = [ClientUpdate(u.vectors, self.counted(u.num_examples), u.client) for u in updates]
        if self.mean.robust:
            self._announce(counted)
        bounded, ratios = clip_updates(counted, clip_vectors(self.options), one_vector=self.one_vector)
        self.clipped = {"vectors": ratios} if ratios else {}
        return bounded

    def merge_heads(self, offered: Sequence[OfferedHeads], before: Mapping[str, LinearHead]) -> dict[str, LinearHead]:
        """Take the mean of each task's heads over those that offer one. Clients started from the heads `before`.

        A client does not move the rows of classes that it has no images of: there it learned only that none of its
        images are of that class. The mean of a row is taken over those that have the class; a row of which nobody has
        images stays as it was.
        """
        offered = [settled(offer, before) for offer in sorted(offered, key=lambda offer: offer.client) if offer.heads]
        offered, ratios = self._clip_heads(offered, before)
        if ratios:
            self.clipped["heads"] = ratios
        merged = {}
        for task in sorted({task for offer in offered for task in offer.heads}):
            holders = [offer for offer in offered if task in offer.heads]
            merged[task] = self._mean_of_rows(task, holders)
        return merged

    def _mean_of_rows(self, task: str, holders: Sequence[OfferedHeads]) -> LinearHead:
        """The mean of a task's heads, each row over the holders that have its class."""
        weights = [self.counted(offer.num_examples)[task] for offer in holders]
        there = torch.ones(len(holders), holders[0].heads[task].bias.numel(), dtype=torch.bool)  # (holders, C)
        for row, offer in enumerate(holders):
            there[row, list(offer.absent.get(task, ()))] = False
        found: dict[str, Tensor] = {}
        for part, tensors in (
            ("weight", [offer.heads[task].weight for offer in holders]),
            ("bias", [offer.heads[task].bias for offer in holders]),
        ):
            merged = torch.empty_like(tensors[0])
            # As a rule all holders have all classes, and this is one mean over whole heads.
            for pattern in torch.unique(there, dim=1).T:
                rows = (there == pattern[:, None]).all(dim=0)
                # Where nobody has the class, all heads are as they were before: the first will do, and keeps its bits.
                whose = pattern.nonzero().flatten().tolist() or [0]
                parts = [tensors[i][rows] for i in whose]
                merged[rows] = mean_of(parts, [weights[i] for i in whose], self.mean).float()
            found[part] = merged
        return LinearHead(found["weight"], found["bias"])

    def event(self) -> Guards:
        """For the round's event, by client and task: the share of its length to which an update was shortened."""
        return {"clipped": self.clipped} if self.clipped else {}

    def _clip_heads(
        self, offered: Sequence[OfferedHeads], before: Mapping[str, LinearHead]
    ) -> tuple[list[OfferedHeads], dict[str, dict[str, float]]]:
        """Shorten the changes of heads to their bounds.

        Flattened, the changes are `SeparateTaskVectors`, so heads and vectors are clipped by the same function.
        """
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
                offer.absent,
            )
            for offer in offered
        ], ratios

    def _announce(self, updates: Sequence[ClientUpdate]) -> None:
        """Warn, once per task, when a robust mean cannot protect it because too few clients replied."""
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
                "robust.mean = %s can leave nothing out of fewer than %d replies: one is taken as it is, two are "
                "averaged without weights. These have no protection against a bad client: %s",
                self.options.mean,
                FEWEST,
                ", ".join(fresh),
            )


def settled(offer: OfferedHeads, before: Mapping[str, LinearHead]) -> OfferedHeads:
    """The same offer, with the rows of absent classes as they were before: zeros, or as in the server's head."""
    heads = dict(offer.heads)
    for task, absent in offer.absent.items():
        if absent and task in heads:
            rows, old = list(absent), before.get(task)
            weight, bias = heads[task].weight.clone(), heads[task].bias.clone()
            weight[rows], bias[rows] = (old.weight[rows], old.bias[rows]) if old else (0.0, 0.0)
            heads[task] = LinearHead(weight, bias)
    return replace(offer, heads=heads)


def flat(head: LinearHead | None, like: LinearHead | None = None) -> Tensor:
    """Weight and bias as one vector, (C · F + C,). Without a head: zeros, as many as the head `like` has numbers."""
    if head is None:
        assert like is not None
        return torch.zeros(like.weight.numel() + like.bias.numel())
    return torch.cat([head.weight.reshape(-1), head.bias])


def moved(before: LinearHead | None, head: LinearHead, ratio: float) -> LinearHead:
    """The head after only the share `ratio` of its change from `before`. A ratio of 1 gives the head itself."""
    if ratio == 1:
        return head
    start = (0.0, 0.0) if before is None else (before.weight, before.bias)
    return LinearHead(start[0] + ratio * (head.weight - start[0]), start[1] + ratio * (head.bias - start[1]))
