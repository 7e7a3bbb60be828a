"""Strategies by name. A new method is one file beside this one, and one line in `METHODS`."""

from __future__ import annotations

import difflib
from typing import Any

from matu_flwr.config.settings import DEFAULTS, Settings, SettingsError
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.checks import check_guards
from matu_flwr.federation.model_info import ModelInfo
from matu_flwr.strategies.central_individual import CentralIndividual
from matu_flwr.strategies.central_mtl import CentralMTL
from matu_flwr.strategies.ditto import Ditto
from matu_flwr.strategies.emr import EMR
from matu_flwr.strategies.fedavg import FedAvg
from matu_flwr.strategies.fedbabu import FedBABU
from matu_flwr.strategies.fedper import FedPer
from matu_flwr.strategies.fedprox import FedProx
from matu_flwr.strategies.fedrep import FedRep
from matu_flwr.strategies.individual import Individual
from matu_flwr.strategies.matfl import MaTFL
from matu_flwr.strategies.matu import MaTU
from matu_flwr.strategies.ntk_fedavg import NTKFedAvg
from matu_flwr.strategies.pertask_fedavg import PerTaskFedAvg
from matu_flwr.strategies.task_arithmetic import TaskArithmetic
from matu_flwr.strategies.ties import TIES
from matu_flwr.strategies.zero_shot import ZeroShot

METHODS: dict[str, type[ManyTaskStrategy]] = {
    "matu": MaTU,
    "pertask-fedavg": PerTaskFedAvg,
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedper": FedPer,
    "fedrep": FedRep,
    "fedbabu": FedBABU,
    "ditto": Ditto,
    "matfl": MaTFL,
    "ntk-fedavg": NTKFedAvg,
    "task-arithmetic": TaskArithmetic,
    "ties": TIES,
    "emr": EMR,
    "individual": Individual,
    "zero-shot": ZeroShot,
    "central-individual": CentralIndividual,
    "central-mtl": CentralMTL,
}
"""A class says of itself what it is, which options it has, and what it asks of the settings."""


def available() -> dict[str, str]:
    """Names of the strategies with one line on each."""
    return {name: strategy.about for name, strategy in METHODS.items()}


def method(name: str) -> type[ManyTaskStrategy]:
    """The strategy of a name.

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


def prepared(settings: Settings) -> Settings:
    """The settings with what the method sets, checked against what it asks for.

    Raises
    ------
    SettingsError
        Unknown strategy; an option of another one; a value that the method needs and nobody gave, or cannot have.
    """
    chosen = method(settings.strategy)
    flat, given = settings.flat(), settings.given()
    for name, other in METHODS.items():
        for key, value in flat.items():
            foreign = other.section and other.section != chosen.section and key.startswith(f"{other.section}.")
            if foreign and value != DEFAULTS[key]:
                raise SettingsError(
                    f"setting {key!r} = {value!r} is an option of strategy {name!r}, not of {settings.strategy!r}: "
                    f"remove it, or choose strategy = {name}"
                )
    for key, value in chosen.sets.items():
        if flat[key] != value and key in given:
            raise SettingsError(
                f"strategy {settings.strategy!r} sets {key} = {value!r}, found {flat[key]!r}: remove that setting"
            )
    settings = Settings.from_flat({**flat, **chosen.sets}).checked()
    chosen.check(settings)
    check_guards(chosen, settings, [name for name, other in METHODS.items() if other.rule.separate_updates])
    return settings


def create(name: str, settings: Settings, model: ModelInfo, **arguments: Any) -> ManyTaskStrategy:
    """Build a strategy by name; `arguments` go to its constructor (`run_name`, `observer`)."""
    return method(name)(settings, model, **arguments)
