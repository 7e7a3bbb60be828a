"""Splits a task's examples with the partitioners of flwr-datasets (optional extra ``hub``).

The partitioners get a `datasets.Dataset` of labels and positions, without images, and give back lists of positions. The
rows are shuffled by the seed before. The partitioners keep the order of the rows within a class, and on disk that may
be the order in which the images were taken.

All nodes must have the same versions of flwr-datasets and numpy. Otherwise they may draw different numbers, and their
shares would not fit together.
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

# Number of draws, after which a split counts as impossible if no draw gave every holder enough examples.
_DRAWS = 20


def split_pathological(
    labels: npt.NDArray[np.int64], num_holders: int, classes_per_holder: int, *, seed: int, min_examples: int
) -> list[Indices]:
    """Give each holder the examples of exactly `classes_per_holder` classes (Flower's `PathologicalPartitioner`).

    The classes are put in a random order. The first class of holder i is class i of that order, which starts again
    after the last class. Its other classes are drawn at random (Flower's "first-deterministic"). Holders of one class
    share its examples evenly.

    If there are fewer holders than classes, **the examples of classes that no holder got are left out of training**: 3
    holders of 2 classes each use 3 to 6 of 10 classes. Otherwise every example is used. Test examples are not affected:
    a holder is tested on all classes, as with the other splits.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        Label of each example.
    num_holders : int
        Number of parts, 1 or more.
    classes_per_holder : int
        Classes of each holder, from 1 to the number of classes in `labels`.
    seed : int
        Seed of this split.
    min_examples : int
        Smallest size of a part. Up to 20 draws are made to reach it.

    Returns
    -------
    list of ndarray of int64
        The indices of each part, ascending. Parts are disjoint.

    Raises
    ------
    TaskError
        An argument is outside its range, flwr-datasets is not installed, or 20 draws did not reach `min_examples`.
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

        # Without this order the first class of holder 0 would be class 0 in every run.
        order = generator(seed, "classes").permutation(len(classes))
        return order[places], PathologicalPartitioner(
            num_partitions=num_holders,
            partition_by="label",
            num_classes_per_partition=classes_per_holder,
            class_assignment_mode="first-deterministic",
            # Positions are sorted in the end, so shuffling a part would be lost.
            shuffle=False,
            seed=seed,
        )

    return _first_that_fits("pathological", draw, num_holders, seed, min_examples)


def split_shards(
    labels: npt.NDArray[np.int64], num_holders: int, shards_per_holder: int, *, seed: int, min_examples: int
) -> list[Indices]:
    """Sort examples by label, cut them into shards of one size, and give out the shards (Flower's `ShardPartitioner`).

    A shard has ``ceil(N / (num_holders * shards_per_holder))`` examples. No holder gets more than `shards_per_holder`
    shards, and every example is used. If the numbers do not divide evenly, the last shard is smaller, and some holders
    have fewer shards. A shard where two labels meet has examples of both.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        Label of each example.
    num_holders : int
        Number of parts, 1 or more.
    shards_per_holder : int
        Largest number of shards of a holder, 1 or more. With fewer shards a holder has fewer different labels.
    seed : int
        Seed of this split.
    min_examples : int
        Smallest size of a part. Up to 20 draws are made to reach it.

    Returns
    -------
    list of ndarray of int64
        The indices of each part, ascending. Parts are disjoint, and together they are ``0 .. N - 1``.

    Raises
    ------
    TaskError
        An argument is outside its range, flwr-datasets is not installed, or 20 draws did not reach `min_examples`.
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
            # Without this the examples of the last, smaller shard would be left out.
            keep_incomplete_shard=True,
            # Positions are sorted in the end, so shuffling a part would be lost.
            shuffle=False,
            seed=seed,
        )

    return _first_that_fits("shard", draw, num_holders, seed, min_examples)


def _first_that_fits(
    kind: str, draw: Callable[[int], tuple[Indices, Any]], num_holders: int, seed: int, min_examples: int
) -> list[Indices]:
    """Make draws until one gives every holder enough examples, and return its parts.

    `draw` takes the seed of a draw, and returns labels and a partitioner.
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
        # The partitioner raises a ValueError for a draw that it cannot carry out. Another draw may work.
        except ValueError as error:
            reason = reason or f"cannot be made for {num_holders} holders: {error}"
            continue
        sizes = [len(part) for part in parts]
        if min(sizes) >= min_examples:
            return parts
        reason = f"gives its {num_holders} holders {', '.join(map(str, sizes))} training examples"
    raise TaskError(
        f"split {kind!r} {reason}; each must get at least {min_examples}, and none of {_DRAWS} draws did that: lower "
        "min_examples, change classes_per_holder, use fewer clients or tasks per client, or raise the task's max_train"
    )


def _parts(labels: Indices, partitioner: Any, num_holders: int, seed: int) -> list[Indices]:
    """Let `partitioner` split shuffled rows. Returns positions in `labels`, ascending, for each holder."""
    from datasets import Dataset

    rows = generator(seed, "rows").permutation(len(labels))
    with warnings.catch_warnings():
        # It warns of classes without a holder, which `split_pathological` describes, and `datasets` calls pyarrow in a
        # way that warns.
        warnings.simplefilter("ignore")
        partitioner.dataset = Dataset.from_dict({"label": labels[rows], "position": rows})
        parts = [partitioner.load_partition(holder).with_format("numpy") for holder in range(num_holders)]
        return [np.sort(np.asarray(part["position"][:], dtype=np.int64)) for part in parts]
