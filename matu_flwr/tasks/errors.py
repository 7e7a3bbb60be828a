"""What goes wrong with suites, tasks and their files, in words a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TaskError(ValueError):
    """A suite, a task or a data file that is not as it must be; the text says where and what to do."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? "`` for the known word nearest to `word` (or nothing), then all known words."""
    choices = sorted(known)
    match = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    hint = f"did you mean {match[0]!r}? " if match else ""
    return f"{hint}known: {', '.join(choices) or '(none)'}"
