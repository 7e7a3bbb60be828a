"""FedBABU's client (Oh et al., 2022): the backbone learns under random heads that nobody trains."""

from __future__ import annotations

import math

import torch

from matu_flwr.backbones import LinearHead
from matu_flwr.local.fit import Span, fit_jointly
from matu_flwr.local.rules.base import Fitted
from matu_flwr.local.rules.joint import Joint
from matu_flwr.seeds import derive_seed
from matu_flwr.settings import Settings


class FedBABU(Joint):
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
