"""What the commands share: a plain console, the one way to report an error, and paths as seen from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console

if TYPE_CHECKING:  # its module loads torch
    from matu_flwr.config.settings import Scalar


def console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: names of classes and files may look like markup."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def print_error(error: Exception | str) -> None:
    """One clear line on the error stream."""
    console(stderr=True).print(f"error: {' '.join(str(error).split())}", style="red", soft_wrap=True)


def fail(error: Exception | str) -> NoReturn:
    """One clear line, and exit status 1."""
    print_error(error)
    raise typer.Exit(1) from None


def absolute_paths(values: Mapping[str, Scalar]) -> dict[str, str]:
    """Those of the values that name files here, as seen from anywhere: Flower runs in a folder of its own."""
    folders = ("experiment", "data-dir", "cache-dir", "state-dir", "out-dir", "resume-from", "backbone.heads-file")
    found = {key: Path(str(values[key])).expanduser() for key in folders if values.get(key)}
    either = {key: Path(str(values[key])).expanduser() for key in ("suite", "backbone.weights") if values.get(key)}
    found |= {key: path for key, path in either.items() if path.is_file()}
    return {key: str(path.absolute()) for key, path in found.items()}
