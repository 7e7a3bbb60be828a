"""SHA-256 digests of bytes, of JSON content and of files, as hexadecimal text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

SHORT = 16
"""Number of digits that are enough where nobody would forge a digest, as in file names and versions of data."""


def of_bytes(content: bytes) -> str:
    """Return the SHA-256 of some bytes, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def of_json(content: object) -> str:
    """Return the SHA-256 of content that JSON can hold, 64 hexadecimal digits; the order of keys does not matter."""
    return of_bytes(json.dumps(content, sort_keys=True).encode())


def of_file(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits; the file need not fit into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
