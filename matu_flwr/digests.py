"""SHA-256 in hexadecimal digits: of bytes, of JSON, of a file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

SHORT = 16
"""Digits that tell apart what nobody forges: file names, versions of data."""


def of_bytes(content: bytes) -> str:
    """All 64 digits."""
    return hashlib.sha256(content).hexdigest()


def of_json(content: object) -> str:
    """All 64 digits of JSON-able content; the order of keys does not count."""
    return of_bytes(json.dumps(content, sort_keys=True).encode())


def of_file(path: Path) -> str:
    """All 64 digits of a file, which need not fit into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
