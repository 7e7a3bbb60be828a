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
    same. v starts at θ_p and its heads at zeros; both are its own, whatever becomes of the heads of the global part.
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
        return self.work.frozen.get(task) or self.own_head(f"personal/{task}") or self.zero_head(task)

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
        kept = {} if work.frozen else head_tensors({f"personal/{task}": head for task, head in own_heads.items()})
        own = {"personal": personal} | kept
        return Fitted(dict.fromkeys(work.node.tasks, vector), heads, losses, own)
