"""The command `matu data partition`: show which client would hold which images, without running anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from matu_flwr.cli.ui import fail


def partition(
    suite: Annotated[
        str | None, typer.Option(help="Suite name or file. Default: real-12 if MATU_DATA_DIR is set, else offline.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Number of clients to deal the tasks to.", min=1)] = 10,
    seed: Annotated[int | None, typer.Option(help="Seed of the run. Default: 0.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for partition.json and partition.png.")] = Path("partition"),
    run_config: Annotated[
        list[str] | None, typer.Option("--run-config", "-c", help="Any setting, e.g. -c partition.deal=dirichlet")
    ] = None,
) -> None:
    """Write a file and a picture of how a run with these settings would deal a suite's tasks and images to clients."""
    from matu_flwr.config import paths
    from matu_flwr.config.locations import absolute_paths
    from matu_flwr.config.settings import Settings, SettingsError, parse_run_config
    from matu_flwr.run.partition_picture import write_partition
    from matu_flwr.tasks import TaskError
    from matu_flwr.tasks.partition import partition_manifest

    try:
        values = parse_run_config(run_config or [])
        values |= {key: value for key, value in {"suite": suite, "seed": seed}.items() if value is not None}
        values |= absolute_paths(values, Path.cwd())
        if "suite" not in values and "experiment" not in values and os.environ.get("MATU_DATA_DIR"):
            values["suite"] = "real-12"
        settings = Settings.from_run_config(values)
        # Labels are the same at every image size. At 32 pixels, the size of the default backbone, the images are most
        # likely in the cache already.
        size = settings.backbone.image_size or 32
        found = partition_manifest(settings, nodes, paths.data_dir(settings), paths.cache_dir(settings), size)
        written = write_partition(found, out.expanduser().absolute())
    except (SettingsError, TaskError) as error:
        fail(error)
    except OSError as error:
        fail(f"cannot write to {out}: {error}; choose another folder with --out")
    tasks, clients = found["tasks"], found["clients"]
    images = sum(task["train"] for task in tasks.values())
    typer.echo(
        f"{found['suite']}, seed {found['seed']}: {len(tasks)} tasks, {len(clients)} clients, {images} training images"
    )
    typer.echo(f"{'fingerprint':<17}{found['fingerprint']}")
    for name, path in written.items():
        typer.echo(f"{name:<17}{path}")
