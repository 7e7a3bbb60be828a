"""Ditto's client (Li et al., 2021): FedAvg's part, and a personal model that is pulled towards the global one."""

from __future__ import annotations

from torch import Tensor

from matu_flwr.backbones import LinearHead
from matu_flwr.local.fit import Proximal, Span, fit_jointly
from matu_flwr.local.rules.base import Fitted, head_tensors
from matu_flwr.local.rules.joint import Joint
from matu_flwr.settings import Settings


class Ditto(Joint):
    """The personal model v, one for all tasks of the client, is what is tested.

    It takes as many steps as the global part, so a client computes twice what it computes under FedAvg, and sends the
    same. v starts at θ_p; its heads are its own.
    """

    @classmethod
    def keeps_state(cls, settings: Settings) -> bool:
        """The personal model."""
        return True

    def start(self, task: str) -> Tensor | None:
        """V."""
        return self.work.own.get("personal")

    def head(self, task: str) -> LinearHead:
        """V's head."""
        frozen = self.work.frozen.get(task)
        return frozen or self.own_head(task) or super().head(task)

    def train(self, span: Span) -> Fitted:
        """FedAvg's training from what was received; then v's, with λ(v − w)."""
        work = self.work
        shares = {task: self.share(task, super(Ditto, self).head(task)) for task in sorted(work.node.tasks)}
        vector, heads, losses = fit_jointly(work.backbone, self.common_start(), shares, work.settings.train, span=span)
        personal, own_heads, _ = fit_jointly(
            work.backbone,
            self.start(""),
            self.shares("ditto"),
            work.settings.train,
            span=span,
            proximal=Proximal(work.settings.ditto.strength, self.common_start()),
        )
        own = {"personal": personal} | ({} if work.frozen else head_tensors(own_heads))
        return Fitted(dict.fromkeys(work.node.tasks, vector), heads, losses, own)
