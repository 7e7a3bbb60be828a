"""FedBABU: the backbone is trained under fixed random heads; heads are fine-tuned only where they are used.

Oh, Kim, Yun: FedBABU: Toward Enhanced Representation for Federated Image Classification. ICLR 2022.
https://arxiv.org/abs/2106.06042

The paper fine-tunes the whole network, or only the head, before a test. Here only the head is fine-tuned, for
`fedbabu.fine-tune` steps on the client's training images of the task. These steps come on top of the round's own.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from typing_extensions import override

from matu_flwr.backbones import LinearHead
from matu_flwr.client.fit import Span, fit_jointly
from matu_flwr.client.rule import Fitted, Joint, Rule
from matu_flwr.config.settings import Settings
from matu_flwr.federation.checks import refuse_frozen_heads
from matu_flwr.seeds import derive_seed
from matu_flwr.strategies.fedavg import FedAvg


class FedBABURule(Joint):
    """FedBABU's client: it trains the backbone under fixed random heads.

    Before a test, the heads are fine-tuned for `fedbabu.fine-tune` steps on the client's training images. The tuned
    heads are used for this test only.
    """

    @classmethod
    @override
    def shares_heads(cls, settings: Settings, round_: int) -> bool:
        return False

    @override
    def head(self, task: str) -> LinearHead:
        """The head to test with: the fixed head, fine-tuned on the backbone that was received."""
        options = self.work.settings.train.model_copy(update={"steps": self.work.settings.fedbabu.fine_tune})
        share = self.share(task, self.fixed_head(task), "fedbabu")
        _, heads, _ = fit_jointly(self.work.backbone, self.common_start(), {task: share}, options, update="heads")
        return heads[task]

    def fixed_head(self, task: str) -> LinearHead:
        """The random head of a task, the same at all of its holders.

        The weights, (C, F) float32, are uniform in ±1/√F, as torch initialises a linear layer. The bias is zero.
        """
        classes, features = len(self.work.node.tasks[task].classes), self.work.backbone.num_features
        # Not zeros, from which heads start under the other methods: under them the backbone would get no gradient.
        chance = torch.Generator().manual_seed(derive_seed(self.work.settings.seed, "fedbabu-head", task))
        weight = (torch.rand(classes, features, generator=chance) * 2 - 1) / math.sqrt(features)
        return LinearHead(weight, torch.zeros(classes))

    @override
    def train(self, span: Span) -> Fitted:
        shares = {task: self.share(task, self.fixed_head(task)) for task in sorted(self.work.node.tasks)}
        vector, _, losses = fit_jointly(
            self.work.backbone, self.common_start(), shares, self.work.settings.train, span=span, update="backbone"
        )
        return Fitted(dict.fromkeys(self.work.node.tasks, vector), {}, losses)


class FedBABU(FedAvg):
    """FedAvg's server. Heads do not travel."""

    about = "the backbone under fixed random heads"
    paper = "https://arxiv.org/abs/2106.06042"
    section = "fedbabu"

    rule: ClassVar[type[Rule]] = FedBABURule

    @classmethod
    @override
    def check(cls, settings: Settings) -> None:
        """Refuse frozen heads: the method is about heads that are fine-tuned.

        Raises
        ------
        SettingsError
            `train.heads` = zero-shot.
        """
        refuse_frozen_heads(settings)
