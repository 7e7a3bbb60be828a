"""FedPer: the last blocks and the heads stay at the clients, the rest is averaged.

Arivazhagan, Aggarwal, Singh, Choudhary: Federated Learning with Personalization Layers. 2019.
https://arxiv.org/abs/1912.00818

The personal part of the backbone is its last `fedper.blocks` transformer blocks, and what follows them. It lies in the
client's own files and is not sent. A client with several tasks has one personal part for all of them, and a head per
task.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from matu_flwr.backbones.trainable import length_before_last_blocks
from matu_flwr.client.fit import Span
from matu_flwr.client.rule import Fitted, Joint, Rule
from matu_flwr.config.settings import Settings
from matu_flwr.federation.model_info import ModelInfo
from matu_flwr.merging import ClientUpdate, TaskGraph
from matu_flwr.strategies.fedavg import FedAvg, mean_of_clients
from matu_flwr.vectors import ParameterLayout


class FedPerRule(Joint):
    """FedPer's client: it sends and receives only the parameters before the last K blocks (K = `fedper.blocks`).

    With K = 0 nothing is personal: the whole backbone travels, and so do the heads unless `train.heads` keeps them.
    """

    @classmethod
    @override
    def keeps_state(cls, settings: Settings) -> bool:
        return True

    @classmethod
    @override
    def keeps_heads(cls, settings: Settings) -> bool:
        """Whether heads stay at the client. They do wherever blocks before them stay."""
        return settings.fedper.blocks > 0 or super().keeps_heads(settings)

    @classmethod
    @override
    def shared_length(cls, layout: ParameterLayout, settings: Settings) -> int:
        """Number of parameters before the last K blocks."""
        return length_before_last_blocks(layout, settings.fedper.blocks)

    @override
    def common_start(self) -> Tensor | None:
        """The parameters that were received, followed by the client's own: (d,) float32. None if there is neither."""
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

    @override
    def train(self, span: Span) -> Fitted:
        """Train the whole backbone. Send its first part, and keep the rest."""
        fitted = super().train(span)
        # Any task will do: a client has one backbone for all of them.
        vector = next(iter(fitted.vectors.values()))
        cut = self.shared_length(self.work.backbone.layout, self.work.settings)
        shared = dict.fromkeys(fitted.vectors, vector[:cut].contiguous())
        return Fitted(shared, fitted.heads, fitted.losses, {"personal": vector[cut:].contiguous()})


class FedPer(FedAvg):
    """FedAvg's server, for the part of the vector that travels.

    The server never has a whole model of a task, unless nothing is personal (`fedper.blocks` = 0).

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

    @override
    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Take FedAvg's mean of the part that travels."""
        self.mean = mean_of_clients(updates, self.d, self.influence.mean)
        # `task_vectors` holds whole models only: artefacts are written from it, and a part would be no model.
        if self.d == self.model.d:
            self.task_vectors = dict.fromkeys(self.classes, self.mean)
        return None
