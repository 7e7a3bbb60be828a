"""What travels, as plain dataclasses; and what a receiver expects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from matu_flwr.backbones import LinearHead
from matu_flwr.config.settings import Scalar
from matu_flwr.merging import TaskVectors, VectorDtype
from matu_flwr.wire.compression import Compression

PROTOCOL = 3
DTYPES: tuple[VectorDtype, ...] = get_args(VectorDtype)
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
MAX_EXAMPLES = 10**9  # of one task at one client; more is a fault, not a data set
# λ = ‖τ^t‖₁ / ‖m^t ⊙ τ‖₁ is near 1 for vectors of like size. Within both bounds no reconstruction leaves float32.
MAX_RESCALER = 1e6
MAX_MAGNITUDE = 1e31  # of a value of the unified vector
MAX_CLASSES = 100_000
MAX_NAME = 200
NPY_HEADER = 256  # no .npy header of the arrays that we send is longer


class WireError(ValueError):
    """A payload that is not what it has to be."""


@dataclass(frozen=True)
class Expected:
    """What a receiver knows about a payload before it opens it.

    Attributes
    ----------
    who : str
        Sender, as named in errors.
    d : int
        Length of a vector.
    fingerprint : str
        Of layout and θ_p.
    classes : mapping of str to int
        Number of classes of each task that the payload may hold.
    num_features : int
        Columns of a head's weight.
    round : int, optional
        Round that the payload has to be of; None accepts any.
    examples : mapping of str to int, optional
        Training examples that the client announced.
    heads : bool
        Whether heads travel in this run.
    """

    who: str
    d: int
    fingerprint: str
    classes: Mapping[str, int]
    num_features: int
    round: int | None = None
    examples: Mapping[str, int] | None = None
    heads: bool = True


@dataclass(frozen=True)
class Downlink:
    """What the server sends to one client in one round.

    Attributes
    ----------
    vectors : UnifiedTaskVector or SeparateTaskVectors, optional
        Of the client's tasks; None = every task starts at θ_p, or the method sends none.
    heads : dict of str to LinearHead
        Shared heads by task; a task without one starts from zeros or keeps its own.
    evaluate : bool
        Test what was received before training.
    settings : dict
        Values that differ from the defaults of `Settings`.
    run_name : str
        Name under which the client keeps its own state.
    attempt : int
        How often the run was resumed from a checkpoint.
    trained : int
        The last round of which the server has this client's reply to training; 0 = none.
    """

    round: int
    fingerprint: str
    tasks: list[str]
    vectors: TaskVectors | None
    heads: dict[str, LinearHead]
    evaluate: bool
    settings: dict[str, Scalar]
    run_name: str
    attempt: int = 0
    trained: int = 0


@dataclass(frozen=True)
class TaskMetrics:
    """One task's numbers in one reply. `test_*` belong to the model that the client received."""

    train_loss: float = math.nan
    test_correct: int = 0
    test_examples: int = 0
    test_loss: float = math.nan


@dataclass(frozen=True)
class Uplink:
    """What one client sends back.

    Attributes
    ----------
    vectors : UnifiedTaskVector or SeparateTaskVectors, optional
        Of its task vectors or updates; None after an evaluation, or for methods that share none.
    num_examples : dict of str to int
        Training examples by task.
    metrics : dict of str to TaskMetrics
        By task.
    seconds : dict of str to float
        Time spent, by activity.
    """

    round: int
    fingerprint: str
    vectors: TaskVectors | None
    num_examples: dict[str, int]
    heads: dict[str, LinearHead]
    metrics: dict[str, TaskMetrics]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskInfo:
    """What a client announces about one of its tasks.

    Attributes
    ----------
    classes : tuple of str
        Class names in the order of the labels.
    train, test : int
        Images.
    head : str
        Digest of where a zero-shot head comes from; "" for a trained one.
    data : str
        Digest of all labels of the task, of which this client has a share; "" where it has images of its own.
    """

    classes: tuple[str, ...]
    train: int
    test: int
    head: str = ""
    data: str = ""


@dataclass(frozen=True)
class Announcement:
    """What a client says of itself before the first round.

    Attributes
    ----------
    client : str
        Name, unique in the federation; replies are merged in the order of names.
    partition : int
        Flower's partition id; -1 on a node that brings its own data and has none.
    """

    client: str
    partition: int
    fingerprint: str
    tasks: dict[str, TaskInfo]
