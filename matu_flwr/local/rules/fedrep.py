"""FedRep's client (Collins et al., 2021): heads on a frozen backbone, then the backbone under frozen heads."""

from __future__ import annotations

from dataclasses import replace

from matu_flwr.local.fit import Span, fit_jointly
from matu_flwr.local.rules.base import Fitted
from matu_flwr.local.rules.joint import Joint
from matu_flwr.settings import Settings


class FedRep(Joint):
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
