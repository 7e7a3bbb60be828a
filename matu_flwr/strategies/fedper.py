"""FedPer: the last blocks and the heads stay at the clients, the rest is averaged.

Arivazhagan, Aggarwal, Singh, Choudhary: Federated Learning with Personalization Layers. 2019.
https://arxiv.org/abs/1912.00818

A client with several tasks has one personal part for all of them, and a head per task. The personal part is the last
`fedper.blocks` transformer blocks and what follows them; it lies in the client's own state and is not sent.
"""

from __future__ import annotations

from typing import Any, ClassVar

from matu_flwr.local.rules import FedPer as FedPerRule
from matu_flwr.local.rules import Rule
from matu_flwr.merging import ClientUpdate, TaskGraph
from matu_flwr.settings import Settings
from matu_flwr.strategies.base import ModelInfo
from matu_flwr.strategies.fedavg import FedAvg, mean_of_clients


class FedPer(FedAvg):
    """FedAvg's server over the first part of the vector.

    The server has no whole model of any task, unless nothing is personal (`fedper.blocks` = 0).

    Raises
    ------
    BackboneError
        The backbone has fewer blocks than `fedper.blocks`.
    """

    rule: ClassVar[type[Rule]] = FedPerRule

    def __init__(self, settings: Settings, model: ModelInfo, **arguments: Any) -> None:
        super().__init__(settings, model, **arguments)
        self.d = self.rule.shared_length(model.layout, settings)

    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Σ n_k τ_k / Σ n_k of the shared part."""
        self.mean = mean_of_clients(updates, self.d, self.influence.mean)
        if self.d == self.model.d:
            self.task_vectors = dict.fromkeys(self.classes, self.mean)
        return None
