"""How many usable replies a round needs, and which tasks have too few of them to be changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from logging import WARNING

from flwr.common.logger import log

from matu_flwr.federation.registration import FederationError
from matu_flwr.federation.round_books import RoundBooks
from matu_flwr.merging import ClientUpdate, SeparateTaskVectors, TaskVectors, UnifiedTaskVector
from matu_flwr.merging.masks import masks_of


def check_usable(books: RoundBooks, min_nodes: int, clients: int) -> None:
    """Stop the run if fewer than `min_nodes` replies are usable.

    The rule is for rounds that ask all `clients` of the run, and for the closing test. In a round that asks a share of
    them (`fraction-train`), `max-failed-fraction` alone decides.

    Raises
    ------
    FederationError
        The text gives the reason for each client whose reply is not usable.
    """
    wanted = min(min_nodes, clients)
    if len(books.asked) < clients or len(books.answered) >= wanted:
        return
    reasons = "".join(f"\n  {name}: {reason}" for name, reason in sorted(books.failures.items()))
    raise FederationError(
        f"round {books.number}: {len(books.answered)} usable replies of {len(books.asked)} clients that were asked, "
        f"wanted {wanted} (min-nodes = {min_nodes}):{reasons}\nput right what stands there and resume the run, or "
        "lower min-nodes"
    )


def too_few(books: RoundBooks, min_clients: int) -> dict[str, int]:
    """The tasks that this round must not change: fewer than `min_clients` of their holders sent a usable reply.

    Returns
    -------
    dict of str to int
        The number of usable replies by task, in the order of names. Tasks without any reply are not among them: nothing
        would change them.
    """
    counts: dict[str, int] = {}
    for reply in books.answered.values():
        for task in reply.num_examples:
            counts[task] = counts.get(task, 0) + 1
    found = {task: count for task, count in sorted(counts.items()) if count < min_clients}
    if found:
        log(
            WARNING,
            "round %d: these tasks stay as they are, because fewer than min-clients = %d replies came: %s",
            books.number,
            min_clients,
            ", ".join(f"{task} ({count})" for task, count in found.items()),
        )
    return found


def without_tasks(updates: Sequence[ClientUpdate], left_out: Collection[str]) -> list[ClientUpdate]:
    """The updates less some tasks. A client that has no other task is left out with them."""
    if not left_out:
        return list(updates)
    found = []
    for update in updates:
        examples = {task: count for task, count in update.num_examples.items() if task not in left_out}
        if examples:
            found.append(replace(update, vectors=_of_tasks(update.vectors, examples), num_examples=examples))
    return found


def _of_tasks(vectors: TaskVectors, tasks: Mapping[str, int]) -> TaskVectors:
    if isinstance(vectors, SeparateTaskVectors):
        return SeparateTaskVectors({task: vectors.vectors[task] for task in tasks})
    return UnifiedTaskVector(
        vectors.vector,
        masks_of(vectors.masks, tasks, vectors.d),
        {task: vectors.rescalers[task] for task in tasks},
        {task: vectors.opposites[task] for task in tasks} if vectors.opposites else {},
    )
