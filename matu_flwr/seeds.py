"""Randomness is passed in: one seed per purpose, derived from the run's seed and names."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """Derive a seed in [0, 2^63) = f(seed, names): the same on every machine and in every process.

    For example `derive_seed(seed, "fit", round, partition, task)`.
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
