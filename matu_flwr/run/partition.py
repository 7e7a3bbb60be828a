"""Which client holds how much of which task in a run: worked out from the suite, or from what clients announced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import INFO
from typing import Any

from flwr.common.logger import log

from matu_flwr.config import paths
from matu_flwr.config.settings import Settings
from matu_flwr.federation.registration import Client
from matu_flwr.run.partition_picture import PARTITION
from matu_flwr.tasks.errors import TaskError
from matu_flwr.tasks.partition.manifest import deciding_settings, partition_manifest
from matu_flwr.tasks.suite import load_suite


def announced_manifest(settings: Settings, clients: Sequence[Client]) -> dict[str, Any]:
    """Describe the partition by the numbers that the clients announced, without labels and fingerprint.

    Nodes with their own images announce only how many they have.
    """
    specs = load_suite(settings.suite).tasks
    tasks: dict[str, Any] = {}
    for client in clients:
        for name, info in client.tasks.items():
            group = specs[name].group if name in specs else ""
            new = {"group": group, "classes": list(info.classes), "holders": [], "train": 0, "test": 0}
            task = tasks.setdefault(name, new)
            task["holders"].append(client.name)
            task["train"] += info.train
            task["test"] += info.test
    entries = [
        {
            "client": client.name,
            "partition": client.partition,
            "tasks": {
                name: {"train": info.train, "labels": None, "test": info.test} for name, info in client.tasks.items()
            },
        }
        for client in clients
    ]
    return deciding_settings(settings) | {"fingerprint": None, "tasks": tasks, "clients": entries}


def run_manifest(settings: Settings, clients: Sequence[Client], image_size: int) -> dict[str, Any]:
    """Describe what the registered clients hold, in as much detail as this machine can know.

    In a simulation everything can be worked out from the suite. The server does so if the clients are partitions 0 to
    n - 1, the suite's data are on this machine, and every share is as large as its client announced. Otherwise
    the numbers that the clients announced are used (`announced_manifest`), and the log says why.
    """
    announced = announced_manifest(settings, clients)
    if [client.partition for client in clients] != list(range(len(clients))):
        return announced
    folders = paths.data_dir(settings), paths.cache_dir(settings)
    try:
        known = partition_manifest(settings, len(clients), *folders, image_size, [client.name for client in clients])
    except TaskError as error:
        log(INFO, "%s has counts only: %s", PARTITION, error)
        return announced
    if _counts(known) != _counts(announced):
        log(
            INFO,
            "%s has counts only: the clients announced other numbers of images than suite %s deals",
            PARTITION,
            settings.suite,
        )
        return announced
    return known


def remarks(manifest: Mapping[str, Any]) -> list[str]:
    """One line for each task whose files are odd, if this machine has them. A node tells of its own images itself."""
    return [f"task {name!r}: {task['remarks']}" for name, task in manifest["tasks"].items() if "remarks" in task]


def _counts(found: Mapping[str, Any]) -> list[dict[str, tuple[int, int]]]:
    return [
        {task: (held["train"], held["test"]) for task, held in client["tasks"].items()} for client in found["clients"]
    ]
