"""Texts that stay readable: no error, log line or list of names is longer than a person reads.

A broken file can make another library's message as long as the file, and a list of names can have thousands. Every
exception of this package inherits `Brief`, so that no text is longer than `LONGEST`, wherever it was put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LONGEST = 2000
"""Characters of the longest text of an exception."""


def shortened(text: str, most: int = LONGEST) -> str:
    """Return `text` with at most `most` characters (40 or more); of a longer one the middle is left out.

    The end stays, because our texts end with what to do.
    """
    if len(text) <= most:
        return text
    gap = f" … ({len(text)} characters) … "
    kept = most - len(gap)
    return text[: kept - kept // 3] + gap + text[len(text) - kept // 3 :]


def shown(text: object) -> str:
    """A path or a name as a terminal can show it: control characters and bytes that are no text become escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))


def printable(text: str, limit: int = 500) -> str:
    r"""Text from elsewhere as one line for a terminal, a log or a page.

    Spaces of every kind become a single space. Characters that are not shown, and might steer a terminal or turn the
    direction of writing, are written out as Python does (an escape is \x1b). What is longer than `limit` characters is
    cut, and ends with "...".
    """
    # Cut before anything else: the text may have millions of characters.
    words = " ".join(text[: 2 * limit].split())
    line = shown(words)
    return line if len(line) <= limit and len(text) <= 2 * limit else line[: limit - 3] + "..."


def visible(text: str) -> str:
    r"""Text in which nothing steers a terminal: what is not shown is written out as Python does. Lines stay lines."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def short(value: object, most: int = 80) -> str:
    """Return the `repr` of a value that is not trusted, fit to be printed, with at most `most` characters."""
    return printable(repr(value), most)


def listed(names: Iterable[object], most: int = 5) -> str:
    """Return the first `most` names, in quotes, and how many more there are: "'a', 'b' and 7 more"."""
    return some([short(name) for name in names], most)


def some(texts: Sequence[str], most: int = 5, between: str = ", ") -> str:
    """Return the first `most` texts as they are, and how many more there are."""
    text = between.join(texts[:most])
    return f"{text} and {len(texts) - most} more" if len(texts) > most else text


class Brief(Exception):
    """Base of this package's exceptions: a text longer than `LONGEST` loses its middle, and none steers a terminal."""

    def __init__(self, text: object = "") -> None:
        super().__init__(shortened(visible(shortened(str(text)))))
