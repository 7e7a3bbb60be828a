"""What may be the name of a client, a task or a class.

Names of clients and tasks become names of files and parts of log lines and pages. They come from other machines, so two
of them must never be mixed up: not by a file system that ignores case, and not by a person who reads them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Bytes of a name in UTF-8. File names end at 255 bytes, and an ending and a temporary mark are added.
MAX_NAME = 200
# Characters of a class name.
MAX_CLASS_NAME = 500

NAME_RULE = (
    f"1 to {MAX_NAME} bytes of printable characters without slashes, not beginning with a dot, without spaces at "
    "either end, and with composed accents (NFC)"
)
CLASS_RULE = f"1 to {MAX_CLASS_NAME} printable characters, without spaces at either end and with composed accents (NFC)"

# Python calls these printable, but one sees nothing of them: fillers, joiners and selectors, and Braille without dots.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def is_name(text: str) -> bool:
    """Whether `text` may name a client or a task: `NAME_RULE`."""
    return (
        text.isprintable()
        and len(text.encode()) <= MAX_NAME
        and not set(text) & set("/\\")
        and not text.startswith(".")
        and not _INVISIBLE.search(text)
        and _is_plain(text)
    )


def is_class_name(text: str) -> bool:
    """Whether `text` may name a class: `CLASS_RULE`."""
    return text.isprintable() and len(text) <= MAX_CLASS_NAME and _is_plain(text)


def _is_plain(text: str) -> bool:
    """Whether something of `text` can be seen, where a reader expects it, and in one way of writing it only."""
    # A mark that combines would sit on whatever a log line or a page has in front of the name.
    return (
        bool(_INVISIBLE.sub("", text).strip())
        and text == text.strip()
        and unicodedata.normalize("NFC", text) == text
        and not unicodedata.category(text[0]).startswith("M")
    )


def composed(name: str) -> str:
    """A name with its accents written in one way (NFC), and without spaces at its ends.

    One system writes é as one character and another as two: sites would have different names.
    """
    return unicodedata.normalize("NFC", name).strip()


def folded(name: str) -> str:
    """What is equal for two names that a file system or a reader may take for one: without case, width and style."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def clashing(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two different names, in the order given, that are equal once `folded`. None if there are no such."""
    seen: dict[str, str] = {}
    for name in names:
        if seen.setdefault(folded(name), name) != name:
            return seen[folded(name)], name
    return None


def repeated_class(classes: Iterable[str]) -> str | None:
    """The first class name that stands there twice for a reader. Case counts: there are tasks with `a` and `A`."""
    seen = set()
    for name in classes:
        visible = _INVISIBLE.sub("", name)
        if visible in seen:
            return name
        seen.add(visible)
    return None
