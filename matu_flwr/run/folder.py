"""What a run's folder is called where nobody named it."""

from __future__ import annotations

import time
from pathlib import Path

from matu_flwr.config.settings import Settings


def folder_name(settings: Settings) -> str:
    """When it began, its suite and its method: `20261130-081500-offline-matu`."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(settings.suite).stem}-{settings.strategy}"
