"""Strategies by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from matu_flwr.settings import Settings, SettingsError
from matu_flwr.strategies.base import ManyTaskStrategy, ModelInfo
from matu_flwr.strategies.fedavg import FedAvg
from matu_flwr.strategies.individual import Individual
from matu_flwr.strategies.matu import MaTU


@dataclass(frozen=True)
class Method:
    """A registry entry.

    Attributes
    ----------
    personal : bool
        The client keeps its task vectors and heads in its own state and starts from them.
    joint : bool
        The client trains one backbone on all of its tasks and sends one vector.
    """

    strategy: type[ManyTaskStrategy]
    summary: str
    paper: str
    personal: bool = False
    joint: bool = False

    def shares_heads(self, heads: str) -> bool:
        """Whether heads travel, given `train.heads`."""
        return heads == "average" and not self.personal


METHODS: dict[str, Method] = {
    "matu": Method(MaTU, "unified task vectors with per-task modulators", "https://arxiv.org/abs/2502.06376"),
    "fedavg": Method(FedAvg, "one shared vector, averaged by images", "https://arxiv.org/abs/1602.05629", joint=True),
    "individual": Method(Individual, "every client alone, nothing is shared", "", personal=True),
}


def available() -> dict[str, str]:
    """Names of the strategies with one line on each."""
    return {name: method.summary for name, method in METHODS.items()}


def method(name: str) -> Method:
    """Registry entry of a name.

    Raises
    ------
    SettingsError
        Unknown name, with the nearest match and the list.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SettingsError(f"unknown strategy {name!r}; {hint}available: {', '.join(METHODS)}")
    return METHODS[name]


def create(name: str, settings: Settings, model: ModelInfo, **arguments: Any) -> ManyTaskStrategy:
    """Build a strategy by name; `arguments` go to its constructor (`experiment`, `observer`)."""
    return method(name).strategy(settings, model, **arguments)
