"""Tasks to clients: who holds which tasks, before any example is split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from matu_flwr.seeds import generator
from matu_flwr.tasks.errors import TaskError, nearest

Counts = npt.NDArray[np.int64]
DEALS = ("even", "dirichlet", "ring")


def deal(
    tasks: Sequence[str],
    num_clients: int,
    *,
    min_tasks: int,
    max_tasks: int,
    seed: int,
    how: str = "even",
    task_alpha: float = 1.0,
) -> list[list[str]]:
    """Say which tasks each client holds.

    Each client draws its number of tasks uniformly from ``min_tasks .. max_tasks``; equal bounds fix the number. Then

    - ``how="even"``: each takes that many, one by one, of the tasks with the fewest holders so far, so that holder
      counts never differ by more than one. Among those it takes one that has shared a client least often with the tasks
      already in its hand, ties broken at random: tasks that always share a client could not be told from related ones.
    - ``how="dirichlet"``: the popularity of all tasks is drawn once from a symmetric Dirichlet(`task_alpha`)
      distribution, and each client draws its tasks without replacement, one by one, in proportion to popularity. A task
      that nobody drew takes the place of the task with the most holders at one of these.
    - ``how="ring"``: client i takes tasks i, i + 1, … in the order of the suite, and around: only tasks that the suite
      lists together meet. With fewer clients than tasks each begins where the one before ended.

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
    how : {"even", "dirichlet", "ring"}
        See above.
    task_alpha : float
        Concentration of ``how="dirichlet"``, > 0: 0.1 gives a few tasks most holders, 100 is nearly even.

    Returns
    -------
    list of list of str
        For each partition id its tasks, in the order of `tasks`. Every task has a holder.
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
    if how not in DEALS:
        raise TaskError(f"unknown way to deal tasks {how!r}: {nearest(how, DEALS)}")
    if not task_alpha > 0 or not np.isfinite(task_alpha):
        raise TaskError(
            f"task_alpha is {task_alpha}: expected a finite number > 0 (100 is nearly even, 0.1 very skewed)"
        )
    rng = generator(seed, "deal")
    seats = rng.integers(min_tasks, min(max_tasks, len(tasks)), endpoint=True, size=num_clients)
    while seats.sum() < len(tasks):
        fewest = np.flatnonzero(seats == seats.min())
        seats[rng.choice(fewest)] += 1
    if how == "even":
        hands = _even(seats, len(tasks), rng)
    elif how == "dirichlet":
        hands = _by_popularity(seats, len(tasks), task_alpha, rng)
    else:
        hands = _ring(seats, len(tasks))
    return [[tasks[index] for index in sorted(hand)] for hand in hands]


def _even(seats: Counts, num_tasks: int, rng: np.random.Generator) -> list[list[int]]:
    """Hands in which holder counts of tasks differ by one at most, and pairs of tasks meet evenly."""
    holders = np.zeros(num_tasks, dtype=np.int64)
    together = np.zeros((num_tasks, num_tasks), dtype=np.int64)  # clients that hold both
    hands: list[list[int]] = []
    for count in seats:
        hand: list[int] = []
        for _ in range(count):
            held = np.isin(np.arange(num_tasks), hand)
            # lexsort: not in the hand, fewest holders, least met, a fresh shuffle within equals
            order = np.lexsort((rng.permutation(num_tasks), together[:, hand].sum(axis=1), holders, held))
            hand.append(int(order[0]))
        holders[hand] += 1
        together[np.ix_(hand, hand)] += 1
        hands.append(hand)
    return hands


def _ring(seats: Counts, num_tasks: int) -> list[list[int]]:
    """Hands of neighbours; with fewer clients than tasks each begins where the one before ended."""
    firsts = np.arange(len(seats)) if len(seats) >= num_tasks else np.cumsum(seats) - seats
    return [
        [int(task % num_tasks) for task in range(first, first + count)]
        for first, count in zip(firsts, seats, strict=True)
    ]


def _by_popularity(seats: Counts, num_tasks: int, alpha: float, rng: np.random.Generator) -> list[list[int]]:
    """Hands drawn by the popularity of tasks; the sizes of hands are kept where an orphan is given a holder."""
    # log p up to a constant, p ~ Dirichlet(α). Gamma(α) = Gamma(α + 1) · U^(1/α): in logarithms no small α gives p = 0.
    popularity = np.log(rng.standard_gamma(alpha + 1, size=num_tasks)) - rng.standard_exponential(num_tasks) / alpha
    # The largest k of log p + Gumbel noise are k draws without replacement in proportion to p.
    hands = [
        [int(task) for task in np.argsort(-(popularity + rng.gumbel(size=num_tasks)), kind="stable")[:count]]
        for count in seats
    ]
    for orphan in range(num_tasks):
        holders = np.bincount(np.concatenate(hands), minlength=num_tasks)
        if holders[orphan] == 0:  # then some task has two holders: there are as many seats as tasks, or more
            most = int(rng.choice(np.flatnonzero(holders == holders.max())))
            hand = hands[int(rng.choice([client for client, hand in enumerate(hands) if most in hand]))]
            hand[hand.index(most)] = orphan
    return hands
