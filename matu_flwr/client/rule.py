"""A method's client side: where tasks start, how they are trained, what is sent and what is kept.

`Rule` is the base. Three rules serve several methods: `Separate` (one vector per task), `Joint` (one vector for all
tasks) and `Alone` (nothing leaves the client). A rule that only one method has is in the file of that method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor
from typing_extensions import override

from matu_flwr.backbones import Backbone, LinearHead, zero_head
from matu_flwr.client.fit import Proximal, Span, TaskShare, fit, fit_jointly
from matu_flwr.client.node import Node
from matu_flwr.client.privacy import private_result
from matu_flwr.config.settings import Settings
from matu_flwr.merging import PAPER, PayloadKind, SeparateTaskVectors, TaskVectors, unify
from matu_flwr.seeds import derive_seed
from matu_flwr.vectors import ParameterLayout


class Work(Protocol):
    """What a rule may read of a client's round. `ClientRound` has all of it. A rule must not change it."""

    @property
    def node(self) -> Node:
        """The client's name, tasks and images."""

    @property
    def backbone(self) -> Backbone:
        """The model of the process. Its working copy may be overwritten."""

    @property
    def settings(self) -> Settings:
        """The settings of the run."""

    @property
    def round(self) -> int:
        """Number of the round, from 1."""

    @property
    def received(self) -> TaskVectors | None:
        """The server's vectors. None: all tasks start at θ_p, or from what the client keeps."""

    @property
    def heads(self) -> Mapping[str, LinearHead]:
        """The server's heads, by task."""

    @property
    def frozen(self) -> Mapping[str, LinearHead]:
        """Zero-shot heads by task. Where there are any, no head is trained, sent or kept."""

    @property
    def own(self) -> Mapping[str, Tensor]:
        """What the client kept in earlier rounds, by the names that the rule gave."""


@dataclass(frozen=True)
class Fitted:
    """The result of training in one round.

    Attributes
    ----------
    vectors : dict of str to Tensor
        The vectors to send, by task, (d,) float32. A client with one model has the same tensor for every task.
    heads : dict of str to LinearHead
        Trained heads by task.
    losses : dict of str to float
        Mean training loss by task.
    own : dict of str to Tensor
        What the client keeps for its later rounds, by names of the rule's choice.
    """

    vectors: Mapping[str, Tensor]
    heads: Mapping[str, LinearHead]
    losses: Mapping[str, float]
    own: Mapping[str, Tensor] = field(default_factory=dict)


class Rule(ABC):
    """A method's client side in one round. What holds in every round are attributes and methods of the class.

    Attributes
    ----------
    one_vector : bool
        Whether the client trains one backbone for all of its tasks and sends one vector, without modulators.
    separate_updates : bool
        Whether a round makes one update per task, from the images of that task alone, and all that is sent or kept is
        computed from it. Only then can differential privacy clip and noise the updates.
    """

    one_vector = False
    separate_updates = False

    def __init__(self, work: Work) -> None:
        self.work = work

    # --- what client and server have to know before a round ---

    @classmethod
    def payload(cls, settings: Settings, round_: int) -> PayloadKind:
        """What the reply to a training message holds in this round."""
        return "unified"

    @classmethod
    def sends_updates(cls, settings: Settings) -> bool:
        """Whether a vector that is sent is how far the task moved in this round, and not all the way from θ_p."""
        return False

    @classmethod
    def keeps_state(cls, settings: Settings) -> bool:
        """Whether the client keeps tensors other than heads from round to round."""
        return False

    @classmethod
    def keeps_heads(cls, settings: Settings) -> bool:
        """Whether trained heads stay at the client."""
        return settings.train.heads == "local"

    @classmethod
    def shares_heads(cls, settings: Settings, round_: int) -> bool:
        """Whether trained heads travel in this round."""
        return settings.train.heads == "average" and not cls.keeps_heads(settings)

    @classmethod
    def shared_length(cls, layout: ParameterLayout, settings: Settings) -> int:
        """Length of a vector on the wire: d, or less where part of the backbone stays at the client."""
        return layout.d

    # --- one round ---

    def start(self, task: str) -> Tensor | None:
        """The backbone that is tested, and by default trained further: τ, (d,) float32; None is θ_p."""
        received = self.work.received
        return received.reconstruct(task) if received is not None else None

    def head(self, task: str) -> LinearHead:
        """The head that is tested and trained further: frozen, or the client's own, or the server's, or zeros."""
        work = self.work
        own = self.own_head(task) if self.keeps_heads(work.settings) else None
        return work.frozen.get(task) or own or work.heads.get(task) or self.zero_head(task)

    @abstractmethod
    def train(self, span: Span) -> Fitted:
        """Fine-tune every task.

        Parameters
        ----------
        span : Span
            Where this round's steps lie in the run, for the schedule of the learning rates.

        Raises
        ------
        TrainingDiverged
            The text names the task.
        """

    def pack(self, vectors: Mapping[str, Tensor]) -> TaskVectors | None:
        """The vectors in the form in which they travel in this round. None where none do."""
        kind = self.payload(self.work.settings, self.work.round)
        if kind == "nothing":
            return None
        return unify(vectors, **PAPER) if kind == "unified" else SeparateTaskVectors(vectors)

    # --- helpers for the rules of methods ---

    def own_head(self, name: str) -> LinearHead | None:
        """The head that the client kept under this name, if any.

        The name is that of the task, unless the rule keeps other heads as well.
        """
        own = self.work.own
        return LinearHead(own[f"{name}/weight"], own[f"{name}/bias"]) if f"{name}/weight" in own else None

    def zero_head(self, task: str) -> LinearHead:
        """A head of zeros, from which training starts."""
        return zero_head(len(self.work.node.tasks[task].classes), self.work.backbone.num_features)

    def share(self, task: str, head: LinearHead | None = None, purpose: str = "fit") -> TaskShare:
        """What training on a task needs in this round: head, images, and the seed of their order.

        A rule that trains a task more than once in a round gives each time another `purpose`, which makes another seed.
        """
        work = self.work
        seed = derive_seed(work.settings.seed, purpose, work.round, work.node.client, task)
        return TaskShare(head or self.head(task), work.node.tasks[task].train, seed)

    def shares(self, purpose: str = "fit") -> dict[str, TaskShare]:
        """`share` of every task, in the order of their names."""
        return {task: self.share(task, purpose=purpose) for task in sorted(self.work.node.tasks)}


def head_tensors(heads: Mapping[str, LinearHead]) -> dict[str, Tensor]:
    """Heads as tensors by name, in the form in which a client's state keeps them."""
    return {f"{task}/{name}": tensor for task, head in heads.items() for name, tensor in head.tensors().items()}


# --- the rules that several methods share ---


class Separate(Rule):
    """Train every task by itself, and send one vector per task: pertask-fedavg and MaT-FL."""

    separate_updates = True

    @classmethod
    @override
    def payload(cls, settings: Settings, round_: int) -> PayloadKind:
        return "separate"

    @override
    def train(self, span: Span) -> Fitted:
        """Fine-tune the tasks one after the other. With differential privacy, the results are clipped and noised."""
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
                # Before anything else sees the result: all that is sent or kept is then computed from noised numbers.
                result = private_result(result, start, share.head, work.settings.privacy)
            vectors[task], heads[task], losses[task] = result.task_vector, result.head, result.loss
        return Fitted(vectors, heads, losses)


class Joint(Rule):
    """FedAvg's client: start from the vector that everybody gets, train all tasks jointly, and send one vector."""

    one_vector = True

    @override
    def start(self, task: str) -> Tensor | None:
        """The same backbone for every task: τ, (d,) float32; None is θ_p."""
        return self.common_start()

    def common_start(self) -> Tensor | None:
        """The backbone from which all tasks start: τ, (d,) float32; None is θ_p."""
        # Any task will do: the server sends the same vector for all of them.
        return super().start(min(self.work.node.tasks))

    @override
    def train(self, span: Span) -> Fitted:
        """Train one backbone on all tasks in turn, with a head per task."""
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
        """A pull that the method adds to the loss. None: no pull."""
        return None


class Alone(Separate):
    """Train every task by itself, keep models and heads, and send nothing."""

    separate_updates = False

    @classmethod
    @override
    def keeps_state(cls, settings: Settings) -> bool:
        return True

    @classmethod
    @override
    def payload(cls, settings: Settings, round_: int) -> PayloadKind:
        return "nothing"

    @classmethod
    @override
    def keeps_heads(cls, settings: Settings) -> bool:
        return True

    @override
    def start(self, task: str) -> Tensor | None:
        """The client's own model of the task, (d,) float32. None (θ_p) before its first training."""
        return self.work.own.get(f"{task}/vector")

    @override
    def train(self, span: Span) -> Fitted:
        """Fine-tune the tasks one after the other, and keep their vectors."""
        fitted = super().train(span)
        own = {f"{task}/vector": vector for task, vector in fitted.vectors.items()}
        return Fitted(fitted.vectors, fitted.heads, fitted.losses, own)
