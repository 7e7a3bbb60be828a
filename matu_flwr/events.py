"""The events of a run: what the federation says as it goes on, line by line in `history.jsonl`.

    plan       what was decided before the first round: tasks, holders, backbone, predictions
    client     one client's reply in one round (or why there is none): examples, losses, bytes, seconds
    accuracy   accuracy of every tested task after a round; round 0 is before any training
    round      a finished round: bytes, seconds, task graph
    resume     a run that was cut off goes on after a checkpoint; what came after that was taken out
    end        how the run ended, and where its artefacts lie

Clients test what they receive before they train, so the accuracy of round r arrives during round r + 1, or in the
closing evaluation.

A field that is `NotRequired` is missing where there is nothing to say, or in histories of earlier releases. Numbers
that are not finite become null in the file: losses may be None when they are read back.

This file stands in the hall because both sides need it: the federation writes events and must not know what becomes of
them, the rooms behind it (`run`, `compare`, `deployment`) read them.
"""

# no annotations from __future__: as text, NotRequired would not be seen at run time
from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

# --- plan ---


class PlannedTask(TypedDict):
    """One task over all of its holders; `classes`, `train` and `test` are numbers, of labels and of images."""

    name: str
    group: str
    classes: int
    train: int
    test: int
    holders: list[str]


class PlannedClient(TypedDict):
    """One client with the number of its training images by task."""

    client: str
    partition: int
    tasks: dict[str, int]


class PlannedBackbone(TypedDict):
    """Where θ_p comes from and what is trained: `d` of `total` parameters, by part of the model."""

    name: str
    weights: str
    trainable: str
    d: int
    total: int
    tensors: int
    parts: dict[str, int]
    fingerprint: str
    image_size: int
    heads: str


class Predicted(TypedDict):
    """What the round trips and the processes are expected to take."""

    bytes_up_per_client: dict[str, int]
    bytes_down_per_client: dict[str, int]
    server_memory_bytes: int
    client_memory_bytes: int


class PlanEvent(TypedDict):
    """What was decided before the first round."""

    event: Literal["plan"]
    time: str
    run_id: str
    strategy: str
    preset: str
    suite: str
    rounds: int
    seed: int
    settings: dict[str, Any]
    changed: NotRequired[dict[str, Any]]  # settings that differ from their defaults; new since 0.1.0
    backbone: PlannedBackbone
    tasks: list[PlannedTask]
    clients: list[PlannedClient]
    predicted: Predicted
    notes: list[str]
    versions: dict[str, str]


# --- while it goes on ---


class RepliedTask(TypedDict):
    """One task of one reply: trained on so many images, or tested, or both."""

    examples: int
    train_loss: NotRequired[float | None]
    test_correct: NotRequired[int]
    test_examples: NotRequired[int]
    test_loss: NotRequired[float | None]
    evaluated_round: NotRequired[int]
    rescaler: NotRequired[float]


class ClientEvent(TypedDict):
    """One client's reply in one round; `status` is "ok", "failed" or "refused"."""

    event: Literal["client"]
    round: int
    phase: str
    client: str
    partition: int
    status: str
    error: str | None
    bytes_down: dict[str, int]
    bytes_up: dict[str, int] | None
    seconds: dict[str, float]
    tasks: dict[str, RepliedTask]


class AccuracyEvent(TypedDict):
    """Accuracy by task after a round, as tested by "clients" or "server"."""

    event: Literal["accuracy"]
    round: int
    accuracy: Mapping[str, float]
    loss: Mapping[str, float | None]
    mean_accuracy: float
    worst_task: str
    worst_accuracy: float
    source: str


Clipped = dict[str, dict[str, dict[str, float]]]
"""Ratios of what was shortened: by "vectors" or "heads", client and task."""


class Privacy(TypedDict):
    """What differential privacy has cost so far: ε by client and task, and of all tasks of a client together."""

    delta: float
    noise_multiplier: float
    clip_norm: float
    relation: str
    epsilon: dict[str, dict[str, float]]
    epsilon_all_tasks: dict[str, float]


class Guards(TypedDict, total=False):
    """What a round's event says of the influence of clients and of their privacy, where either is bounded."""

    clipped: Clipped
    privacy: Privacy


class RoundEvent(Guards):
    """A finished round of training; the matrices of the task graph are in the order of `order`."""

    event: Literal["round"]
    round: int
    clients: int
    failed: int
    bytes_up: int
    bytes_down: int
    seconds: dict[str, float]
    tested: NotRequired[bool]
    tasks_without_holder: list[str]
    order: list[str]
    similarity: list[list[float]] | None
    z: list[list[float]] | None
    related: Mapping[str, list[str]]


class ResumeEvent(TypedDict):
    """A run goes on after a checkpoint of `round`, for the `attempt`-th time."""

    event: Literal["resume"]
    time: str
    run_id: str
    round: int
    attempt: int


# --- end ---


class Graph(TypedDict):
    """The task graph of a whole run: similarity and its standard score, in the order of `order`."""

    order: list[str]
    values: list[list[float]]
    z: list[list[float]]


class EndEvent(TypedDict):
    """How the run ended; `status` is "completed" or "failed"."""

    event: Literal["end"]
    time: str
    status: str
    error: str | None
    seconds: float
    artefacts: dict[str, str]
    similarity: Graph | None
    related: Mapping[str, list[str]]
    peak_memory_bytes: int


Event = PlanEvent | ClientEvent | AccuracyEvent | RoundEvent | ResumeEvent | EndEvent
KINDS = ("plan", "client", "accuracy", "round", "resume", "end")
