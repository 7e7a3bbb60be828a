"""Ditto: every client trains a personal model, which is pulled towards the global model of FedAvg.

Li, Hu, Beirami, Smith: Ditto: Fair and Robust Federated Learning Through Personalization. ICML 2021.
https://arxiv.org/abs/2012.04221

A client trains one personal backbone for all of its tasks, as it trains one global backbone for all of them, and has
personal heads. Tests use the personal model. The strength of the pull, the paper's λ, is `ditto.strength`. With 0, the
value in released code, personal models learn nothing from other clients.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from matu_flwr.backbones import LinearHead
from matu_flwr.client.fit import Proximal, Span, fit_jointly
from matu_flwr.client.rule import Fitted, Joint, Rule, head_tensors
from matu_flwr.config.settings import Settings
from matu_flwr.strategies.fedavg import FedAvg


class DittoRule(Joint):
    """Ditto's client: it trains the global model w and a personal model v, and tests v.

    Both take the same number of steps, so a client computes twice as much as under FedAvg, and sends as much. v starts
    at θ_p with heads of zeros. Its backbone and heads stay at the client, also where the heads of w are averaged.
    """

    @classmethod
    @override
    def keeps_state(cls, settings: Settings) -> bool:
        return True

    @override
    def start(self, task: str) -> Tensor | None:
        """The personal backbone v, (d,) float32, the same for all tasks. None (θ_p) before the first training."""
        return self.work.own.get("personal")

    @override
    def head(self, task: str) -> LinearHead:
        """The head of the personal model: frozen, kept from an earlier round, or zeros."""
        return self.work.frozen.get(task) or self.own_head(f"personal/{task}") or self.zero_head(task)

    @override
    def train(self, span: Span) -> Fitted:
        """Train the global model w as FedAvg does, and then the personal model v.

        For v, λ(v − w) is added to the gradient, where w is the global model as it was received.
        """
        work = self.work
        # The heads of w are those of FedAvg's client: this class's own `head` gives the heads of v.
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
    """FedAvg's server. Its artefacts hold the global model; the personal models lie in the clients' own files."""

    about = "personal models pulled towards a global one"
    paper = "https://arxiv.org/abs/2012.04221"
    section = "ditto"

    rule: ClassVar[type[Rule]] = DittoRule
