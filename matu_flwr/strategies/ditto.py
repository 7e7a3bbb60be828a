"""Ditto: personal models, pulled towards a global one that is FedAvg's.

Li, Hu, Beirami, Smith: Ditto: Fair and Robust Federated Learning Through Personalization. ICML 2021.
https://arxiv.org/abs/2012.04221

A client has one personal model for all of its tasks, as it has one part in the global model, and personal heads. It is
what is tested. λ is `ditto.strength`; with 0, which released code uses, personal models learn nothing from the others.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from matu_flwr.backbones import LinearHead
from matu_flwr.client.fit import Proximal, Span, fit_jointly
from matu_flwr.client.rule import Fitted, Joint, Rule, head_tensors
from matu_flwr.config.settings import Settings
from matu_flwr.strategies.fedavg import FedAvg


class DittoRule(Joint):
    """The personal model v, one for all tasks of the client, is what is tested.

    It takes as many steps as the global part, so a client computes twice what it computes under FedAvg, and sends the
    same. v starts at θ_p and its heads at zeros; both are its own, whatever becomes of the heads of the global part.
    """

    @classmethod
    def keeps_state(cls, settings: Settings) -> bool:
        """The personal model."""
        return True

    def start(self, task: str) -> Tensor | None:
        """The personal model, for all tasks the same."""
        return self.work.own.get("personal")

    def head(self, task: str) -> LinearHead:
        """The head that belongs to the personal model."""
        return self.work.frozen.get(task) or self.own_head(f"personal/{task}") or self.zero_head(task)

    def train(self, span: Span) -> Fitted:
        """Train the global part as FedAvg does; then the personal model v, with the gradient λ(v − w) added."""
        work = self.work
        shares = {task: self.share(task, super(DittoRule, self).head(task)) for task in sorted(work.node.tasks)}
        vector, heads, losses = fit_jointly(work.backbone, self.common_start(), shares, work.settings.train, span=span)
        personal, own_heads, _ = fit_jointly(
            work.backbone,
            self.start(""),
            self.shares("ditto"),
            work.settings.train,
            span=span,
            proximal=Proximal(work.settings.ditto.strength, self.common_start()),
        )
        kept = {} if work.frozen else head_tensors({f"personal/{task}": head for task, head in own_heads.items()})
        own = {"personal": personal} | kept
        return Fitted(dict.fromkeys(work.node.tasks, vector), heads, losses, own)


class Ditto(FedAvg):
    """FedAvg's server; the artefacts hold the global model, the clients' own files the personal ones."""

    about = "personal models pulled towards a global one"
    paper = "https://arxiv.org/abs/2012.04221"
    section = "ditto"

    rule: ClassVar[type[Rule]] = DittoRule
