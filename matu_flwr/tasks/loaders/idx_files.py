"""Checks MNIST's IDX files, and unpacks them into the cache if they are there only as .gz."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from matu_flwr import digests
from matu_flwr.files import replacing
from matu_flwr.tasks.errors import TaskError
from matu_flwr.tasks.loaders.sources import Request, file_signature, reading


def unpacked(request: Request, root: Path, files: Sequence[str]) -> Path:
    """Check the IDX files, and return the folder that has them unpacked.

    That is `root`, if all are there. If one is there only as .gz, all are unpacked or copied into the cache.

    Raises
    ------
    TaskError
        A file is damaged.
    """
    if all((root / file).exists() for file in files):
        for file in files:
            _check_idx(request, root / file)
        return root
    version = digests.of_json(file_signature(request.task, root))[: digests.SHORT]
    target_root = request.cache_dir / "unpacked" / f"{request.task}-{version}"
    for file in files:
        target, plain, packed = target_root / file, root / file, root / f"{file}.gz"
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        # Two processes may do this at the same time. Both write the same file, so it does not matter who is last.
        with replacing(target) as temporary:
            with (
                reading(request, plain if plain.exists() else packed, "an IDX file of MNIST's kind"),
                plain.open("rb") if plain.exists() else gzip.open(packed) as source,
                temporary.open("wb") as sink,
            ):
                shutil.copyfileobj(source, sink)
            _check_idx(request, temporary, packed)
    return target_root


def _check_idx(request: Request, file: Path, origin: Path | None = None) -> None:
    """Compare the length of an IDX file with what its header says."""
    # torchvision checks this too, but its message does not name the file.
    size = file.stat().st_size
    with file.open("rb") as stream:
        header = stream.read(16)
    # An IDX file begins with two zeros, the type (8 = unsigned byte) and the number of axes, then the axes' lengths.
    axes = header[3] if header[:3] == b"\x00\x00\x08" else 0
    if axes not in (1, 3) or len(header) < 4 + 4 * axes:
        raise TaskError(
            f"task {request.task!r}: {origin or file} is not an IDX file of bytes (it starts with "
            f"{header[:4].hex(' ')!r}, expected '00 00 08 01' or '00 00 08 03'): replace it by an undamaged copy"
        )
    shape = struct.unpack(f">{axes}I", header[4 : 4 + 4 * axes])
    expected = 4 + 4 * axes + int(np.prod(shape, dtype=np.int64))
    if size != expected:
        raise TaskError(
            f"task {request.task!r}: {origin or file} is damaged: its header promises shape {shape}, {expected} bytes, "
            f"but {size} bytes were found: replace it by an undamaged copy"
        )
