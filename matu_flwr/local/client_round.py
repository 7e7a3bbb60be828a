"""One client, one round: test what was received, fine-tune every task, unify (method, client steps 1 to 3)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from matu_flwr.backbones import Backbone, LinearHead, zero_head
from matu_flwr.local.evaluate import Evaluation, evaluate
from matu_flwr.local.fit import Span, TaskShare, fit, fit_jointly
from matu_flwr.local.node import Node
from matu_flwr.local.state import ClientState
from matu_flwr.merging import UnifiedTaskVector, unify
from matu_flwr.seeds import derive_seed
from matu_flwr.settings import Settings


class Stopwatch:
    """Seconds by activity."""

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
    unified : UnifiedTaskVector, optional
        Of its task vectors or updates; None for a method that shares none.
    heads : dict of str to LinearHead
        Heads to share by task; empty if they stay at the client.
    losses : dict of str to float
        Mean training loss by task.
    """

    unified: UnifiedTaskVector | None
    heads: dict[str, LinearHead]
    losses: dict[str, float]


class ClientRound:
    """A client's work in one round; memory grows with its own tasks only.

    Parameters
    ----------
    node : Node
        The client's tasks and images.
    backbone : Backbone
        The process's model.
    settings : Settings
        Of the run.
    round_ : int
        From 1.
    received : UnifiedTaskVector, optional
        From the server; None = all tasks start at θ_p.
    heads : mapping of str to LinearHead
        From the server; a task without one starts from zeros.
    state : ClientState
        The client's own files.
    personal : bool
        Start from the client's own task vectors and heads, and share none.
    kept_from : int
        The client's own state has to be older than this round.
    frozen : mapping of str to LinearHead, optional
        Zero-shot heads by task; where there are any, no head is trained, sent or kept.
    joint : bool
        Train one backbone on all tasks, and share its one vector.
    """

    def __init__(
        self,
        node: Node,
        backbone: Backbone,
        settings: Settings,
        round_: int,
        *,
        received: UnifiedTaskVector | None,
        heads: Mapping[str, LinearHead],
        state: ClientState,
        personal: bool,
        kept_from: int,
        frozen: Mapping[str, LinearHead] | None = None,
        joint: bool = False,
    ) -> None:
        frozen = frozen or {}
        self.node = node
        self.backbone = backbone
        self.settings = settings
        self.round = round_
        self.received = received
        self.state = state
        self.personal = personal
        self.joint = joint
        self.keeps_heads = (personal or settings.train.heads == "local") and not frozen
        self.keeps = personal or self.keeps_heads
        self.shares_heads = not self.keeps_heads and not frozen
        self.own = state.load(before=kept_from) if self.keeps else {}
        self.heads = {**heads, **frozen}
        for task in node.tasks:
            if f"{task}/weight" in self.own:
                self.heads[task] = LinearHead(self.own[f"{task}/weight"], self.own[f"{task}/bias"])
        self.watch = Stopwatch()

    def start(self, task: str) -> Tensor | None:
        """τ from which a task starts, (d,) float32; None is θ_p."""
        if self.personal:
            return self.own.get(f"{task}/vector")
        return self.received.reconstruct(task) if self.received is not None else None

    def head(self, task: str) -> LinearHead:
        """Head from which a task starts."""
        return self.heads.get(task) or zero_head(len(self.node.tasks[task].classes), self.backbone.num_features)

    def evaluate(self) -> dict[str, Evaluation]:
        """Test every task's start on the client's part of the test images."""
        with self.watch.measure("evaluate"):
            return {
                task: evaluate(
                    self.backbone, self.start(task), self.head(task), held.test, self.settings.train.precision
                )
                for task, held in self.node.tasks.items()
                if len(held.test)
            }

    def train(self) -> Trained:
        """Fine-tune every task, keep what is the client's own, unify what is shared.

        Raises
        ------
        TrainingDiverged
            Naming the task.
        """
        steps = self.settings.train.steps
        span = Span((self.round - 1) * steps, self.settings.rounds * steps)
        with self.watch.measure("train"):
            vectors, heads, losses = self._jointly(span) if self.joint else self._separately(span)
        with self.watch.measure("unify"):
            if self.keeps:
                self.state.save(self._own(vectors if self.personal else {}, heads), self.round)
            unified = None if self.personal else unify(vectors)
        return Trained(unified, heads if self.shares_heads else {}, losses)

    def _share(self, task: str) -> TaskShare:
        seed = derive_seed(self.settings.seed, "fit", self.round, self.node.client, task)
        return TaskShare(self.head(task), self.node.tasks[task].train, seed)

    def _separately(self, span: Span) -> tuple[dict[str, Tensor], dict[str, LinearHead], dict[str, float]]:
        """A vector per task, each from its own start."""
        vectors: dict[str, Tensor] = {}
        heads: dict[str, LinearHead] = {}
        losses: dict[str, float] = {}
        for task in self.node.tasks:
            start, share = self.start(task), self._share(task)
            result = fit(
                self.backbone, start, share.head, share.data, self.settings.train, seed=share.seed, task=task, span=span
            )
            vectors[task], heads[task], losses[task] = result.task_vector, result.head, result.loss
            if self.settings.matu.payload == "update" and not self.personal and start is not None:
                vectors[task] -= start
        return vectors, heads, losses

    def _jointly(self, span: Span) -> tuple[dict[str, Tensor], dict[str, LinearHead], dict[str, float]]:
        """One vector for all tasks, from their common start; unified, it is itself, and no masks travel."""
        tasks = sorted(self.node.tasks)
        vector, heads, losses = fit_jointly(
            self.backbone,
            self.start(tasks[0]),
            {task: self._share(task) for task in tasks},
            self.settings.train,
            span=span,
        )
        return dict.fromkeys(tasks, vector), heads, losses

    def _own(self, vectors: Mapping[str, Tensor], heads: Mapping[str, LinearHead]) -> dict[str, Tensor]:
        own = {f"{task}/vector": vector for task, vector in vectors.items()}
        for task, head in heads.items() if self.keeps_heads else ():
            own |= {f"{task}/{name}": tensor for name, tensor in head.tensors().items()}
        return own
