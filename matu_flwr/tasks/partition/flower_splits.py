"""Splits of a task's examples by the partitioners of flwr-datasets (optional extra ``hub``).

The partitioners see a `datasets.Dataset` of labels and positions, no images; what comes back is lists of positions.
Which rows they see in which order is decided here, by the seed: the partitioners themselves keep the order of the rows
within a class, which on disk may be an order by recording.

The shares fit together only among nodes whose flwr-datasets and numpy draw the same numbers: install one version.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from matu_flwr.seeds import derive_seed, generator
from matu_flwr.tasks.errors import TaskError
from matu_flwr.tasks.partition.label_split import Indices, check_enough

_DRAWS = 20  # before a split that leaves a holder short counts as impossible


def split_pathological(
    labels: npt.NDArray[np.int64], num_holders: int, classes_per_holder: int, *, seed: int, min_examples: int
) -> list[Indices]:
    """Give each holder the examples of exactly `classes_per_holder` classes (Flower's `PathologicalPartitioner`).

    The first class of holder i is class i of a seeded order of the classes, starting again after the last; the others
    are drawn at random (Flower's "first-deterministic"). Holders of one class share its examples evenly.

    With at least as many holders as classes every example is assigned. With fewer, **the examples of classes that no
    holder was given are left out of training**: 3 holders of 2 classes each use 3 to 6 of 10 classes. Test examples are
    not touched: a holder is tested on all classes, as with the other splits.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        Label of each example.
    num_holders : int
        Number of parts, 1 or more.
    classes_per_holder : int
        1 to the number of classes in `labels`.
    seed : int
        Seed of this split.
    min_examples : int
        Each part has at least this many examples; up to 20 draws are made.

    Returns
    -------
    list of ndarray of int64
        Indices of each part, ascending and disjoint.
    """
    check_enough(len(labels), num_holders, min_examples)
    classes, places = np.unique(labels, return_inverse=True)  # (C,), (N,)
    if not 1 <= classes_per_holder <= len(classes):
        raise TaskError(
            f"classes_per_holder is {classes_per_holder}: expected 1 to {len(classes)}, the number of classes in the "
            "training examples"
        )

    def draw(seed: int) -> tuple[Indices, Any]:
        from flwr_datasets.partitioner import PathologicalPartitioner

        order = generator(seed, "classes").permutation(len(classes))  # otherwise holder 0 would always have class 0
        return order[places], PathologicalPartitioner(
            num_partitions=num_holders,
            partition_by="label",
            num_classes_per_partition=classes_per_holder,
            class_assignment_mode="first-deterministic",
            shuffle=False,  # positions are sorted below
            seed=seed,
        )

    return _first_that_fits("pathological", draw, num_holders, seed, min_examples)


def split_shards(
    labels: npt.NDArray[np.int64], num_holders: int, shards_per_holder: int, *, seed: int, min_examples: int
) -> list[Indices]:
    """Sort examples by label, cut them into shards of one size, and deal the shards (Flower's `ShardPartitioner`).

    The size is ``ceil(N / (num_holders * shards_per_holder))``: no holder gets more than `shards_per_holder` shards,
    and every example is assigned. Where the numbers do not divide, the last shard is smaller and some holders have
    fewer shards. A shard at the border of two labels holds both.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        Label of each example.
    num_holders : int
        Number of parts, 1 or more.
    shards_per_holder : int
        1 or more; the fewer, the fewer labels a holder has.
    seed : int
        Seed of this split.
    min_examples : int
        Each part has at least this many examples; up to 20 draws are made.

    Returns
    -------
    list of ndarray of int64
        Indices of each part, ascending; the parts are disjoint and cover ``0 .. N - 1``.
    """
    check_enough(len(labels), num_holders, min_examples)
    if shards_per_holder < 1:
        raise TaskError(f"shards per holder (classes_per_holder) is {shards_per_holder}: expected 1 or more")

    def draw(seed: int) -> tuple[Indices, Any]:
        from flwr_datasets.partitioner import ShardPartitioner

        return labels, ShardPartitioner(
            num_partitions=num_holders,
            partition_by="label",
            shard_size=max(1, math.ceil(len(labels) / (num_holders * shards_per_holder))),
            keep_incomplete_shard=True,  # otherwise the examples of the last one would be left out
            shuffle=False,  # positions are sorted below
            seed=seed,
        )

    return _first_that_fits("shard", draw, num_holders, seed, min_examples)


def _first_that_fits(
    kind: str, draw: Callable[[int], tuple[Indices, Any]], num_holders: int, seed: int, min_examples: int
) -> list[Indices]:
    """Parts of the first draw that gives every holder enough.

    `draw` makes labels and a partitioner from a seed of its own.
    """
    reason = ""
    for number in range(_DRAWS):
        own = derive_seed(seed, kind, number)
        try:
            parts = _parts(*draw(own), num_holders, own)
        except ModuleNotFoundError as error:
            raise TaskError(
                f"split {kind!r} needs flwr-datasets, and {error.name!r} is not installed: pip install "
                "'matu-flwr[hub]', or choose partition.split = dirichlet or iid"
            ) from None
        except ValueError as error:  # the partitioner's own, for a draw that it cannot carry out
            reason = reason or f"cannot be made for {num_holders} holders: {error}"
            continue
        sizes = [len(part) for part in parts]
        if min(sizes) >= min_examples:
            return parts
        reason = f"gives its {num_holders} holders {', '.join(map(str, sizes))} training examples"
    raise TaskError(
        f"split {kind!r} {reason}; asked for at least {min_examples} each, not reached in {_DRAWS} draws: lower "
        "min_examples, change classes_per_holder, use fewer clients or tasks per client, or raise the task's max_train"
    )


def _parts(labels: Indices, partitioner: Any, num_holders: int, seed: int) -> list[Indices]:
    """What `partitioner` makes of shuffled rows, as positions in `labels`."""
    from datasets import Dataset

    rows = generator(seed, "rows").permutation(len(labels))
    with warnings.catch_warnings():
        # of classes without a holder (see `split_pathological`), and of how `datasets` calls pyarrow
        warnings.simplefilter("ignore")
        partitioner.dataset = Dataset.from_dict({"label": labels[rows], "position": rows})
        parts = [partitioner.load_partition(holder).with_format("numpy") for holder in range(num_holders)]
        return [np.sort(np.asarray(part["position"][:], dtype=np.int64)) for part in parts]
