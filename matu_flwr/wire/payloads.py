"""The contents of the messages as plain dataclasses, and what a receiver knows before it reads one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from matu_flwr import merging
from matu_flwr.backbones import LinearHead
from matu_flwr.config.settings import Scalar
from matu_flwr.merging import TaskVectors, VectorDtype
from matu_flwr.texts import Brief
from matu_flwr.wire.compression import Compression

# Version of the format. Both sides must have the same: raise it with every change of the records.
PROTOCOL = 4
DTYPES: tuple[VectorDtype, ...] = get_args(VectorDtype)
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
# Examples of one task at one client. No data set is larger: more is a fault or an attack.
MAX_EXAMPLES = 10**9
# A rescaler is near 1 for vectors of similar size (docs/method.md, the client's step 3). A rescaler times a value of
# the vector stays within float32, which ends at 3.4e38, as long as both are within these bounds. `unify` never makes
# anything beyond them.
MAX_MAGNITUDE = 10 * merging.MAX_MAGNITUDE
# A number of a reply as it is used: a value of the vector times its rescaler, or a number of a head. So much below
# MAX_MAGNITUDE that no sum over holders, tasks and rounds gets there: what the server sends must be within it.
MAX_REBUILT = 1e24
# A mean loss, and seconds of one activity in one round. Sums of them stay finite. The loss of guessing is the logarithm
# of the number of classes; one of a million would drown the losses of all others in their mean.
MAX_LOSS = 1e6
MAX_SECONDS = 1e7
# What a client may say that it spent time on.
ACTIVITIES = ("evaluate", "train", "unify")
# Limits of one announcement: tasks, classes of a task, and characters of all class lists together.
MAX_TASKS = 1_000
MAX_CLASSES = 100_000
MAX_CLASS_TEXT = 8_000_000
# Characters of a digest.
MAX_DIGEST = 64
# Bytes of the .npy header that begins an array. Those of the arrays that we send are shorter.
NPY_HEADER = 256


class WireError(Brief, ValueError):
    """A message that is malformed or not the expected one. The text names the sender, what was found and expected."""


@dataclass(frozen=True)
class Expected:
    """What a receiver knows about a message before it reads it.

    Attributes
    ----------
    who : str
        The sender's name, for errors.
    d : int
        Length of a vector: the number of trained parameters.
    fingerprint : str
        Fingerprint of the receiver's start θ_p and of the layout of its parameters. The sender's must be the same.
    classes : mapping of str to int
        The tasks that the message may hold, each with its number of classes.
    num_features : int
        Columns of a head's weight, F.
    round : int, optional
        The round that the message must belong to; None accepts any round.
    examples : mapping of str to int, optional
        Training examples by task, as the client announced them.
    tests : mapping of str to int, optional
        Test images by task, as the client announced them.
    losses : bool
        Whether a training loss must be told. Nobody has one who was not asked to train, or adds noise for privacy.
    heads : bool
        Whether this run sends heads. If not, a message with heads is refused.
    """

    who: str
    d: int
    fingerprint: str
    classes: Mapping[str, int]
    num_features: int
    round: int | None = None
    examples: Mapping[str, int] | None = None
    tests: Mapping[str, int] | None = None
    losses: bool = False
    heads: bool = True


@dataclass(frozen=True)
class Downlink:
    """What the server sends to one client in one round.

    Attributes
    ----------
    round : int
        Number of the round.
    fingerprint : str
        Fingerprint of θ_p and of the layout of the trained parameters.
    tasks : list of str
        The client's tasks, sorted by name.
    vectors : UnifiedTaskVector or SeparateTaskVectors, optional
        Where the client's tasks start. None if all start at θ_p, or if the method sends no vectors.
    heads : dict of str to LinearHead
        Shared heads by task. A task without one starts from zeros, or keeps the client's own head.
    evaluate : bool
        Whether the client tests what it received, before it trains.
    settings : dict
        The run's settings that differ from the defaults of `Settings`, by flat key.
    run_name : str
        Name of the folder in which the client keeps its own state.
    attempt : int
        How often the run was resumed from a checkpoint.
    trained : int
        The last round for which the server got this client's training reply; 0 if there is none.
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
    """One task's results in one reply. `test_*` were measured with the model that the client received.

    A loss is NaN if there is none: nothing was trained, or no image was tested.
    """

    train_loss: float = math.nan
    test_correct: int = 0
    test_examples: int = 0
    test_loss: float = math.nan


@dataclass(frozen=True)
class Uplink:
    """What one client sends back.

    Attributes
    ----------
    round : int
        Number of the round that is answered.
    fingerprint : str
        Fingerprint of θ_p and of the layout of the trained parameters.
    vectors : UnifiedTaskVector or SeparateTaskVectors, optional
        The client's task vectors, or their changes in this round. None in a reply to a test, or if the method shares
        no vectors.
    num_examples : dict of str to int
        Training examples by task.
    heads : dict of str to LinearHead
        Trained heads by task; empty if the run sends no heads.
    metrics : dict of str to TaskMetrics
        Results by task.
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
        Numbers of training and test images.
    head : str
        Digest of the text tower and the prompts that a zero-shot head is made from; "" for a trained head.
    data : str
        Digest of all labels of the task, if this client has a share of a common data set; "" if it has its own images.
    absent : tuple of int
        Positions in `classes` of those that have no training images at this client, ascending. How many images the
        others have is not said.
    """

    classes: tuple[str, ...]
    train: int
    test: int
    head: str = ""
    data: str = ""
    absent: tuple[int, ...] = ()


@dataclass(frozen=True)
class Announcement:
    """What a client says about itself when it registers.

    Attributes
    ----------
    client : str
        The client's name, unique in the federation.
    partition : int
        Flower's partition id; -1 on a node that brings its own data and has none.
    fingerprint : str
        Fingerprint of θ_p and of the layout of the trained parameters.
    tasks : dict of str to TaskInfo
        What the client holds, by task.
    """

    client: str
    partition: int
    fingerprint: str
    tasks: dict[str, TaskInfo]
