"""Which tasks a node holds, and where their images are: a share of the run's suite, or a folder of its own.

The keys of the node configuration (Flower's `--node-config`):

    partition-id, num-partitions   the node holds a share of the run's suite; a simulation sets both
    data-path, tasks               the node has its own images, in <data-path>/<task>/train/<class>/*.jpg; `tasks`
                                   names some of them, separated by commas
    classes                        with data-path: all classes of some tasks, in the order of the labels, where this
                                   node does not have all of them: "scans=benign,malignant; leaves=ill,well". Names
                                   with one of , ; = in them need JSON: {"scans": ["benign", "malignant"]}
    skip-broken                    with data-path: true leaves out images that cannot be read; the log counts them
    site                           name of the client; without it, client-<partition>
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from matu_flwr import digests
from matu_flwr.client.images import ImageSet
from matu_flwr.config import paths
from matu_flwr.config.settings import Scalar, Settings
from matu_flwr.names import CLASS_RULE, NAME_RULE, is_class_name, is_name, repeated_class
from matu_flwr.tasks.cache import TaskData
from matu_flwr.tasks.datasets import load_site_task, site_tasks, task_data
from matu_flwr.tasks.declared import declared_by
from matu_flwr.tasks.errors import TaskError
from matu_flwr.tasks.partition import Share, client_name, client_shares, deal_suite, split_rule
from matu_flwr.tasks.prompts import GENERAL
from matu_flwr.tasks.suite import load_suite
from matu_flwr.texts import Brief


class NodeError(Brief, ValueError):
    """The configuration of a node does not say what it holds."""


@dataclass(frozen=True)
class HeldTask:
    """One task as a node holds it, or as the server pools it.

    Attributes
    ----------
    classes : tuple of str
        Names of the classes, in the order of the labels.
    train, test : ImageSet
        The training images, and the share of the test images.
    templates : tuple of str
        Sentences with {} in place of a class name, for zero-shot heads.
    data : str
        Digest of the suite's labels (`label_digest`), by which nodes see that they have the same files. "" for the
        node's own images.
    """

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    templates: tuple[str, ...] = ()
    data: str = ""

    @functools.cached_property
    def absent(self) -> tuple[int, ...]:
        """Positions in `classes` of those that have no training image here, ascending."""
        there = np.bincount(self.train.labels[self.train.index], minlength=len(self.classes))
        return tuple(np.flatnonzero(there == 0).tolist())

    @classmethod
    def of(cls, data: TaskData, share: Share, templates: tuple[str, ...], digest: str) -> HeldTask:
        """A share of a task's images."""
        return cls(
            data.classes,
            ImageSet(data.train_images, data.train_labels, share.train),
            ImageSet(data.test_images, data.test_labels, share.test),
            templates,
            digest,
        )

    @classmethod
    def whole(cls, data: TaskData, templates: tuple[str, ...] = ()) -> HeldTask:
        """All images of a task."""
        train, test = (np.arange(len(labels)) for labels in (data.train_labels, data.test_labels))
        return cls.of(data, Share(data.name, train, test), templates, "")


@dataclass(frozen=True)
class Node:
    """A client as it knows itself: its name, its partition id (-1 if it has none), and its tasks."""

    client: str
    partition: int
    tasks: dict[str, HeldTask]


def node_of(settings: Settings, node_config: Mapping[str, Scalar], image_size: int) -> Node:
    """What this node holds, with images of `image_size` pixels a side.

    Raises
    ------
    NodeError
        The configuration has no name for the node, or neither a partition nor a data path.
    TaskError
        Data cannot be found or read.
    """
    partition = int(node_config.get("partition-id", -1))
    site = str(node_config.get("site") or (client_name(partition) if partition >= 0 else ""))
    if not site:
        raise NodeError("node config has neither 'site' nor 'partition-id': give the node a name, site='…'")
    if not is_name(site):
        raise NodeError(f"node config has site = {site!r:.100}, expected {NAME_RULE}")
    cache = str(paths.cache_dir(settings, node_config))
    if "data-path" in node_config:
        root = Path(str(node_config["data-path"])).absolute()
        names = [name.strip() for name in str(node_config.get("tasks", "")).split(",") if name.strip()]
        named = declared_here(str(node_config.get("classes", "")), site)
        classes = {name: found for name, found in _suite_classes(settings.suite).items() if found} | named
        broken = node_config.get("skip-broken", False)
        if not isinstance(broken, bool):
            raise NodeError(f"node {site!r}: node config has skip-broken = {broken!r:.100}, expected true or false")
        known = tuple(classes.items())
        return _site(site, partition, root, tuple(names), image_size, settings.seed, cache, known, skip_broken=broken)
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
            task: HeldTask.of(loaded(task), share, suite[task].templates, label_digest(loaded(task)))
            for task, share in shares.items()
        },
    )


@functools.lru_cache(maxsize=4)
def _site(
    site: str,
    partition: int,
    root: Path,
    names: tuple[str, ...],
    image_size: int,
    seed: int,
    cache: str,
    classes: tuple[tuple[str, tuple[str, ...]], ...],
    *,
    skip_broken: bool,
) -> Node:
    tasks = {}
    for name in names or tuple(site_tasks(root)):
        data = load_site_task(
            name,
            root,
            image_size=image_size,
            seed=seed,
            cache_dir=Path(cache),
            classes=dict(classes).get(name),
            skip_broken=skip_broken,
        )
        tasks[name] = HeldTask.whole(data, GENERAL)
    if not tasks:
        raise NodeError(f"node {site!r}: no task folder under data-path {root}; expected {root}/<task>/train/<class>/")
    return Node(site, partition, tasks)


def declared_here(text: str, site: str) -> dict[str, tuple[str, ...]]:
    """The class lists by task that `classes` of a node configuration names; the module's docstring has both forms.

    Raises
    ------
    NodeError
        The text has neither form, names a task twice, or has a class name that is empty, unprintable or there twice.
    """
    where = f"node {site!r}: classes in the node config"
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text, object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            raise NodeError(f"{where} begin like JSON and are not: {error}") from None
    else:
        found = []
        for part in filter(str.strip, text.split(";")):
            task, equals, names = part.partition("=")
            found.append((task.strip(), [name.strip() for name in names.split(",")] if equals else []))
    declared: dict[str, tuple[str, ...]] = {}
    for task, names in found:
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)) or task in declared:
            raise NodeError(
                f"{where}: {text!r:.100}, expected each task once with its list of names, such as "
                "'scans=benign,malignant; leaves=ill,well'"
            )
        wrong = [name for name in names if not is_class_name(name)]
        wrong += [name for name in (repeated_class(names),) if name is not None]
        if wrong:
            raise NodeError(
                f"{where}, task {task!r:.100}: found class {wrong[0]!r:.100}, expected "
                f"every class once, with {CLASS_RULE}"
            )
        declared[task] = tuple(names)
    return declared


@functools.lru_cache(maxsize=4)
def _suite_classes(suite: str) -> dict[str, tuple[str, ...]]:
    """The class lists that the run's suite declares. Empty if the suite is a file that this node does not have."""
    try:
        return declared_by(load_suite(suite))
    except TaskError:
        # A site needs no suite. If the server's declares other classes than the site has, it refuses them and says so.
        return {}


def label_digest(data: TaskData) -> str:
    """Digest of all labels of a task in their order, 16 hexadecimal digits: it tells two versions of the files apart.

    Shares are drawn by position, so they only fit together where all nodes have the same files. Labels are compared
    because decoded pixels may differ by a level between machines.
    """
    parts = (labels.astype("<i8").tobytes() for labels in (data.train_labels, data.test_labels))
    return digests.of_bytes(b"|".join(parts))[: digests.SHORT]
