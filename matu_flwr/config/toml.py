"""Writes the default settings into `[tool.flwr.app.config]` of pyproject.toml.

Flower accepts only keys that it finds in that table. `make settings` calls this module:

    python -m matu_flwr.config.toml [pyproject.toml]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from matu_flwr.config.settings import DEFAULTS, Scalar

HEAD = "[tool.flwr.app.config]"
NOTE = "# Written by `make settings` from matu_flwr/config/, which says what each key means."


def as_toml(values: Mapping[str, Scalar]) -> str:
    """Settings as the lines of one TOML table."""
    # Text, numbers, true and false are written alike in JSON and in TOML, so the JSON writer will do.
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


def defaults_table() -> str:
    """The defaults as tables for pyproject.toml: one table per section, in the order of `Settings`."""
    sections: dict[str, dict[str, Scalar]] = {}
    for key, value in DEFAULTS.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = value
    tables = [f"{HEAD[:-1]}{'.' + name if name else ''}]\n{as_toml(part)}" for name, part in sections.items()]
    return f"{NOTE}\n" + "\n".join(tables)


def with_defaults(pyproject: str) -> str:
    """Replace the settings in the text of a pyproject.toml by today's defaults.

    Raises
    ------
    ValueError
        The text has no table `[tool.flwr.app.config]`.
    """
    lines = pyproject.splitlines()
    if HEAD not in lines:
        raise ValueError(f"found no table {HEAD}: add that line where the settings belong")
    start = stop = lines.index(HEAD)
    # The comment right above the table is replaced too: it is the NOTE of an earlier call.
    while start > 0 and lines[start - 1].startswith("#"):
        start -= 1
    while stop < len(lines) and (not lines[stop].startswith("[") or lines[stop].startswith(HEAD[:-1])):
        stop += 1
    # A comment right above the next table belongs to that table and stays.
    while stop < len(lines) and lines[stop - 1].startswith("#"):
        stop -= 1
    after = "\n".join(["", *lines[stop:], ""]) if stop < len(lines) else ""
    return "\n".join([*lines[:start], defaults_table()]) + after


def main() -> None:
    """Rewrite the file named on the command line, or else pyproject.toml in the current folder."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "pyproject.toml")
    path.write_text(with_defaults(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
