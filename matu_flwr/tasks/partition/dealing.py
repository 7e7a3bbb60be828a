"""Gives tasks to clients. Which images of a task a client gets is decided later."""

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
    """Choose the tasks of each client.

    Each client first draws a number of tasks uniformly from ``min_tasks .. max_tasks``. Then `how` decides which tasks
    it gets:

    - ``how="even"``: one by one, the client takes a task with the fewest holders so far. So the numbers of holders
      never differ by more than one. If there are several such tasks, it takes the one that has been together least
      often with the tasks it already has, and among equal ones a random one. Tasks that are always held together could
      not be told from related tasks.
    - ``how="dirichlet"``: the popularity of the tasks is drawn once from a symmetric Dirichlet(`task_alpha`)
      distribution. Each client draws its tasks in proportion to it, without replacement. If nobody drew a task, it
      replaces the task with the most holders at one of these holders.
    - ``how="ring"``: client i takes the tasks i, i + 1, … of the suite, and goes on at the first after the last. So
      only tasks that are neighbours in the suite are held together. If there are fewer clients than tasks, each
      client begins where the one before ended.

    Parameters
    ----------
    tasks : sequence of str
        Names of the tasks, in the order of the suite.
    num_clients : int
        Number of clients, 1 or more.
    min_tasks, max_tasks : int
        Smallest and largest number of tasks of a client, ``1 <= min_tasks <= max_tasks``. If the clients together would
        hold fewer tasks than there are, those with the fewest get more, also more than `max_tasks`.
    seed : int
        Seed of the run.
    how : {"even", "dirichlet", "ring"}
        How tasks are chosen, see above.
    task_alpha : float
        Concentration of the Dirichlet distribution, > 0. With 0.1 a few tasks have most holders, 100 is nearly even.

    Returns
    -------
    list of list of str
        The tasks of each client by partition id, in the order of `tasks`. Every task has at least one holder.

    Raises
    ------
    TaskError
        An argument is outside its range.
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
    # Every task must have a holder, so clients with the fewest tasks get more until there are enough places.
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
    """Choose the tasks of each client for ``how="even"``. `seats` has the number of tasks of each client."""
    holders = np.zeros(num_tasks, dtype=np.int64)
    # For each pair of tasks the number of clients that hold both.
    together = np.zeros((num_tasks, num_tasks), dtype=np.int64)
    hands: list[list[int]] = []
    for count in seats:
        hand: list[int] = []
        for _ in range(count):
            held = np.isin(np.arange(num_tasks), hand)
            # lexsort goes by its last key first: tasks not held yet, then those with the fewest holders, then those
            # least often together with the tasks held. A shuffle decides between equal ones.
            order = np.lexsort((rng.permutation(num_tasks), together[:, hand].sum(axis=1), holders, held))
            hand.append(int(order[0]))
        holders[hand] += 1
        together[np.ix_(hand, hand)] += 1
        hands.append(hand)
    return hands


def _ring(seats: Counts, num_tasks: int) -> list[list[int]]:
    """Choose the tasks of each client for ``how="ring"``. `seats` has the number of tasks of each client."""
    firsts = np.arange(len(seats)) if len(seats) >= num_tasks else np.cumsum(seats) - seats
    return [
        [int(task % num_tasks) for task in range(first, first + count)]
        for first, count in zip(firsts, seats, strict=True)
    ]


def _by_popularity(seats: Counts, num_tasks: int, alpha: float, rng: np.random.Generator) -> list[list[int]]:
    """Choose the tasks of each client for ``how="dirichlet"``. `seats` has the number of tasks of each client."""
    # The logarithm of p ~ Dirichlet(α), up to a constant. It uses Gamma(α) = Gamma(α + 1) · U^(1/α). In logarithms, p
    # does not become 0 even for a small α.
    popularity = np.log(rng.standard_gamma(alpha + 1, size=num_tasks)) - rng.standard_exponential(num_tasks) / alpha
    # The Gumbel trick: the k largest of log p + Gumbel noise are k draws without replacement in proportion to p.
    hands = [
        [int(task) for task in np.argsort(-(popularity + rng.gumbel(size=num_tasks)), kind="stable")[:count]]
        for count in seats
    ]
    for orphan in range(num_tasks):
        holders = np.bincount(np.concatenate(hands), minlength=num_tasks)
        # If a task has no holder, another has at least two, because there are at least as many places as tasks.
        if holders[orphan] == 0:
            most = int(rng.choice(np.flatnonzero(holders == holders.max())))
            hand = hands[int(rng.choice([client for client, hand in enumerate(hands) if most in hand]))]
            hand[hand.index(most)] = orphan
    return hands
