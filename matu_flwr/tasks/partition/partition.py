"""Who holds what: tasks are dealt to clients, then each task's examples are split among its holders.

The partition is task x label: `deal` (in `dealing`) gives every client some tasks; `split_examples` divides the
training examples of one task among its holders by a rule (in `label_split` and `flower_splits`), test examples are
divided evenly. All of it is a function of the seed, so each node works out its own share (`client_shares`) and nobody
has to send index lists around.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from matu_flwr.seeds import derive_seed
from matu_flwr.tasks.errors import TaskError, nearest
from matu_flwr.tasks.partition.dealing import deal
from matu_flwr.tasks.partition.flower_splits import split_pathological, split_shards
from matu_flwr.tasks.partition.label_split import Indices, check_enough, split_by_label, split_evenly

__all__ = [
    "Share",
    "SplitRule",
    "client_name",
    "client_shares",
    "deal",
    "fingerprint",
    "manifest",
    "split_by_label",
    "split_evenly",
    "split_examples",
]

SPLITS = ("dirichlet", "iid", "pathological", "shard")
Labels = Callable[[str], tuple[npt.NDArray[np.int64], int]]


@dataclass(frozen=True)
class Share:
    """What one client holds of one task.

    Attributes
    ----------
    task : str
        Name of the task.
    train : ndarray of int64, shape (n,)
        Indices into the task's training examples, ascending.
    test : ndarray of int64, shape (m,)
        Indices into the task's test examples, ascending.
    """

    task: str
    train: Indices
    test: Indices


@dataclass(frozen=True)
class SplitRule:
    """How the training examples of a task are split among its holders.

    Attributes
    ----------
    kind : {"dirichlet", "iid", "pathological", "shard"}
        See `split_by_label`, `split_evenly`, `split_pathological` and `split_shards`.
    alpha : float
        Of "dirichlet", > 0.
    classes_per_holder : int
        Of "pathological" (classes) and "shard" (shards), 1 or more.
    min_examples : int
        Each holder gets at least this many training examples; 0 allows empty parts.
    """

    kind: str
    alpha: float
    classes_per_holder: int
    min_examples: int


def split_examples(labels: npt.NDArray[np.int64], num_holders: int, rule: SplitRule, *, seed: int) -> list[Indices]:
    """Split the training examples of one task among its holders as `rule` says.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        Label of each example.
    num_holders : int
        Number of parts, 1 or more.
    rule : SplitRule
        Kind of split and its numbers.
    seed : int
        Seed of this split.

    Returns
    -------
    list of ndarray of int64
        Indices of each part, ascending and disjoint. They cover ``0 .. N - 1`` but for "pathological", which leaves out
        the classes that no holder was given.
    """
    if rule.kind == "dirichlet":
        return split_by_label(labels, num_holders, alpha=rule.alpha, seed=seed, min_examples=rule.min_examples)
    if rule.kind == "iid":
        check_enough(len(labels), num_holders, rule.min_examples)
        return split_evenly(len(labels), num_holders, seed=seed)
    if rule.kind not in SPLITS:
        raise TaskError(f"unknown split {rule.kind!r}: {nearest(rule.kind, SPLITS)}")
    split = split_pathological if rule.kind == "pathological" else split_shards
    return split(labels, num_holders, rule.classes_per_holder, seed=seed, min_examples=rule.min_examples)


def client_name(partition: int) -> str:
    """Name of a client that holds a share of a suite."""
    return f"client-{partition:03d}"


def client_shares(
    holdings: list[list[str]], partition: int, labels: Labels, rule: SplitRule, *, seed: int
) -> dict[str, Share]:
    """Return what client `partition` holds of each of its tasks.

    Parameters
    ----------
    holdings : list of list of str
        The tasks of every client, from `deal`.
    partition : int
        Partition id of the client.
    labels : callable
        Gives for a task its training labels, (N,) int64, and its number of test images. Called only for own tasks.
    rule : SplitRule
        How training examples are split.
    seed : int
        Seed of the run; every task gets its own.

    Returns
    -------
    dict of str to Share
        In the order of ``holdings[partition]``. Shares of one task over its holders are disjoint; they cover its test
        examples, and its training examples as far as `split_examples` says.
    """
    if not 0 <= partition < len(holdings):
        raise TaskError(
            f"partition is {partition}: expected 0 to {len(holdings) - 1}, there are {len(holdings)} clients"
        )
    shares = {}
    for task in holdings[partition]:
        place = _holders(holdings, task).index(partition)
        shares[task] = _task_shares(holdings, task, *labels(task), rule, seed)[place]
    return shares


def manifest(
    holdings: list[list[str]], labels: Labels, rule: SplitRule, *, seed: int, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Describe the whole partition in plain numbers, to be stored beside a run's results.

    Parameters
    ----------
    holdings, labels, rule, seed
        See `client_shares`; `labels` is called once per task.
    names : sequence of str, optional
        Names of the clients by partition id; `client_name` otherwise.

    Returns
    -------
    dict
        JSON-able:

        - ``seed``, ``split`` (the rule), ``fingerprint`` (see `fingerprint`);
        - ``tasks``: by task the names of its ``holders``, its numbers of ``train`` and ``test`` examples, and how many
          training examples are ``left_out`` of all shares;
        - ``clients``: per partition id ``client`` (its name), ``partition`` and ``tasks``: by task the number of
          ``train`` examples, how many there are of each of the ``labels`` (label as text), and of ``test`` examples.
    """
    names = list(names or map(client_name, range(len(holdings))))
    held: list[dict[str, Share]] = [{} for _ in holdings]
    clients: list[dict[str, Any]] = [{"client": name, "partition": i, "tasks": {}} for i, name in enumerate(names)]
    hands: list[list[Share]] = []
    tasks: dict[str, Any] = {}
    for task in dict.fromkeys(task for hand in holdings for task in hand):
        train_labels, num_test = labels(task)
        holders = _holders(holdings, task)
        shares = _task_shares(holdings, task, train_labels, num_test, rule, seed)
        for holder, share in zip(holders, shares, strict=True):
            held[holder][task] = share
            present, counts = np.unique(train_labels[share.train], return_counts=True)
            clients[holder]["tasks"][task] = {
                "train": len(share.train),
                "labels": {str(label): int(count) for label, count in zip(present, counts, strict=True)},
                "test": len(share.test),
            }
        tasks[task] = {
            "holders": [names[holder] for holder in holders],
            "train": len(train_labels),
            "test": int(num_test),
            "left_out": len(train_labels) - sum(len(share.train) for share in shares),
        }
    for client, hand, own in zip(clients, holdings, held, strict=True):  # in the order of the hand
        client["tasks"] = {task: client["tasks"][task] for task in hand}
        hands.append([own[task] for task in hand])
    return {"seed": seed, "split": asdict(rule), "fingerprint": fingerprint(hands), "tasks": tasks, "clients": clients}


def fingerprint(hands: Iterable[Sequence[Share]]) -> str:
    """SHA-256, in hex, of the exact index lists of all clients' shares with the names of their tasks.

    Two partitions with one fingerprint gave every client the same positions of the same tasks; whether images and
    labels at these positions are the same, it does not say.

    Parameters
    ----------
    hands : iterable of sequence of Share
        Shares by partition id, in the order of each client's tasks.
    """
    digest = hashlib.sha256()
    for shares in hands:
        digest.update(_int64([len(shares)]))
        for share in shares:
            name = share.task.encode()
            digest.update(_int64([len(name), len(share.train), len(share.test)]) + name)
            digest.update(_int64(share.train) + _int64(share.test))
    return digest.hexdigest()


def _int64(numbers: npt.ArrayLike) -> bytes:
    """Little-endian on every machine."""
    return np.asarray(numbers).astype("<i8").tobytes()


def _holders(holdings: list[list[str]], task: str) -> list[int]:
    return [partition for partition, hand in enumerate(holdings) if task in hand]


def _task_shares(
    holdings: list[list[str]],
    task: str,
    train_labels: npt.NDArray[np.int64],
    num_test: int,
    rule: SplitRule,
    seed: int,
) -> list[Share]:
    """Shares of all holders of `task`, in the order of their partition ids."""
    labels = train_labels.astype("<i8").tobytes()
    return _split_task(task, len(_holders(holdings, task)), labels, num_test, rule, seed)


@functools.lru_cache(maxsize=64)
def _split_task(
    task: str, num_holders: int, train_labels: bytes, num_test: int, rule: SplitRule, seed: int
) -> list[Share]:
    """`_task_shares`, remembered: a process that simulates many clients asks again for each of them."""
    try:
        train = split_examples(
            np.frombuffer(train_labels, "<i8").astype(np.int64),
            num_holders,
            rule,
            seed=derive_seed(seed, "train", task),
        )
    except TaskError as error:
        raise TaskError(f"task {task!r}: {error}") from None
    test = split_evenly(num_test, num_holders, seed=derive_seed(seed, "test", task))
    return [Share(task, *parts) for parts in zip(train, test, strict=True)]
