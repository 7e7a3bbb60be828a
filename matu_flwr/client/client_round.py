"""One round at a client: test what was received, fine-tune as the method's rule says, keep what is its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from matu_flwr.backbones import Backbone, LinearHead
from matu_flwr.client.evaluate import Evaluation, evaluate
from matu_flwr.client.fit import Span
from matu_flwr.client.node import Node
from matu_flwr.client.rule import Rule, head_tensors
from matu_flwr.client.state import ClientState
from matu_flwr.config.settings import Settings
from matu_flwr.merging import TaskVectors, warm_up


class Stopwatch:
    """Adds up seconds by activity."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        """Add the time spent inside to `activity`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] = self.seconds.get(activity, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Trained:
    """What a client has after training.

    Attributes
    ----------
    vectors : UnifiedTaskVector or SeparateTaskVectors, optional
        The vectors to send. None where the method sends none in this round.
    heads : dict of str to LinearHead
        Heads to share by task; empty if they stay at the client.
    losses : dict of str to float
        Mean training loss by task.
    """

    vectors: TaskVectors | None
    heads: dict[str, LinearHead]
    losses: dict[str, float]


class ClientRound:
    """A client's work in one round. Its memory grows with the client's own tasks only.

    Parameters
    ----------
    node : Node
        The client's tasks and images.
    backbone : Backbone
        The process's model.
    settings : Settings
        The settings of the run.
    round_ : int
        The number of the round, from 1.
    rule : type of Rule
        The method's client side.
    received : UnifiedTaskVector or SeparateTaskVectors, optional
        The server's vectors. None: all tasks start at θ_p, or from what the client keeps.
    heads : mapping of str to LinearHead
        The server's heads, by task.
    state : ClientState
        The client's own files.
    kept_from : int
        The client's own state must have been saved before this round.
    kept_since : int
        The client's own state must have been saved in this round or later. 0 = there may be none.
    frozen : mapping of str to LinearHead, optional
        Zero-shot heads by task. Where there are any, no head is trained, sent or kept.
    """

    def __init__(
        self,
        node: Node,
        backbone: Backbone,
        settings: Settings,
        round_: int,
        *,
        rule: type[Rule],
        received: TaskVectors | None,
        heads: Mapping[str, LinearHead],
        state: ClientState,
        kept_from: int,
        kept_since: int = 0,
        frozen: Mapping[str, LinearHead] | None = None,
    ) -> None:
        self.node = node
        self.backbone = backbone
        self.settings = settings
        self.round = round_
        self.received = received
        self.heads = heads
        self.frozen = frozen or {}
        self.state = state
        self.keeps_heads = rule.keeps_heads(settings) and not self.frozen
        self.keeps = rule.keeps_state(settings) or self.keeps_heads
        self.own = state.load(before=kept_from, since=kept_since) if self.keeps else {}
        self.watch = Stopwatch()
        self.rule = rule(self)

    def evaluate(self) -> dict[str, Evaluation]:
        """Test every task's model on the client's share of the test images. Tasks without such images are left out."""
        with self.watch.measure("evaluate"):
            return {
                task: evaluate(
                    self.backbone,
                    self.rule.start(task),
                    self.rule.head(task),
                    held.test,
                    self.settings.train.precision,
                    task=task,
                )
                for task, held in self.node.tasks.items()
                if len(held.test)
            }

    def train(self) -> Trained:
        """Fine-tune every task, save what the client keeps, and pack what it sends.

        Raises
        ------
        TrainingDiverged
            The text names the task.
        """
        steps = self.settings.train.steps
        if self.rule.payload(self.settings, self.round) == "unified":
            # Loading the compiled kernels takes as long as a small training, so a thread loads them meanwhile.
            warm_up()
        span = Span((self.round - 1) * steps, self.settings.rounds * steps)
        with self.watch.measure("train"):
            fitted = self.rule.train(span)
        with self.watch.measure("unify"):
            own = {**fitted.own, **(head_tensors(fitted.heads) if self.keeps_heads else {})}
            if self.keeps:
                # Saved before anything is sent: once the server has the reply, it expects this state on the disk.
                self.state.save(own, self.round)
            vectors = self.rule.pack(fitted.vectors)
        shares = self.rule.shares_heads(self.settings, self.round) and not self.frozen
        return Trained(vectors, dict(fitted.heads) if shares else {}, dict(fitted.losses))
