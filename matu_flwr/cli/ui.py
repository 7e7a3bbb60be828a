"""What all commands share: a plain console, and the reporting of errors."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console

from matu_flwr.texts import shortened


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints text unchanged. Names of classes and files may look like markup."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def print_error(error: Exception | str) -> None:
    """Print an error as one line on the error stream."""
    console(stderr=True).print(f"error: {shortened(' '.join(str(error).split()))}", style="red", soft_wrap=True)


def fail(error: Exception | str) -> NoReturn:
    """Print an error as one line and end the command with exit status 1."""
    print_error(error)
    raise typer.Exit(1) from None
