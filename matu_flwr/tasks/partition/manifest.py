"""The manifest of a partition: which client holds how many images of which tasks. A run writes it to `partition.json`.

    suite, seed, partition     the settings that the partition depends on
    fingerprint                SHA-256 of the exact images of every client; null if only counts are known
    tasks                      for each task: group, classes, holders (names), train and test (numbers of images),
                               and remarks (what is odd about the files, in words; missing if nothing is)
    clients                    a list with client (name), partition (id) and tasks. For each of the client's tasks:
                               train, test, and labels (numbers of images by label, null if only counts are known)

If two runs have the same fingerprint and the same data sets, every client had the same images in both.
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
    """Compute the whole partition of the run's suite, in the same way as each node computes its own share.

    Parameters
    ----------
    settings : Settings
        Settings of the run. The partition depends on suite, seed and the section `partition`.
    num_partitions : int
        Number of clients, 1 or more.
    data_dir : Path or None
        Folder of the data sets; None if there is none.
    cache_dir : Path
        Folder of decoded images.
    image_size : int
        Side in pixels to which images are decoded if they are not in the cache yet. The manifest does not depend on it.
    names : sequence of str, optional
        Names of the clients by partition id; by default client-000, client-001 and so on.

    Returns
    -------
    dict
        The manifest, as the module's text describes it.

    Raises
    ------
    TaskError
        The suite or its data cannot be read, or the partition is impossible. The text says what to change.
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
        name: {
            "group": specs[name].group,
            "classes": list(loaded(name).classes),
            **found["tasks"][name],
            **({"remarks": loaded(name).remarks} if loaded(name).remarks else {}),
        }
        for name in specs
    }
    return deciding_settings(settings) | {
        "fingerprint": found["fingerprint"],
        "tasks": tasks,
        "clients": found["clients"],
    }


def deciding_settings(settings: Settings) -> dict[str, Any]:
    """The settings that a partition depends on: the first entries of a manifest."""
    part = settings.partition.model_dump(mode="json", by_alias=True)
    # The suite's name, not the path of its file, so that manifests of two machines can be compared.
    return {"suite": load_suite(settings.suite).name, "seed": settings.seed, "partition": part}
