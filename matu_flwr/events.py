"""The events of a run. Each one is a line of `history.jsonl`.

    plan       what was decided before the first round: tasks, holders, backbone, predictions
    client     one client's reply in one round (or why there is none): examples, losses, bytes, seconds
    accuracy   accuracy of every tested task after a round; round 0 is before any training
    round      a finished round: bytes, seconds, task graph
    resume     the run was cut off and resumes after a checkpoint; events after the checkpoint were removed
    end        how the run ended, and where its files are

Clients test what they receive before they train. The accuracy of round r therefore comes during round r + 1, or, for
the last round, in the closing evaluation.

A field marked `NotRequired` is missing if it does not apply, or in histories of earlier releases. NaN and infinity are
stored as null, so a loss may be None when it is read back.

This module belongs to no sub-package, because several need it. `federation` writes events and does not know who uses
them; `run`, `compare` and `deployment` read them.
"""

# There is no `from __future__ import annotations` here. It would turn the annotations into text, and then NotRequired
# could not be recognised at run time.
from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

# --- plan ---


class PlannedTask(TypedDict):
    """One task and the clients that hold it: number of `classes`, and of their `train` and `test` images together."""

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
    """The backbone: where its pre-trained weights θ_p come from; `d` of its `total` parameters are trained."""

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
    """Expected bytes of a client's messages in a round, and expected peak memory of server and client, in bytes."""

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
    # Settings that differ from their defaults. Release 0.1.0 did not write them.
    changed: NotRequired[dict[str, Any]]
    backbone: PlannedBackbone
    tasks: list[PlannedTask]
    clients: list[PlannedClient]
    predicted: Predicted
    notes: list[str]
    versions: dict[str, str]


# --- while the run goes on ---


class RepliedTask(TypedDict):
    """One task of one reply: it was trained on `examples` images, or tested, or both."""

    examples: int
    train_loss: NotRequired[float | None]
    test_correct: NotRequired[int]
    test_examples: NotRequired[int]
    test_loss: NotRequired[float | None]
    evaluated_round: NotRequired[int]
    rescaler: NotRequired[float]


class Screened(TypedDict):
    """An update that is too large: its `size` and the most that was accepted (`limit`), as root mean squares.

    `what` is "vector" or "head". The limit is `factor` times the `reference`, or what training steps can do.
    """

    what: str
    task: str
    size: float
    reference: float
    factor: float
    limit: float


class ClientEvent(TypedDict):
    """One client's reply in one round; `status` is "ok", "failed" or "refused". There is one for each that was asked.

    `screen` is there if the reply was refused because it was too far from the others of its round.
    """

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
    screen: NotRequired[Screened]


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
"""What was clipped, as factors in (0, 1): by "vectors" or "heads", then client, then task."""


class Privacy(TypedDict):
    """Privacy spent so far: ε by client and task, and for all tasks of a client together, at the same δ (`delta`)."""

    delta: float
    noise_multiplier: float
    clip_norm: float
    relation: str
    epsilon: dict[str, dict[str, float]]
    epsilon_all_tasks: dict[str, float]


class ScreenedKind(TypedDict):
    """The `reference` of a round, and its `largest` update: whose, of which task, and what was its limit.

    Refused ones count too.
    """

    reference: float
    largest: float
    limit: float
    client: str
    task: str


class Guards(TypedDict, total=False):
    """Fields of a round's event that are there only if the influence or the privacy loss of clients is bounded.

    `screen` is by "vector" or "head". `rolled_back` says by task why it kept what it had before the round.
    """

    clipped: Clipped
    privacy: Privacy
    screen: dict[str, ScreenedKind]
    rolled_back: dict[str, str]


class RoundEvent(Guards):
    """A finished round of training. `similarity` and `z` are (T, T), rows and columns in the order of `order`."""

    event: Literal["round"]
    round: int
    clients: int
    failed: int
    bytes_up: int
    bytes_down: int
    seconds: dict[str, float]
    tested: NotRequired[bool]
    tasks_without_holder: list[str]
    # Tasks that the round did not change because fewer than `min-clients` replies came, with how many did.
    too_few: NotRequired[dict[str, int]]
    order: list[str]
    similarity: list[list[float]] | None
    z: list[list[float]] | None
    related: Mapping[str, list[str]]


class ResumeEvent(TypedDict):
    """The run resumes after the checkpoint of `round`; `attempt` counts how often it has been resumed."""

    event: Literal["resume"]
    time: str
    run_id: str
    round: int
    attempt: int


# --- end ---


class Graph(TypedDict):
    """Task graph of a whole run: similarity (`values`) and standard score (`z`), (T, T) in the order of `order`."""

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
