"""`matu status`: the status of a run, or the nodes and runs of a SuperLink."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matu_flwr.cli.ui import console, fail


def status(
    folder: Annotated[Path | None, typer.Argument(help="Output folder of a run.")] = None,
    superlink: Annotated[
        str,
        typer.Option(
            help="Also show the nodes and runs of this SuperLink, by its name in Flower's config.toml.", metavar="NAME"
        ),
    ] = "",
) -> None:
    """Show the rounds, clients and checkpoints of a run, or the nodes and runs of a SuperLink."""
    if folder is None and not superlink:
        fail("name the output folder of a run, or a SuperLink: --superlink NAME")

    from matu_flwr.deployment.status import StatusError, run_view, superlink_tables
    from matu_flwr.run.checkpoint import CheckpointError
    from matu_flwr.run.history import HistoryError

    screen = console()
    try:
        if folder is not None:
            rows, table = run_view(folder)
            for name, text in rows:
                screen.print(f"{name:<12}{text}", soft_wrap=True)
            screen.print(table)
        if superlink:
            for table in superlink_tables(superlink):
                screen.print(table)
    except (CheckpointError, HistoryError, StatusError) as error:
        fail(error)
