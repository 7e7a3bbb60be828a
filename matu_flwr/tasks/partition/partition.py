"""The partition of a suite: clients are given tasks, then each task's examples are split among its holders.

`deal` (in `dealing`) gives every client some tasks. `split_examples` splits the training examples of a task among its
holders by a rule (in `label_split`). Test examples are split evenly. All of it depends only on the settings and the
seed. So each node computes its own share (`client_shares`), and no lists of images have to be sent.
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

SPLITS = ("dirichlet", "iid")
Labels = Callable[[str], tuple[npt.NDArray[np.int64], int]]
"""Gives for a task its training labels, (N,) int64, and its number of test examples."""


@dataclass(frozen=True)
class Share:
    """The examples of one task that one client holds.

    Attributes
    ----------
    task : str
        Name of the task.
    train : ndarray of int64, shape (n,)
        Indices of the client's training examples among those of the task, ascending.
    test : ndarray of int64, shape (m,)
        Indices of the client's test examples among those of the task, ascending.
    """

    task: str
    train: Indices
    test: Indices


@dataclass(frozen=True)
class SplitRule:
    """How the training examples of a task are split among its holders.

    Attributes
    ----------
    kind : {"dirichlet", "iid"}
        See `split_by_label` and `split_evenly`.
    alpha : float
        Concentration of "dirichlet", > 0.
    min_examples : int
        Smallest number of training examples of a holder; 0 allows empty parts.
    """

    kind: str
    alpha: float
    min_examples: int


def split_examples(labels: npt.NDArray[np.int64], num_holders: int, rule: SplitRule, *, seed: int) -> list[Indices]:
    """Split the training examples of one task among its holders by `rule`.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        Label of each example.
    num_holders : int
        Number of parts, 1 or more.
    rule : SplitRule
        How to split.
    seed : int
        Seed of this split.

    Returns
    -------
    list of ndarray of int64
        The indices of each part, ascending. Parts are disjoint, and together they are ``0 .. N - 1``.

    Raises
    ------
    TaskError
        The kind of split is unknown, or there are not enough examples.
    """
    if rule.kind == "dirichlet":
        return split_by_label(labels, num_holders, alpha=rule.alpha, seed=seed, min_examples=rule.min_examples)
    if rule.kind == "iid":
        check_enough(len(labels), num_holders, rule.min_examples)
        return split_evenly(len(labels), num_holders, seed=seed)
    raise TaskError(f"unknown split {rule.kind!r}: {nearest(rule.kind, SPLITS)}")


def client_name(partition: int) -> str:
    """Name of the client with a partition id: "client-007" for 7."""
    return f"client-{partition:03d}"


def client_shares(
    holdings: list[list[str]], partition: int, labels: Labels, rule: SplitRule, *, seed: int
) -> dict[str, Share]:
    """Compute the shares of one client, one for each of its tasks.

    Parameters
    ----------
    holdings : list of list of str
        The tasks of every client, from `deal`.
    partition : int
        Partition id of the client.
    labels : callable
        Gives for a task its training labels, (N,) int64, and its number of test examples. It is called only for the
        client's own tasks.
    rule : SplitRule
        How training examples are split.
    seed : int
        Seed of the run. The seed of each task's split is derived from it.

    Returns
    -------
    dict of str to Share
        In the order of ``holdings[partition]``. The shares of a task's holders are disjoint. Together they have all
        examples of the task.

    Raises
    ------
    TaskError
        There is no such client, or a task has not enough examples.
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
    """Count who holds how many examples of each task and label, for the manifest of a run.

    Parameters
    ----------
    holdings, labels, rule, seed
        See `client_shares`. `labels` is called once per task.
    names : sequence of str, optional
        Names of the clients by partition id; by default those of `client_name`.

    Returns
    -------
    dict
        Of types that JSON can hold:

        - ``seed``, ``split`` (the rule) and ``fingerprint`` (see `fingerprint`);
        - ``tasks``: for each task the names of its ``holders``, and its numbers of ``train`` and ``test`` examples;
        - ``clients``: for each partition id ``client`` (the name), ``partition`` (the id) and ``tasks``. For each task
          of the client: the numbers of ``train`` and ``test`` examples, and ``labels``, the number of training
          examples of each label, which is the key as text.
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
        }
    # Tasks were filled in one after the other. Each client lists its own in the order of `holdings`.
    for client, hand, own in zip(clients, holdings, held, strict=True):
        client["tasks"] = {task: client["tasks"][task] for task in hand}
        hands.append([own[task] for task in hand])
    return {"seed": seed, "split": asdict(rule), "fingerprint": fingerprint(hands), "tasks": tasks, "clients": clients}


def fingerprint(hands: Iterable[Sequence[Share]]) -> str:
    """SHA-256 (hex) of all clients' shares: the names of their tasks and the exact indices.

    If two partitions have the same fingerprint, every client has the same indices of the same tasks in both. The
    fingerprint does not tell whether the images and labels at these indices are the same.

    Parameters
    ----------
    hands : iterable of sequence of Share
        Shares by partition id, in the order of each client's tasks.
    """
    digest = hashlib.sha256()
    for shares in hands:
        # Lengths come before what they count. Otherwise two different partitions could give the same bytes.
        digest.update(_int64([len(shares)]))
        for share in shares:
            name = share.task.encode()
            digest.update(_int64([len(name), len(share.train), len(share.test)]) + name)
            digest.update(_int64(share.train) + _int64(share.test))
    return digest.hexdigest()


def _int64(numbers: npt.ArrayLike) -> bytes:
    """The bytes of some integers: 64 bits each, little-endian on every machine."""
    return np.asarray(numbers).astype("<i8").tobytes()


def _holders(holdings: list[list[str]], task: str) -> list[int]:
    """Partition ids of the clients that hold a task, ascending."""
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
    # As bytes, because a cached function needs arguments that can be hashed.
    labels = train_labels.astype("<i8").tobytes()
    return _split_task(task, len(_holders(holdings, task)), labels, num_test, rule, seed)


# Cached, because a process that simulates many clients asks again for each of them.
@functools.lru_cache(maxsize=64)
def _split_task(
    task: str, num_holders: int, train_labels: bytes, num_test: int, rule: SplitRule, seed: int
) -> list[Share]:
    """Shares of all `num_holders` holders of a task; `train_labels` has int64 labels, little-endian."""
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
