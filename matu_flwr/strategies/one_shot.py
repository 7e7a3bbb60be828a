"""What one-shot merging methods share: clients train alone, send their vectors once, and get the merged model.

The literature merges finished models, one per task. Here every holder of a task fine-tunes it alone for all rounds,
and sends its vector after the last one. The mean over the holders, weighted by images, is the vector of the task. The
server then merges all tasks once, and clients test what they get. Before that, no vector travels, and only θ_p is
tested.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from matu_flwr.backbones import LinearHead
from matu_flwr.client.rule import Alone, Rule
from matu_flwr.config.settings import Settings
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.registration import Client
from matu_flwr.merging import PAPER, ClientUpdate, PayloadKind, TaskGraph, TaskVectors, UnifiedTaskVector, unify
from matu_flwr.merging.averages import mean_by_task


class OneShotRule(Alone):
    """The client of one-shot methods: it trains alone, and sends its vectors once, after the last round's training."""

    @classmethod
    @override
    def payload(cls, settings: Settings, round_: int) -> PayloadKind:
        """One vector per task in the last round, and nothing before."""
        return "separate" if round_ == settings.rounds else "nothing"

    @classmethod
    @override
    def shares_heads(cls, settings: Settings, round_: int) -> bool:
        """Whether heads travel: in the last round, together with the vectors, if they are to be averaged."""
        return settings.train.heads == "average" and round_ == settings.rounds

    @override
    def start(self, task: str) -> Tensor | None:
        """The merged model once there is one, and the client's own model until then; (d,) float32, None is θ_p."""
        received = self.work.received
        return received.reconstruct(task) if received is not None else super().start(task)

    @override
    def head(self, task: str) -> LinearHead:
        """The averaged head once there is one, and the client's own head until then. A frozen head comes first."""
        work = self.work
        return work.frozen.get(task) or work.heads.get(task) or super().head(task)


class OneShotMerge(ManyTaskStrategy):
    """Base of the methods that merge all tasks once; see `ManyTaskStrategy` for the parameters."""

    rule: ClassVar[type[Rule]] = OneShotRule
    kept: ClassVar[tuple[str, ...]] = (*ManyTaskStrategy.kept, "merged")
    robust_mean = True
    merged: UnifiedTaskVector | None = None
    """The merged vector of all tasks, with modulators; None before the end."""

    @abstractmethod
    def merge_tasks(self, task_vectors: Mapping[str, Tensor]) -> UnifiedTaskVector:
        """Merge the vectors of all tasks, each (d,) float32, into one unified vector with modulators."""

    @override
    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Take the mean over the holders of each task; then merge all tasks."""
        self.merged = self.merge_tasks(mean_by_task(updates, self.d, self.influence.mean))
        self.task_vectors = {task: self.merged.reconstruct(task) for task in self.merged.tasks}
        return None

    @override
    def downlink_vector(self, client: Client) -> TaskVectors | None:
        """The merged vector, with the modulators of the client's tasks. None before the end."""
        if self.merged is None:
            return None
        known = [task for task in client.tasks if task in self.merged.rescalers]
        # A task that came in no reply is missing from the merge. The client's tasks are then unified by themselves,
        # with the missing one at θ_p.
        if len(known) < len(client.tasks):
            return unify({task: self.task_vector(task) for task in client.tasks}, **PAPER)
        masks, rescalers = self.merged.masks, self.merged.rescalers
        return UnifiedTaskVector(
            self.merged.vector, {task: masks[task] for task in known}, {task: rescalers[task] for task in known}
        )

    @override
    def is_tested(self, server_round: int) -> bool:
        """False: there is no merged model to test before the last round."""
        return False

    @override
    def sample(self, server_round: int) -> list[Client]:
        """All clients in the last round, since everybody sends its vectors then."""
        return list(self.clients) if server_round == self.num_rounds else super().sample(server_round)
