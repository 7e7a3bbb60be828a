"""Random generators that depend on a seed and on names, and on nothing else.

Every node of a federation works out its own share of the data; the shares only fit together if the same seed and the
same names give the same numbers in every process (Python's own `hash` of a string is salted per process).
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for `names` under `seed`: ``derive_seed(0, "fit", round, client, task)``."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a numpy generator for `names` under `seed`."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *names)))
