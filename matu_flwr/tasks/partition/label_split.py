"""The examples of one task to its holders: by a Dirichlet distribution over labels, or evenly.

The Dirichlet split is the default and ours, although flwr-datasets has one, for three reasons: a client that starts
imports neither pandas nor pyarrow for it; a draw that leaves a holder short of `min_examples` is repaired by moving
examples, where Flower's draws again and gives up; and it depends on numpy's generator alone, so that nodes with
different versions of flwr-datasets still cut the same shares. Flower's partitioners serve for the other splits
(`matu_flwr.tasks.partition.flower_splits`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from matu_flwr.seeds import generator
from matu_flwr.tasks.errors import TaskError

Indices = npt.NDArray[np.int64]

_DRAWS = 50  # of a Dirichlet split, before examples are moved by hand to reach min_examples


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
    if not alpha > 0 or not np.isfinite(alpha):
        raise TaskError(f"alpha is {alpha}: expected a finite number > 0 (100 is nearly even, 0.1 very skewed)")
    check_enough(len(labels), num_holders, min_examples)
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


def check_enough(n: int, num_holders: int, min_examples: int) -> None:
    """Refuse a split of `n` examples that no rule could make."""
    if num_holders < 1:
        raise TaskError(f"num_holders is {num_holders}: expected 1 or more")
    if num_holders * min_examples > n:
        raise TaskError(
            f"{n} training examples cannot give each of {num_holders} holders at least {min_examples}: "
            "lower min_examples, use fewer clients or tasks per client, or raise the task's max_train"
        )
