"""`matu show`: print again what a run printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matu_flwr.cli.ui import console, fail


def show(folder: Annotated[Path, typer.Argument(help="Output folder of a run.")]) -> None:
    """Print again what a run printed, from its history alone."""
    from matu_flwr.run.console import Narrator
    from matu_flwr.run.history import HISTORY, HistoryError, read_history

    screen = console()
    narrator = Narrator()
    try:
        for event in read_history(folder / HISTORY):
            for item in narrator.tell(event):
                screen.print(item, markup=False) if isinstance(item, str) else screen.print(item)
    except HistoryError as error:
        fail(error)
