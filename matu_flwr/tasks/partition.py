"""Who holds what: tasks are dealt to clients, then each task's examples are split among its holders.

The partition is task x label: `deal` gives every client some tasks; `split_by_label` divides the training examples of
one task among its holders by a Dirichlet distribution over labels. All of it is a function of the seed, so each node
works out its own share (`client_shares`) and nobody has to send index lists around.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from matu_flwr.seeds import derive_seed, generator
from matu_flwr.tasks.errors import TaskError

Indices = npt.NDArray[np.int64]
Labels = Callable[[str], tuple[npt.NDArray[np.int64], int]]

_DRAWS = 50  # of a Dirichlet split, before examples are moved by hand to reach min_examples


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


def deal(tasks: Sequence[str], num_clients: int, *, min_tasks: int, max_tasks: int, seed: int) -> list[list[str]]:
    """Say which tasks each client holds.

    Each client draws its number of tasks uniformly from ``min_tasks .. max_tasks``; then each takes that many, one by
    one, of the tasks with the fewest holders so far, so that holder counts never differ by more than one. Among those
    it takes one that has shared a client least often with the tasks already in its hand, ties broken at random: tasks
    that always share a client could not be told from related ones.

    Parameters
    ----------
    tasks : sequence of str
        Names of the tasks, in the order of the suite.
    num_clients : int
        Number of clients, 1 or more.
    min_tasks, max_tasks : int
        Range of tasks per client, ``1 <= min_tasks <= max_tasks``; at most all tasks are given to a client. With too
        few seats for all tasks the clients with the fewest get more than `max_tasks`, so that no task is left out.
    seed : int
        Seed of the run.

    Returns
    -------
    list of list of str
        For each partition id its tasks, in the order of `tasks`.
    """
    if not tasks or len(set(tasks)) < len(tasks):
        raise TaskError(f"cannot deal tasks {list(tasks)}: expected one or more different names")
    if num_clients < 1:
        raise TaskError(f"num_clients is {num_clients}: expected 1 or more")
    if not 1 <= min_tasks <= max_tasks:
        raise TaskError(f"min_tasks is {min_tasks} and max_tasks is {max_tasks}: expected 1 <= min_tasks <= max_tasks")
    if min_tasks > len(tasks):
        raise TaskError(
            f"min_tasks is {min_tasks}, but there are only {len(tasks)} tasks: lower it or choose a larger suite"
        )
    rng = generator(seed, "deal")
    seats = rng.integers(min_tasks, min(max_tasks, len(tasks)), endpoint=True, size=num_clients)
    while seats.sum() < len(tasks):
        fewest = np.flatnonzero(seats == seats.min())
        seats[rng.choice(fewest)] += 1

    holders = np.zeros(len(tasks), dtype=np.int64)
    together = np.zeros((len(tasks), len(tasks)), dtype=np.int64)  # clients that hold both
    hands: list[list[str]] = []
    for count in seats:
        hand: list[int] = []
        for _ in range(count):
            held = np.isin(np.arange(len(tasks)), hand)
            # lexsort: not in the hand, fewest holders, least met, a fresh shuffle within equals
            order = np.lexsort((rng.permutation(len(tasks)), together[:, hand].sum(axis=1), holders, held))
            hand.append(int(order[0]))
        holders[hand] += 1
        together[np.ix_(hand, hand)] += 1
        hands.append([tasks[index] for index in sorted(hand)])
    return hands


def split_by_label(
    labels: npt.NDArray[np.int64], num_holders: int, *, alpha: float, seed: int, min_examples: int
) -> list[Indices]:
    """Split the examples of one task among its holders, label by label.

    For each label the holders' portions are drawn from a symmetric Dirichlet(`alpha`) distribution. A draw that leaves
    a holder short is repeated; after 50 draws, the draw whose smallest part was largest is taken and random examples
    are moved from the largest part to each short one.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        Label of each example.
    num_holders : int
        Number of parts, 1 or more.
    alpha : float
        Concentration, > 0: 0.1 gives each holder few labels, 100 an almost even mixture.
    seed : int
        Seed of this split; `client_shares` derives it from the run's seed and the task's name.
    min_examples : int
        Each part has at least this many examples; 0 allows empty parts.

    Returns
    -------
    list of ndarray of int64
        Indices of each part, ascending; the parts are disjoint and cover ``0 .. N - 1``.
    """
    if num_holders < 1:
        raise TaskError(f"num_holders is {num_holders}: expected 1 or more")
    if not alpha > 0 or not np.isfinite(alpha):
        raise TaskError(f"alpha is {alpha}: expected a finite number > 0 (100 is nearly even, 0.1 very skewed)")
    if num_holders * min_examples > len(labels):
        raise TaskError(
            f"{len(labels)} training examples cannot give each of {num_holders} holders at least {min_examples}: "
            "lower min_examples, use fewer clients or tasks per client, or raise the task's max_train"
        )
    rng = generator(seed, "split-by-label")
    best = _dirichlet_parts(labels, num_holders, alpha, rng)
    for _ in range(_DRAWS - 1):
        if min(map(len, best)) >= min_examples:
            break
        best = max(best, _dirichlet_parts(labels, num_holders, alpha, rng), key=lambda parts: min(map(len, parts)))
    parts = _fill_up(best, min_examples, rng)
    return [np.sort(part) for part in parts]


def _dirichlet_parts(
    labels: npt.NDArray[np.int64], num_holders: int, alpha: float, rng: np.random.Generator
) -> list[Indices]:
    """One draw: cut the shuffled examples of each label at the cumulated portions."""
    pieces: list[list[Indices]] = [[] for _ in range(num_holders)]
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        portions = rng.dirichlet(np.full(num_holders, alpha))  # (num_holders,) sums to 1
        cuts = np.round(np.cumsum(portions)[:-1] * len(indices)).astype(np.int64)
        for piece, part in zip(pieces, np.split(indices, np.minimum(cuts, len(indices))), strict=True):
            piece.append(part)
    return [np.concatenate([np.empty(0, dtype=np.int64), *piece]) for piece in pieces]


def _fill_up(parts: list[Indices], min_examples: int, rng: np.random.Generator) -> list[Indices]:
    """Move random examples from the largest part to any part that has fewer than `min_examples`."""
    parts = [rng.permutation(part) for part in parts]
    for short in range(len(parts)):
        while (missing := min_examples - len(parts[short])) > 0:
            largest = max(range(len(parts)), key=lambda index: len(parts[index]))
            # the giver stays at min_examples or above: it has more, or else the total would not suffice
            given = min(missing, len(parts[largest]) - min_examples)
            parts[short] = np.concatenate([parts[short], parts[largest][:given]])
            parts[largest] = parts[largest][given:]
    return parts


def split_evenly(n: int, num_holders: int, *, seed: int) -> list[Indices]:
    """Split ``0 .. n - 1`` at random into `num_holders` disjoint parts whose sizes differ by at most one.

    Returns
    -------
    list of ndarray of int64
        Indices of each part, ascending.
    """
    if num_holders < 1:
        raise TaskError(f"num_holders is {num_holders}: expected 1 or more")
    order = generator(seed, "split-evenly").permutation(n).astype(np.int64)
    return [np.sort(part) for part in np.array_split(order, num_holders)]


def client_shares(
    holdings: list[list[str]], partition: int, labels: Labels, *, alpha: float, seed: int, min_examples: int
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
    alpha, seed, min_examples
        See `split_by_label`. `seed` is the run's; every task gets its own.

    Returns
    -------
    dict of str to Share
        In the order of ``holdings[partition]``. Shares of one task over its holders are disjoint and cover it.
    """
    if not 0 <= partition < len(holdings):
        raise TaskError(
            f"partition is {partition}: expected 0 to {len(holdings) - 1}, there are {len(holdings)} clients"
        )
    shares = {}
    for task in holdings[partition]:
        place = _holders(holdings, task).index(partition)
        shares[task] = _task_shares(holdings, task, labels, alpha=alpha, seed=seed, min_examples=min_examples)[place]
    return shares


def manifest(
    holdings: list[list[str]], labels: Labels, *, alpha: float, seed: int, min_examples: int
) -> dict[str, Any]:
    """Describe the whole partition in plain numbers, to be stored beside a run's results.

    Returns
    -------
    dict
        JSON-able: the settings; under ``tasks`` per task its holders and sizes; under ``clients`` per partition id and
        task the number of training examples, how many of each label (key: label as text), and of test examples.
    """
    clients: list[dict[str, Any]] = [{"partition": index, "tasks": {}} for index in range(len(holdings))]
    tasks: dict[str, Any] = {}
    for task in dict.fromkeys(task for hand in holdings for task in hand):
        train_labels, num_test = labels(task)
        holders = _holders(holdings, task)
        tasks[task] = {"holders": holders, "train": len(train_labels), "test": int(num_test)}
        shares = _task_shares(holdings, task, labels, alpha=alpha, seed=seed, min_examples=min_examples)
        for holder, share in zip(holders, shares, strict=True):
            present, counts = np.unique(train_labels[share.train], return_counts=True)
            clients[holder]["tasks"][task] = {
                "train": len(share.train),
                "labels": {str(label): int(count) for label, count in zip(present, counts, strict=True)},
                "test": len(share.test),
            }
    return {"alpha": alpha, "seed": seed, "min_examples": min_examples, "tasks": tasks, "clients": clients}


def _holders(holdings: list[list[str]], task: str) -> list[int]:
    return [partition for partition, hand in enumerate(holdings) if task in hand]


def _task_shares(
    holdings: list[list[str]], task: str, labels: Labels, *, alpha: float, seed: int, min_examples: int
) -> list[Share]:
    """Shares of all holders of `task`, in the order of their partition ids."""
    train_labels, num_test = labels(task)
    num_holders = len(_holders(holdings, task))
    try:
        train = split_by_label(
            train_labels, num_holders, alpha=alpha, seed=derive_seed(seed, "train", task), min_examples=min_examples
        )
    except TaskError as error:
        raise TaskError(f"task {task!r}: {error}") from None
    test = split_evenly(num_test, num_holders, seed=derive_seed(seed, "test", task))
    return [Share(task, *parts) for parts in zip(train, test, strict=True)]
