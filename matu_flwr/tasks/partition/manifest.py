"""The manifest of a partition: who holds what, in plain numbers, as it stands in a run's `partition.json`.

    suite, seed, partition     the settings that decide it
    fingerprint                SHA-256 of every client's exact index lists; null where only counts are known
    tasks                      by task: group, classes, holders (names), train, test, left_out (training images that no
                               holder has)
    clients                    list of client (name), partition, and tasks: by task train, labels (images by label, null
                               where only counts are known), test

Two runs with one fingerprint gave every client the same images, if their data sets were the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matu_flwr.config.settings import Settings
from matu_flwr.tasks.cache import TaskData
from matu_flwr.tasks.datasets import task_data
from matu_flwr.tasks.partition.holdings import deal_suite, split_rule
from matu_flwr.tasks.partition.partition import manifest
from matu_flwr.tasks.suite import load_suite


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
    return deciding_settings(settings) | {
        "fingerprint": found["fingerprint"],
        "tasks": tasks,
        "clients": found["clients"],
    }


def deciding_settings(settings: Settings) -> dict[str, Any]:
    """Suite, seed and the section `partition`: what a manifest begins with."""
    part = settings.partition.model_dump(mode="json", by_alias=True)
    # the suite by its name, not the path of its file: manifests of two machines are to be compared
    return {"suite": load_suite(settings.suite).name, "seed": settings.seed, "partition": part}
