"""Which settings name files and folders, and where a relative path begins.

A path that is typed begins in the folder where it is typed. A path in an experiment file begins in that file's folder,
so that the file means the same wherever it is used. Flower runs in another folder, so every path is made absolute.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matu_flwr.config.closed import SettingsError

PATHS = ("experiment", "data-dir", "cache-dir", "state-dir", "out-dir", "resume-from", "backbone.heads-file")
"""Settings that are always paths."""
WORDS = ("pretrained", "random")
"""Values of `backbone.weights` that are no path."""


def absolute_paths(values: Mapping[str, Any], start: Path) -> dict[str, str]:
    """Return those of the settings that are paths, made absolute. Relative ones begin in the folder `start`.

    A suite is a path if it ends in .yaml or .yml, as everywhere; otherwise it is the name of a shipped one.

    Raises
    ------
    SettingsError
        A path begins with ``~``, and there is no such home folder.
    """
    return {
        key: str((start / expanded(key, value)).absolute())
        for key, value in values.items()
        # Values of other types are refused later, by name.
        if isinstance(value, str) and value and _is_path(key, value)
    }


def expanded(key: str, value: str) -> Path:
    """Return a path with ``~`` replaced by the home folder; SettingsError if there is none."""
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise SettingsError(
            f"{key} = {value!r}: there is no such home folder (is HOME set?); give the path from / on"
        ) from None


def _is_path(key: str, value: str) -> bool:
    if key == "suite":
        return Path(value).suffix in (".yaml", ".yml")
    return key in PATHS or (key == "backbone.weights" and value not in WORDS)
