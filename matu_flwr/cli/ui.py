"""What all commands share: a plain console, the reporting of errors, and absolute paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console

from matu_flwr.texts import shortened

# Not imported at run time: the module loads torch, and `matu --help` must be quick.
if TYPE_CHECKING:
    from matu_flwr.config.settings import Scalar


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


def absolute_paths(values: Mapping[str, Scalar]) -> dict[str, str]:
    """Return those of the settings that name files or folders, with absolute paths.

    Flower runs in another folder, where a relative path would mean another file.
    """
    folders = ("experiment", "data-dir", "cache-dir", "state-dir", "out-dir", "resume-from", "backbone.heads-file")
    found = {key: Path(str(values[key])).expanduser() for key in folders if values.get(key)}
    # These two can be a name or a path. A path is only what is the path of a file.
    either = {key: Path(str(values[key])).expanduser() for key in ("suite", "backbone.weights") if values.get(key)}
    found |= {key: path for key, path in either.items() if path.is_file()}
    return {key: str(path.absolute()) for key, path in found.items()}
