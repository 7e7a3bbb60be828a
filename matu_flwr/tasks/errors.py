"""The error for suites, tasks and their files."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from matu_flwr.texts import Brief


class TaskError(Brief, ValueError):
    """A suite, a task or a data file that cannot be used. The text names it and says what to do."""


def nearest(word: str, known: Iterable[str]) -> str:
    """End of an error about an unknown word: the most similar known word, if there is one, and all known words."""
    choices = sorted(known)
    match = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    hint = f"did you mean {match[0]!r}? " if match else ""
    return f"{hint}known: {', '.join(choices) or '(none)'}"
