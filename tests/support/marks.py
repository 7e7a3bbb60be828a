"""Which cases of a long list every `make test` runs."""

from collections.abc import Iterable
from typing import Any

import pytest


def long_but(kept: Iterable[str], names: Iterable[str]) -> list[Any]:
    """Every name as a parameter; those that are not kept run in `make test-all`.

    Raises
    ------
    ValueError
        Something is kept that is not among the names.
    """
    kept, names = set(kept), list(names)
    if unknown := kept - set(names):
        raise ValueError(f"{sorted(unknown)} to be kept, but the cases are {names}")
    return [pytest.param(name, marks=() if name in kept else pytest.mark.long) for name in names]
