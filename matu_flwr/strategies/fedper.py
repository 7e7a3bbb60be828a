"""FedPer: the last blocks and the heads stay at the clients, the rest is averaged.

Arivazhagan, Aggarwal, Singh, Choudhary: Federated Learning with Personalization Layers. 2019.
https://arxiv.org/abs/1912.00818

A client with several tasks has one personal part for all of them, and a head per task. The personal part is the last
`fedper.blocks` transformer blocks and what follows them; it lies in the client's own state and is not sent.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from matu_flwr.backbones.trainable import length_before_last_blocks
from matu_flwr.client.fit import Span
from matu_flwr.client.rule import Fitted, Joint, Rule
from matu_flwr.config.settings import Settings
from matu_flwr.federation.model_info import ModelInfo
from matu_flwr.merging import ClientUpdate, TaskGraph
from matu_flwr.strategies.fedavg import FedAvg, mean_of_clients
from matu_flwr.vectors import ParameterLayout


class FedPerRule(Joint):
    """Sends and receives the first parameters only; the last K blocks, and what follows them, stay.

    A client has one personal part for all of its tasks, as the one backbone has, and a head per task. With K = 0
    nothing stays, the heads included.
    """

    @classmethod
    def keeps_state(cls, settings: Settings) -> bool:
        """The last blocks."""
        return True

    @classmethod
    def keeps_heads(cls, settings: Settings) -> bool:
        """Heads are personal, as the blocks before them."""
        return settings.fedper.blocks > 0 or super().keeps_heads(settings)

    @classmethod
    def shared_length(cls, layout: ParameterLayout, settings: Settings) -> int:
        """Parameters before the last K blocks."""
        return length_before_last_blocks(layout, settings.fedper.blocks)

    def common_start(self) -> Tensor | None:
        """What was received, followed by the client's own part."""
        shared, own = super().common_start(), self.work.own.get("personal")
        if shared is None and own is None:
            return None
        layout = self.work.backbone.layout
        start = torch.zeros(layout.d)
        cut = self.shared_length(layout, self.work.settings)
        if shared is not None:
            start[:cut] = shared
        if own is not None:
            start[cut:] = own
        return start

    def train(self, span: Span) -> Fitted:
        """Train everything; cut the result in two."""
        fitted = super().train(span)
        vector = next(iter(fitted.vectors.values()))
        cut = self.shared_length(self.work.backbone.layout, self.work.settings)
        shared = dict.fromkeys(fitted.vectors, vector[:cut].contiguous())
        return Fitted(shared, fitted.heads, fitted.losses, {"personal": vector[cut:].contiguous()})


class FedPer(FedAvg):
    """FedAvg's server over the first part of the vector.

    The server has no whole model of any task, unless nothing is personal (`fedper.blocks` = 0).

    Raises
    ------
    BackboneError
        The backbone has fewer blocks than `fedper.blocks`.
    """

    about = "the last blocks and the heads are personal"
    paper = "https://arxiv.org/abs/1912.00818"
    section = "fedper"

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
