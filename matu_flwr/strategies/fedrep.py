"""FedRep: a shared representation under personal heads, trained in turn.

Collins, Hassani, Mokhtari, Shakkottai: Exploiting Shared Representations for Personalized Federated Learning. ICML
2021. https://arxiv.org/abs/2102.07078

The backbone is the representation, the linear heads are the personal part, one per task of a client. In a round the
first `fedrep.head-share` of the steps train the heads on the frozen backbone, the others the backbone under
frozen heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from matu_flwr.client.fit import Span, fit_jointly
from matu_flwr.client.rule import Fitted, Joint, Rule
from matu_flwr.config.settings import Settings, SettingsError
from matu_flwr.federation.checks import refuse_frozen_heads
from matu_flwr.strategies.fedavg import FedAvg


class FedRepRule(Joint):
    """Heads are personal. `fedrep.head-share` of the round's steps goes to them, the rest to the backbone.

    The paper counts epochs over a client's images; steps are counted here, so that a round costs what it costs under
    the other methods.
    """

    @classmethod
    def keeps_heads(cls, settings: Settings) -> bool:
        """Heads are personal."""
        return True

    def train(self, span: Span) -> Fitted:
        """Train heads, then the backbone."""
        work, options = self.work, self.work.settings.train
        steps = head_steps(work.settings)
        head_options, base_options = (options.model_copy(update={"steps": n}) for n in (steps, options.steps - steps))
        shares = self.shares("fedrep-heads")
        _, heads, _ = fit_jointly(work.backbone, self.common_start(), shares, head_options, span=span, update="heads")
        shares = {task: replace(share, head=heads[task]) for task, share in self.shares().items()}
        vector, _, losses = fit_jointly(
            work.backbone,
            self.common_start(),
            shares,
            base_options,
            span=Span(span.done + steps, span.total),
            update="backbone",
        )
        return Fitted(dict.fromkeys(work.node.tasks, vector), heads, losses)


def head_steps(settings: Settings) -> int:
    """Steps of a round for the heads: at least one, and at least one is left for the backbone."""
    steps = settings.train.steps
    return min(max(round(settings.fedrep.head_share * steps), 1), steps - 1)


class FedRep(FedAvg):
    """FedAvg's server; heads stay at the clients."""

    about = "personal heads, trained in turn"
    paper = "https://arxiv.org/abs/2102.07078"
    section = "fedrep"

    rule: ClassVar[type[Rule]] = FedRepRule

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Heads are trained, and there are steps for both parts."""
        refuse_frozen_heads(settings)
        if settings.train.steps < 2:
            raise SettingsError(
                "strategy 'fedrep' divides a round's steps between heads and backbone: train.steps >= 2"
            )
