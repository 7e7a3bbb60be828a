"""Random generators that depend on a seed and on names, and on nothing else.

Every node of a federation works out its own share of the data. The shares fit together only if the same seed and the
same names give the same numbers in every process. Python's `hash` of a string would not do: it differs from process to
process.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a seed of 63 bits made of `seed` and `names`, as in ``derive_seed(0, "fit", round, client, task)``."""
    # The separator keeps ("ab", "c") and ("a", "bc") apart.
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a numpy generator (PCG64) whose seed is made of `seed` and `names`."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *names)))
