"""One backbone for all tasks of a client, trained on them in turn."""

from __future__ import annotations

from torch import Tensor

from matu_flwr.local.fit import Proximal, Span, fit_jointly
from matu_flwr.local.rules.base import Fitted, Rule


class Joint(Rule):
    """FedAvg's client: start from the one vector that everybody gets, send the one that came of it."""

    one_vector = True

    def start(self, task: str) -> Tensor | None:
        """The one vector, whatever the task."""
        return self.common_start()

    def common_start(self) -> Tensor | None:
        """τ of the one backbone."""
        return super().start(min(self.work.node.tasks))

    def train(self, span: Span) -> Fitted:
        """Train all tasks in turn."""
        vector, heads, losses = fit_jointly(
            self.work.backbone,
            self.common_start(),
            self.shares(),
            self.work.settings.train,
            span=span,
            proximal=self.proximal(),
        )
        return Fitted(dict.fromkeys(self.work.node.tasks, vector), heads, losses)

    def proximal(self) -> Proximal | None:
        """A pull that the method adds to the loss."""
        return None
