"""`matu report`: make the summary and the pictures of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matu_flwr.cli.ui import fail


def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    tensorboard: Annotated[
        Path | None, typer.Option(help="Also write scalars for TensorBoard into this folder.", metavar="DIR")
    ] = None,
) -> None:
    """Make the summary and the pictures of a run again, from its history alone."""
    from matu_flwr.run.history import HISTORY, HistoryError, read_history
    from matu_flwr.run.report import write_report, write_tensorboard

    try:
        for name, path in write_report(folder).items():
            typer.echo(f"{name:<12}{path}")
        if tensorboard is not None:
            write_tensorboard(read_history(folder / HISTORY), tensorboard)
            typer.echo(f"{'tensorboard':<12}{tensorboard}")
    except HistoryError as error:
        fail(error)
    except OSError as error:
        fail(f"the report cannot be written: {error}; make room, or copy the run's folder to where you may write")
