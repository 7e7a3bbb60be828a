"""Splits the examples of one task among its holders: by a Dirichlet distribution over labels, or evenly.

flwr-datasets has a Dirichlet split too. This one is written here for three reasons. It needs neither pandas nor
pyarrow, so clients start faster. If a holder gets fewer than `min_examples`, examples are moved to it, while Flower's
draws again and gives up in the end. And it depends only on numpy's generator.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from matu_flwr.seeds import generator
from matu_flwr.tasks.errors import TaskError

Indices = npt.NDArray[np.int64]

# Number of Dirichlet draws, after which examples are moved between holders to reach min_examples.
_DRAWS = 50


def split_by_label(
    labels: npt.NDArray[np.int64], num_holders: int, *, alpha: float, seed: int, min_examples: int
) -> list[Indices]:
    """Split the examples of one task among its holders, label by label.

    For each label the holders' portions are drawn from a symmetric Dirichlet(`alpha`) distribution. If a holder gets
    fewer than `min_examples`, the draw is repeated. After 50 draws the one whose smallest part was the largest is
    taken, and random examples are moved from the largest part to each part that is too small.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        Label of each example.
    num_holders : int
        Number of parts, 1 or more.
    alpha : float
        Concentration, > 0. With 0.1 each holder has few labels, with 100 almost the same mixture as the others.
    seed : int
        Seed of this split; `client_shares` derives it from the run's seed and the task's name.
    min_examples : int
        Smallest size of a part; 0 allows empty parts.

    Returns
    -------
    list of ndarray of int64
        The indices of each part, ascending. Parts are disjoint, and together they are ``0 .. N - 1``.

    Raises
    ------
    TaskError
        An argument is outside its range, or there are not enough examples.
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
    """Make one draw: shuffle the examples of each label, and cut them into the portions that were drawn."""
    pieces: list[list[Indices]] = [[] for _ in range(num_holders)]
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        portions = rng.dirichlet(np.full(num_holders, alpha))  # (num_holders,), sums to 1
        # The running sum is rounded, not each portion: so the pieces always add up to all examples.
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
            # The largest part has more than min_examples, because all examples together suffice. It keeps at least
            # that many, so no part becomes too small by giving.
            given = min(missing, len(parts[largest]) - min_examples)
            parts[short] = np.concatenate([parts[short], parts[largest][:given]])
            parts[largest] = parts[largest][given:]
    return parts


def split_evenly(n: int, num_holders: int, *, seed: int) -> list[Indices]:
    """Split ``0 .. n - 1`` at random into `num_holders` disjoint parts whose sizes differ by at most one.

    Returns
    -------
    list of ndarray of int64
        The indices of each part, ascending.
    """
    if num_holders < 1:
        raise TaskError(f"num_holders is {num_holders}: expected 1 or more")
    order = generator(seed, "split-evenly").permutation(n).astype(np.int64)
    return [np.sort(part) for part in np.array_split(order, num_holders)]


def check_enough(n: int, num_holders: int, min_examples: int) -> None:
    """Raise `TaskError` if `n` examples are too few for `num_holders` parts of `min_examples` each."""
    if num_holders < 1:
        raise TaskError(f"num_holders is {num_holders}: expected 1 or more")
    if num_holders * min_examples > n:
        raise TaskError(
            f"{n} training examples cannot give each of {num_holders} holders at least {min_examples}: "
            "lower min_examples, use fewer clients or tasks per client, or raise the task's max_train"
        )
