"""FedRep: a shared representation under personal heads, trained in turn.

Collins, Hassani, Mokhtari, Shakkottai: Exploiting Shared Representations for Personalized Federated Learning. ICML
2021. https://arxiv.org/abs/2102.07078

The backbone is the representation. The linear heads, one per task of a client, are the personal part. In a round, a
client first trains the heads on the frozen backbone, and then the backbone under the frozen heads. `fedrep.head-share`
is the share of the round's steps that goes to the heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from typing_extensions import override

from matu_flwr.client.fit import Span, fit_jointly
from matu_flwr.client.rule import Fitted, Joint, Rule
from matu_flwr.config.settings import Settings, SettingsError
from matu_flwr.federation.checks import refuse_frozen_heads
from matu_flwr.strategies.fedavg import FedAvg


class FedRepRule(Joint):
    """FedRep's client: it keeps its heads, and trains them before the backbone.

    The paper counts epochs over a client's images. Here steps are counted, so that a round costs as much as under the
    other methods.
    """

    @classmethod
    @override
    def keeps_heads(cls, settings: Settings) -> bool:
        return True

    @override
    def train(self, span: Span) -> Fitted:
        """Train the heads on the frozen backbone, then the backbone under the trained heads."""
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
            # The schedule of the learning rate goes on where the steps for the heads ended.
            span=Span(span.done + steps, span.total),
            update="backbone",
        )
        return Fitted(dict.fromkeys(work.node.tasks, vector), heads, losses)


def head_steps(settings: Settings) -> int:
    """Number of a round's steps that train heads: at least one, and at least one is left for the backbone."""
    steps = settings.train.steps
    return min(max(round(settings.fedrep.head_share * steps), 1), steps - 1)


class FedRep(FedAvg):
    """FedAvg's server. Heads stay at the clients."""

    about = "personal heads, trained in turn"
    paper = "https://arxiv.org/abs/2102.07078"
    section = "fedrep"

    rule: ClassVar[type[Rule]] = FedRepRule

    @classmethod
    @override
    def check(cls, settings: Settings) -> None:
        """Refuse settings that leave one of the two parts untrained.

        Raises
        ------
        SettingsError
            `train.heads` = zero-shot, or `train.steps` below 2.
        """
        refuse_frozen_heads(settings)
        if settings.train.steps < 2:
            raise SettingsError(
                "strategy 'fedrep' divides a round's steps between heads and backbone: train.steps >= 2"
            )
