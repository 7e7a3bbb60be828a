"""What all commands share: a plain console, and the reporting of errors."""

from __future__ import annotations

from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from matu_flwr.texts import shortened, visible


class _Plain(Console):
    """A console on which no text can steer the terminal, wherever it comes from: a file's name, a suite, a client."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Turn a text, or a cell of a table, into what is printed."""
        return super().render_str(visible(text), **how)


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints text unchanged. Names of classes and files may look like markup."""
    return _Plain(stderr=stderr, highlight=False, markup=False, emoji=False)


def print_error(error: Exception | str) -> None:
    """Print an error as one line on the error stream."""
    console(stderr=True).print(f"error: {shortened(' '.join(str(error).split()))}", style="red", soft_wrap=True)


def fail(error: Exception | str) -> NoReturn:
    """Print an error as one line and end the command with exit status 1."""
    print_error(error)
    raise typer.Exit(1) from None
