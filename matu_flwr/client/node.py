"""Which tasks a node holds and where their images are: its share of a suite in a simulation, its own folder on a site.

Node configuration (Flower's `--node-config`):

    partition-id, num-partitions   a share of the run's suite (what a simulation sets)
    data-path, tasks               the node's own images: <data-path>/<task>/train/<class>/*.jpg, comma-separated tasks
    site                           the client's name; otherwise client-<partition>
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from matu_flwr.client.holdings import deal_suite, split_rule
from matu_flwr.client.images import ImageSet
from matu_flwr.config import paths
from matu_flwr.config.settings import Scalar, Settings
from matu_flwr.tasks.datasets import TaskData, load_site_task, load_task, site_tasks
from matu_flwr.tasks.partition.partition import client_name, client_shares
from matu_flwr.tasks.prompts import GENERAL
from matu_flwr.tasks.suite import load_suite


class NodeError(ValueError):
    """A node whose configuration does not say what it holds."""


@dataclass(frozen=True)
class NodeTask:
    """One task at one node: class names, training images, its part of the test images, and templates for prompts.

    `data` tells the files of a suite apart from others, "" for the node's own images; see `label_digest`.
    """

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    templates: tuple[str, ...] = ()
    data: str = ""


@dataclass(frozen=True)
class Node:
    """A client as it knows itself: name, partition id (-1 without one), and tasks."""

    client: str
    partition: int
    tasks: dict[str, NodeTask]


def node_of(settings: Settings, node_config: Mapping[str, Scalar], image_size: int) -> Node:
    """What this node holds, its images decoded at `image_size` pixels.

    Raises
    ------
    NodeError
        Neither a partition nor a data path, or one of a pair without the other.
    TaskError
        Data that cannot be found or read.
    """
    partition = int(node_config.get("partition-id", -1))
    site = str(node_config.get("site") or (client_name(partition) if partition >= 0 else ""))
    if not site:
        raise NodeError("node config has neither 'site' nor 'partition-id': give the node a name, site='…'")
    cache = str(paths.cache_dir(settings, node_config))
    if "data-path" in node_config:
        root = Path(str(node_config["data-path"])).absolute()
        names = [name.strip() for name in str(node_config.get("tasks", "")).split(",") if name.strip()]
        return _site(site, partition, root, tuple(names), image_size, settings.seed, cache)
    if partition < 0 or "num-partitions" not in node_config:
        raise NodeError(
            f"node {site!r}: node config needs partition-id and num-partitions (a share of suite "
            f"{settings.suite!r}), or data-path and tasks (its own images); found {sorted(node_config)}"
        )
    data = paths.data_dir(settings, node_config)
    return _share(site, partition, int(node_config["num-partitions"]), settings, image_size, str(data or ""), cache)


@functools.lru_cache(maxsize=1024)
def _share(
    site: str, partition: int, num_partitions: int, settings: Settings, image_size: int, data: str, cache: str
) -> Node:
    if not 0 <= partition < num_partitions:
        raise NodeError(f"node {site!r}: partition-id = {partition}, expected 0 to {num_partitions - 1}")

    def loaded(task: str) -> TaskData:
        return task_data(settings.suite, task, image_size, settings.seed, data, cache)

    shares = client_shares(
        deal_suite(settings, num_partitions),
        partition,
        lambda task: (loaded(task).train_labels, len(loaded(task).test_labels)),
        split_rule(settings),
        seed=settings.seed,
    )
    suite = load_suite(settings.suite).tasks
    return Node(
        site,
        partition,
        {
            task: _node_task(loaded(task), share.train, share.test, suite[task].templates, label_digest(loaded(task)))
            for task, share in shares.items()
        },
    )


@functools.lru_cache(maxsize=4)
def _site(
    site: str, partition: int, root: Path, names: tuple[str, ...], image_size: int, seed: int, cache: str
) -> Node:
    tasks = {}
    for name in names or tuple(site_tasks(root)):
        data = load_site_task(name, root, image_size=image_size, seed=seed, cache_dir=Path(cache))
        train, test = (np.arange(len(labels)) for labels in (data.train_labels, data.test_labels))
        tasks[name] = _node_task(data, train, test, GENERAL)
    if not tasks:
        raise NodeError(f"node {site!r}: no task folder under data-path {root}; expected {root}/<task>/train/<class>/")
    return Node(site, partition, tasks)


@functools.lru_cache(maxsize=64)
def task_data(suite: str, task: str, image_size: int, seed: int, data: str, cache: str) -> TaskData:
    """One task's images, loaded once per process; `data` is "" if nobody named a data folder."""
    return load_task(
        load_suite(suite).tasks[task],
        image_size=image_size,
        seed=seed,
        data_dir=Path(data) if data else None,
        cache_dir=Path(cache),
    )


def label_digest(data: TaskData) -> str:
    """Tell apart two versions of a task's files by all of its labels in their order: 16 hexadecimal digits.

    Shares are drawn from positions, so they fit together only where all nodes have the same files; decoded pixels may
    differ by a level between machines, labels may not.
    """
    parts = (labels.astype("<i8").tobytes() for labels in (data.train_labels, data.test_labels))
    return hashlib.sha256(b"|".join(parts)).hexdigest()[:16]


def _node_task(
    data: TaskData, train: np.ndarray, test: np.ndarray, templates: tuple[str, ...], digest: str = ""
) -> NodeTask:
    return NodeTask(
        data.classes,
        ImageSet(data.train_images, data.train_labels, train),
        ImageSet(data.test_images, data.test_labels, test),
        templates,
        digest,
    )
