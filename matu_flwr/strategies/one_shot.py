"""What one-shot merging methods share: clients train alone, send their vectors once, and get what was merged.

The literature merges models that were fine-tuned to the end, one per task. Here holders of a task fine-tune it for all
rounds, each alone, and send its vector after the last; their mean, weighted by images, is the task's vector. Then all
tasks are merged, and clients test what they get. Up to then nothing is tested but θ_p, and nothing travels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from matu_flwr.backbones import LinearHead
from matu_flwr.client.rule import Alone, Rule
from matu_flwr.config.settings import Settings
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.registration import Client
from matu_flwr.merging import PAPER, ClientUpdate, PayloadKind, TaskGraph, TaskVectors, UnifiedTaskVector, unify
from matu_flwr.merging.averages import mean_by_task


class OneShotRule(Alone):
    """Sends its vectors once, after the last round's training: what one-shot merging methods merge."""

    @classmethod
    def payload(cls, settings: Settings, round_: int) -> PayloadKind:
        """A vector per task, in the last round."""
        return "separate" if round_ == settings.rounds else "nothing"

    @classmethod
    def shares_heads(cls, settings: Settings, round_: int) -> bool:
        """Heads go with the vectors."""
        return settings.train.heads == "average" and round_ == settings.rounds

    def start(self, task: str) -> Tensor | None:
        """The merged model, once there is one."""
        received = self.work.received
        return received.reconstruct(task) if received is not None else super().start(task)

    def head(self, task: str) -> LinearHead:
        """The averaged head, once there is one."""
        work = self.work
        return work.frozen.get(task) or work.heads.get(task) or super().head(task)


class OneShotMerge(ManyTaskStrategy):
    """Base of the methods that merge all tasks once; see `ManyTaskStrategy` for the parameters."""

    rule: ClassVar[type[Rule]] = OneShotRule
    kept: ClassVar[tuple[str, ...]] = (*ManyTaskStrategy.kept, "merged")
    robust_mean = True
    merged: UnifiedTaskVector | None = None
    """All tasks in one vector."""

    @abstractmethod
    def merge_tasks(self, task_vectors: Mapping[str, Tensor]) -> UnifiedTaskVector:
        """All tasks' vectors, each (d,) float32, in one."""

    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Mean over the holders of each task; then all tasks."""
        self.merged = self.merge_tasks(mean_by_task(updates, self.d, self.influence.mean))
        self.task_vectors = {task: self.merged.reconstruct(task) for task in self.merged.tasks}
        return None

    def downlink_vector(self, client: Client) -> TaskVectors | None:
        """The one vector, with the modulators of the client's tasks; None before the end."""
        if self.merged is None:
            return None
        known = [task for task in client.tasks if task in self.merged.rescalers]
        if len(known) < len(client.tasks):
            return unify({task: self.task_vector(task) for task in client.tasks}, **PAPER)
        masks, rescalers = self.merged.masks, self.merged.rescalers
        return UnifiedTaskVector(
            self.merged.vector, {task: masks[task] for task in known}, {task: rescalers[task] for task in known}
        )

    def is_tested(self, server_round: int) -> bool:
        """There is nothing to test on the way."""
        return False

    def sample(self, server_round: int) -> list[Client]:
        """Everybody sends in the last round."""
        return list(self.clients) if server_round == self.num_rounds else super().sample(server_round)
