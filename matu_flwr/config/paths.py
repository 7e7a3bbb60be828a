"""Where things lie on the machine that asks: data sets, decoded images, a client's own files, what runs write.

A node's own configuration comes first, then the run's settings, then the environment, then the XDG default: in a
deployment the server's paths mean nothing on a node that sets its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from matu_flwr.config.settings import Scalar, Settings


def data_dir(settings: Settings, node_config: Mapping[str, Scalar] | None = None) -> Path | None:
    """Folder of the data sets; None if nobody named one."""
    named = (node_config or {}).get("data-dir") or settings.data_dir or os.environ.get("MATU_DATA_DIR")
    return Path(str(named)).absolute() if named else None


def cache_dir(settings: Settings, node_config: Mapping[str, Scalar] | None = None) -> Path:
    """Folder for what is unpacked and decoded once."""
    named = (node_config or {}).get("cache-dir") or settings.cache_dir
    return Path(str(named)).absolute() if named else _xdg("XDG_CACHE_HOME", ".cache")


def state_dir(settings: Settings, node_config: Mapping[str, Scalar] | None = None) -> Path:
    """Folder for clients' own files."""
    named = (node_config or {}).get("state-dir") or settings.state_dir
    return Path(str(named)).absolute() if named else _xdg("XDG_STATE_HOME", ".local/state")


def weights_dir() -> Path:
    """Folder of weights that were placed by hand: $MATU_WEIGHTS_DIR, or `weights` beside the decoded images."""
    named = os.environ.get("MATU_WEIGHTS_DIR")
    return Path(named).absolute() if named else _xdg("XDG_CACHE_HOME", ".cache") / "weights"


def run_folder_name(settings: Settings) -> str:
    """Name of a new run's folder, by the local clock: <time>-<suite>-<strategy>."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(settings.suite).stem}-{settings.strategy}"


def _xdg(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default) / "matu-flwr"
