"""FedBABU: the backbone is trained under fixed random heads; heads are fine-tuned only where they are used.

Oh, Kim, Yun: FedBABU: Toward Enhanced Representation for Federated Image Classification. ICLR 2022.
https://arxiv.org/abs/2106.06042

The paper fine-tunes the whole network or the head before evaluation; here the head, for `fedbabu.fine-tune` steps on
the client's images of the task. Those steps come on top of the round's.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from matu_flwr.backbones import LinearHead
from matu_flwr.client.fit import Span, fit_jointly
from matu_flwr.client.rule import Fitted, Joint, Rule
from matu_flwr.config.settings import Settings
from matu_flwr.federation.checks import refuse_frozen_heads
from matu_flwr.seeds import derive_seed
from matu_flwr.strategies.fedavg import FedAvg


class FedBABURule(Joint):
    """Before a test, heads are fine-tuned for `fedbabu.fine-tune` steps on the client's images, and then forgotten.

    The fixed heads are drawn from the seed, the same at every holder of a task: a head of zeros, from which the other
    methods start, would give the backbone no gradient.
    """

    @classmethod
    def shares_heads(cls, settings: Settings, round_: int) -> bool:
        """Nobody trains them."""
        return False

    def head(self, task: str) -> LinearHead:
        """The fixed head, fine-tuned on what was received."""
        options = self.work.settings.train.model_copy(update={"steps": self.work.settings.fedbabu.fine_tune})
        share = self.share(task, self.fixed_head(task), "fedbabu")
        _, heads, _ = fit_jointly(self.work.backbone, self.common_start(), {task: share}, options, update="heads")
        return heads[task]

    def fixed_head(self, task: str) -> LinearHead:
        """Weights uniform in ±1/√F, as torch initialises a linear layer; no bias."""
        classes, features = len(self.work.node.tasks[task].classes), self.work.backbone.num_features
        chance = torch.Generator().manual_seed(derive_seed(self.work.settings.seed, "fedbabu-head", task))
        weight = (torch.rand(classes, features, generator=chance) * 2 - 1) / math.sqrt(features)
        return LinearHead(weight, torch.zeros(classes))

    def train(self, span: Span) -> Fitted:
        """Train the backbone alone."""
        shares = {task: self.share(task, self.fixed_head(task)) for task in sorted(self.work.node.tasks)}
        vector, _, losses = fit_jointly(
            self.work.backbone, self.common_start(), shares, self.work.settings.train, span=span, update="backbone"
        )
        return Fitted(dict.fromkeys(self.work.node.tasks, vector), {}, losses)


class FedBABU(FedAvg):
    """FedAvg's server; no head travels."""

    about = "the backbone under fixed random heads"
    paper = "https://arxiv.org/abs/2106.06042"
    section = "fedbabu"

    rule: ClassVar[type[Rule]] = FedBABURule

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Heads are trained."""
        refuse_frozen_heads(settings)
