"""Per-task FedAvg: one vector per task, averaged over the clients that hold the task.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data. AISTATS 2017. https://arxiv.org/abs/1602.05629

No other method sends more: a client with k tasks sends and gets k vectors, which MaTU compresses into one.
"""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from matu_flwr.client.rule import Rule, Separate
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.registration import Client
from matu_flwr.merging import ClientUpdate, SeparateTaskVectors, TaskGraph, TaskVectors
from matu_flwr.merging.averages import mean_by_task


class PerTaskFedAvg(ManyTaskStrategy):
    """FedAvg for every task by itself; see `ManyTaskStrategy` for the parameters."""

    about = "one vector per task, averaged over its holders"
    paper = "https://arxiv.org/abs/1602.05629"

    rule: ClassVar[type[Rule]] = Separate
    robust_mean = True

    @override
    def downlink_vector(self, client: Client) -> TaskVectors | None:
        """The vectors of the client's tasks. None while all of them are at θ_p."""
        if not self.task_vectors.keys() & client.tasks.keys():
            return None
        return SeparateTaskVectors({task: self.task_vector(task) for task in client.tasks})

    @override
    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Take the mean over the holders of each task, weighted by images. A task without a reply stays as it was."""
        self.task_vectors |= mean_by_task(updates, self.d, self.influence.mean)
        return None
