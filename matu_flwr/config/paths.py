"""Which folders this machine uses for data sets, decoded images, clients' own files and the output of runs.

The first of these that names a folder wins: the node's own configuration, the run's settings, an environment variable,
the XDG default. The node comes first because a run's settings come from the server, whose paths need not exist here.

The defaults are below the home folder. In a container there may be none: then a `SettingsError` says what to set.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from matu_flwr.config.closed import SettingsError
from matu_flwr.config.settings import Scalar, Settings


def data_dir(settings: Settings, node_config: Mapping[str, Scalar] | None = None) -> Path | None:
    """Absolute path of the folder with the data sets; None if no folder was named."""
    named = (node_config or {}).get("data-dir") or settings.data_dir or os.environ.get("MATU_DATA_DIR")
    return Path(str(named)).absolute() if named else None


def cache_dir(settings: Settings, node_config: Mapping[str, Scalar] | None = None) -> Path:
    """Absolute path of the folder for unpacked archives and decoded images. It may be deleted at any time."""
    named = (node_config or {}).get("cache-dir") or settings.cache_dir
    return Path(str(named)).absolute() if named else _xdg("XDG_CACHE_HOME", ".cache", "cache-dir")


def state_dir(settings: Settings, node_config: Mapping[str, Scalar] | None = None) -> Path:
    """Absolute path of the folder for what clients keep between rounds: personal models, heads, residuals."""
    named = (node_config or {}).get("state-dir") or settings.state_dir
    return Path(str(named)).absolute() if named else _xdg("XDG_STATE_HOME", ".local/state", "state-dir")


def weights_dir() -> Path:
    """Folder for weights that a person put there: $MATU_WEIGHTS_DIR, else `weights` in the default cache folder."""
    named = os.environ.get("MATU_WEIGHTS_DIR")
    return Path(named).absolute() if named else _xdg("XDG_CACHE_HOME", ".cache", "MATU_WEIGHTS_DIR") / "weights"


def run_folder_name(settings: Settings) -> str:
    """Name for a new run's folder: <time>-<suite>-<strategy>, with the local time now."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(settings.suite).stem}-{settings.strategy}"


def _xdg(variable: str, default: str, setting: str) -> Path:
    """Return our folder in one of the user's folders. `setting` is what names another one instead."""
    # The rule of XDG: a relative path in the variable does not count.
    if (named := Path(os.environ.get(variable, ""))).is_absolute():
        return named / "matu-flwr"
    try:
        home = Path.home()
    except RuntimeError:
        raise SettingsError(
            f"{setting} is not set, and there is no home folder to put it into: HOME is not set, and the user "
            f"{os.getuid()} is not known on this machine; set {setting}, or the environment variable {variable} or HOME"
        ) from None
    return home / default / "matu-flwr"
