"""A method's client side: where its tasks start, how it trains, what it sends and what it keeps.

`Rule` is the base. Three rules serve several methods: `Separate` (one vector per task), `Joint` (one vector for all
tasks) and `Alone` (nothing leaves the client). A rule of one method alone stands in that method's file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from matu_flwr.backbones import Backbone, LinearHead, zero_head
from matu_flwr.client.fit import Proximal, Span, TaskShare, fit, fit_jointly
from matu_flwr.client.node import Node
from matu_flwr.client.privacy import private_result
from matu_flwr.config.settings import Settings
from matu_flwr.merging import PAPER, PayloadKind, SeparateTaskVectors, TaskVectors, unify
from matu_flwr.seeds import derive_seed
from matu_flwr.vectors import ParameterLayout


class Work(Protocol):
    """What a rule may read of a client's round. `ClientRound` is one; a rule changes nothing in it."""

    @property
    def node(self) -> Node:
        """The client's name, tasks and images."""

    @property
    def backbone(self) -> Backbone:
        """The process's model; its working copy may be overwritten."""

    @property
    def settings(self) -> Settings:
        """Of the run."""

    @property
    def round(self) -> int:
        """Number of the round, from 1."""

    @property
    def received(self) -> TaskVectors | None:
        """The server's vectors. None: all tasks start at θ_p, or from what the client keeps."""

    @property
    def heads(self) -> Mapping[str, LinearHead]:
        """The server's heads by task."""

    @property
    def frozen(self) -> Mapping[str, LinearHead]:
        """Zero-shot heads by task. Where there are any, no head is trained, sent or kept."""

    @property
    def own(self) -> Mapping[str, Tensor]:
        """What the client kept of earlier rounds, by the names that the rule gave."""


@dataclass(frozen=True)
class Fitted:
    """What training in one round gave.

    Attributes
    ----------
    vectors : dict of str to Tensor
        To send, by task, (d,) float32; the same tensor for every task of a client with one model.
    heads : dict of str to LinearHead
        Trained heads by task.
    losses : dict of str to float
        Mean training loss by task.
    own : dict of str to Tensor
        What the client keeps of its own for later rounds.
    """

    vectors: Mapping[str, Tensor]
    heads: Mapping[str, LinearHead]
    losses: Mapping[str, float]
    own: Mapping[str, Tensor] = field(default_factory=dict)


class Rule(ABC):
    """A method's client side in one round; the class says what is true of every round.

    Attributes
    ----------
    one_vector : bool
        The client trains one backbone for all of its tasks and sends one vector, without modulators.
    separate_updates : bool
        A round makes one update per task, from that task's images alone, and all that leaves or stays is made of it:
        where differential privacy can clip and noise.
    """

    one_vector = False
    separate_updates = False

    def __init__(self, work: Work) -> None:
        self.work = work

    # --- what both sides have to know before a round ---

    @classmethod
    def payload(cls, settings: Settings, round_: int) -> PayloadKind:
        """What a reply to training holds."""
        return "unified"

    @classmethod
    def keeps_state(cls, settings: Settings) -> bool:
        """Whether the client has tensors of its own, beside heads, that survive in its state."""
        return False

    @classmethod
    def keeps_heads(cls, settings: Settings) -> bool:
        """Whether trained heads stay at the client."""
        return settings.train.heads == "local"

    @classmethod
    def shares_heads(cls, settings: Settings, round_: int) -> bool:
        """Whether trained heads travel in a round."""
        return settings.train.heads == "average" and not cls.keeps_heads(settings)

    @classmethod
    def shared_length(cls, layout: ParameterLayout, settings: Settings) -> int:
        """Length of a vector on the wire: d, or less where a part of the backbone is the client's own."""
        return layout.d

    # --- one round ---

    def start(self, task: str) -> Tensor | None:
        """τ of the model that is tested, and by default trained further; (d,) float32; None is θ_p."""
        received = self.work.received
        return received.reconstruct(task) if received is not None else None

    def head(self, task: str) -> LinearHead:
        """Head that is tested and trained further: a frozen one, the client's own, the server's, or zeros."""
        work = self.work
        own = self.own_head(task) if self.keeps_heads(work.settings) else None
        return work.frozen.get(task) or own or work.heads.get(task) or self.zero_head(task)

    @abstractmethod
    def train(self, span: Span) -> Fitted:
        """Fine-tune every task.

        Raises
        ------
        TrainingDiverged
            Naming the task.
        """

    def pack(self, vectors: Mapping[str, Tensor]) -> TaskVectors | None:
        """The vectors as they travel in this round."""
        kind = self.payload(self.work.settings, self.work.round)
        if kind == "nothing":
            return None
        return unify(vectors, **PAPER) if kind == "unified" else SeparateTaskVectors(vectors)

    # --- for the methods ---

    def own_head(self, name: str) -> LinearHead | None:
        """The head that the client kept under a name: the task's, unless the rule has others too."""
        own = self.work.own
        return LinearHead(own[f"{name}/weight"], own[f"{name}/bias"]) if f"{name}/weight" in own else None

    def zero_head(self, task: str) -> LinearHead:
        """Where a linear head starts."""
        return zero_head(len(self.work.node.tasks[task].classes), self.work.backbone.num_features)

    def share(self, task: str, head: LinearHead | None = None, purpose: str = "fit") -> TaskShare:
        """Head, images and seed for training a task in this round."""
        work = self.work
        seed = derive_seed(work.settings.seed, purpose, work.round, work.node.client, task)
        return TaskShare(head or self.head(task), work.node.tasks[task].train, seed)

    def shares(self, purpose: str = "fit") -> dict[str, TaskShare]:
        """`share` of every task, in the order of names."""
        return {task: self.share(task, purpose=purpose) for task in sorted(self.work.node.tasks)}


def head_tensors(heads: Mapping[str, LinearHead]) -> dict[str, Tensor]:
    """Heads as a client's state keeps them."""
    return {f"{task}/{name}": tensor for task, head in heads.items() for name, tensor in head.tensors().items()}


# --- the rules that several methods share ---


class Separate(Rule):
    """One vector per task, sent as they are: pertask-fedavg, MaT-FL."""

    separate_updates = True

    @classmethod
    def payload(cls, settings: Settings, round_: int) -> PayloadKind:
        """A vector per task."""
        return "separate"

    def train(self, span: Span) -> Fitted:
        """Fine-tune the tasks one after the other; with privacy, what leaves here is clipped and noised."""
        work = self.work
        vectors, heads, losses = {}, {}, {}
        for task in work.node.tasks:
            share, start = self.share(task), self.start(task)
            result = fit(
                work.backbone,
                start,
                share.head,
                share.data,
                work.settings.train,
                seed=share.seed,
                task=task,
                span=span,
            )
            if work.settings.privacy.noise_multiplier > 0:
                result = private_result(result, start, share.head, work.settings.privacy)
            vectors[task], heads[task], losses[task] = result.task_vector, result.head, result.loss
        return Fitted(vectors, heads, losses)


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
