"""Every task at every client by itself: for good, or until the last round."""

from __future__ import annotations

from torch import Tensor

from matu_flwr.backbones import LinearHead
from matu_flwr.local.fit import Span
from matu_flwr.local.rules.base import Fitted
from matu_flwr.local.rules.separate import Separate
from matu_flwr.merging import PayloadKind
from matu_flwr.settings import Settings


class Alone(Separate):
    """Models and heads stay; nothing is sent."""

    separate_updates = False

    @classmethod
    def keeps_state(cls, settings: Settings) -> bool:
        """Its models."""
        return True

    @classmethod
    def payload(cls, settings: Settings, round_: int) -> PayloadKind:
        """Nothing."""
        return "nothing"

    @classmethod
    def keeps_heads(cls, settings: Settings) -> bool:
        """Heads stay too."""
        return True

    def start(self, task: str) -> Tensor | None:
        """The client's own model of the task."""
        return self.work.own.get(f"{task}/vector")

    def train(self, span: Span) -> Fitted:
        """Fine-tune the tasks, and keep them."""
        fitted = super().train(span)
        own = {f"{task}/vector": vector for task, vector in fitted.vectors.items()}
        return Fitted(fitted.vectors, fitted.heads, fitted.losses, own)


class OneShot(Alone):
    """Sends its vectors once, after the last round's training: what one-shot merging methods merge."""

    @classmethod
    def payload(cls, settings: Settings, round_: int) -> PayloadKind:
        """A vector per task, in the last round."""
        return "separate" if round_ == settings.rounds else "nothing"

    @classmethod
    def shares_heads(cls, settings: Settings, round_: int) -> bool:
        """Heads go with the vectors."""
        return settings.train.heads == "average" and round_ == settings.rounds

    def start(self, task: str) -> Tensor | None:
        """The merged model, once there is one."""
        received = self.work.received
        return received.reconstruct(task) if received is not None else super().start(task)

    def head(self, task: str) -> LinearHead:
        """The averaged head, once there is one."""
        work = self.work
        return work.frozen.get(task) or work.heads.get(task) or super().head(task)
