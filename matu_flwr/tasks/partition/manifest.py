"""`partition.json`: who holds what in a run, in plain numbers; `partition.png` is drawn from it.

    suite, seed, partition     the settings that decide it
    fingerprint                SHA-256 of every client's exact index lists; null where only counts are known
    tasks                      by task: group, classes, holders (names), train, test, left_out (training images that no
                               holder has)
    clients                    list of client (name), partition, and tasks: by task train, labels (images by label, null
                               where only counts are known), test

Two runs with one fingerprint gave every client the same images, if their data sets were the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from logging import INFO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matu_flwr.client.holdings import deal_suite, split_rule
from matu_flwr.client.node import task_data
from matu_flwr.config import paths
from matu_flwr.config.settings import Settings
from matu_flwr.run.partition_picture import draw_partition
from matu_flwr.tasks.datasets import TaskData
from matu_flwr.tasks.errors import TaskError
from matu_flwr.tasks.partition.partition import manifest
from matu_flwr.tasks.suite import load_suite

if TYPE_CHECKING:
    from matu_flwr.strategies import Client

PARTITION, PARTITION_PICTURE = "partition.json", "partition.png"


def partition_manifest(
    settings: Settings,
    num_partitions: int,
    data_dir: Path | None,
    cache_dir: Path,
    image_size: int,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Work out the whole partition of the run's suite, as every node works out its own share.

    Parameters
    ----------
    settings : Settings
        Of the run: suite, seed and the section `partition` decide.
    num_partitions : int
        Number of clients, 1 or more.
    data_dir : Path or None
        Folder of the data sets; None if there is none.
    cache_dir : Path
        Folder of decoded images.
    image_size : int
        Pixels at which images are decoded if they are not in the cache; it decides nothing here.
    names : sequence of str, optional
        Names of the clients by partition id; client-000 and so on otherwise.

    Returns
    -------
    dict
        See the module.

    Raises
    ------
    TaskError
        A suite, data or a partition that cannot be; the text says what to change.
    """
    specs = load_suite(settings.suite).tasks

    def loaded(task: str) -> TaskData:
        data = str(data_dir or "")
        return task_data(settings.suite, task, image_size, settings.seed, data, str(cache_dir))

    found = manifest(
        deal_suite(settings, num_partitions),
        lambda task: (loaded(task).train_labels, len(loaded(task).test_labels)),
        split_rule(settings),
        seed=settings.seed,
        names=names,
    )
    tasks = {
        name: {"group": specs[name].group, "classes": list(loaded(name).classes), **found["tasks"][name]}
        for name in specs  # in the order of the suite
    }
    return _settings(settings) | {
        "fingerprint": found["fingerprint"],
        "tasks": tasks,
        "clients": found["clients"],
    }


def announced_manifest(settings: Settings, clients: Sequence[Client]) -> dict[str, Any]:
    """Describe the partition as far as the clients said it: counts, no labels, no fingerprint.

    Nodes with images of their own tell nobody which these are.
    """
    specs = load_suite(settings.suite).tasks
    tasks: dict[str, Any] = {}
    for client in clients:
        for name, info in client.tasks.items():
            group = specs[name].group if name in specs else ""
            new = {"group": group, "classes": list(info.classes), "holders": [], "train": 0, "test": 0, "left_out": 0}
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
    return _settings(settings) | {"fingerprint": None, "tasks": tasks, "clients": entries}


def run_manifest(settings: Settings, clients: Sequence[Client], image_size: int) -> dict[str, Any]:
    """Describe who holds what among the registered clients, as exactly as this machine can know.

    Where the clients are partitions 0 to n - 1, the data of the suite are here, and the shares come out as large as the
    clients announced them, they are clients of the suite and everything is known (a simulation); else their
    announcements are (`announced_manifest`), and the log says why.
    """
    announced = announced_manifest(settings, clients)
    if [client.partition for client in clients] != list(range(len(clients))):
        return announced
    folders = paths.data_dir(settings), paths.cache_dir(settings)
    try:
        known = partition_manifest(settings, len(clients), *folders, image_size, [client.name for client in clients])
    except TaskError as error:
        _log("%s has counts only: %s", PARTITION, error)
        return announced
    if _counts(known) != _counts(announced):
        _log("%s has counts only: the clients hold other numbers of images than suite %s", PARTITION, settings.suite)
        return announced
    return known


def write_partition(found: Mapping[str, Any], out_dir: Path) -> dict[str, str]:
    """Write `partition.json` and `partition.png`, each whole or not at all; returns their paths by artefact name."""
    out_dir.mkdir(parents=True, exist_ok=True)
    text, picture = out_dir / PARTITION, out_dir / PARTITION_PICTURE
    temporary = text.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(text)
    draw_partition(found, picture)
    return {"partition": str(text), "partition image": str(picture)}


def _settings(settings: Settings) -> dict[str, Any]:
    part = settings.partition.model_dump(mode="json", by_alias=True)
    # the suite by its name, not the path of its file: manifests of two machines are to be compared
    return {"suite": load_suite(settings.suite).name, "seed": settings.seed, "partition": part}


def _counts(found: Mapping[str, Any]) -> list[dict[str, tuple[int, int]]]:
    return [
        {task: (held["train"], held["test"]) for task, held in client["tasks"].items()} for client in found["clients"]
    ]


def _log(text: str, *values: object) -> None:
    from flwr.common.logger import log  # the command `matu data partition` needs no Flower

    log(INFO, text, *values)
