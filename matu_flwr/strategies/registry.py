"""Strategies by name, and what a method asks of the settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from matu_flwr.config.sections import RobustSettings
from matu_flwr.config.settings import DEFAULTS, Scalar, Settings, SettingsError
from matu_flwr.federation.base import ManyTaskStrategy, ModelInfo
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


@dataclass(frozen=True)
class Method:
    """A registry entry.

    Attributes
    ----------
    strategy : type of ManyTaskStrategy
        Its `rule` is the client's side.
    summary, paper : str
        One line, and an address.
    section : str
        Of the settings: options that only this method has.
    sets : dict
        Settings that belong to the method.
    trains_heads : bool
        The method means nothing with frozen heads.
    """

    strategy: type[ManyTaskStrategy]
    summary: str
    paper: str = ""
    section: str = ""
    sets: Mapping[str, Scalar] = field(default_factory=dict)
    trains_heads: bool = False


ARXIV = "https://arxiv.org/abs/"
METHODS: dict[str, Method] = {
    "matu": Method(MaTU, "unified task vectors with per-task modulators", f"{ARXIV}2502.06376", "matu"),
    "pertask-fedavg": Method(PerTaskFedAvg, "one vector per task, averaged over its holders", f"{ARXIV}1602.05629"),
    "fedavg": Method(FedAvg, "one shared vector, averaged by images", f"{ARXIV}1602.05629"),
    "fedprox": Method(FedProx, "fedavg with a pull towards the global model", f"{ARXIV}1812.06127", "fedprox"),
    "fedper": Method(FedPer, "the last blocks and the heads are personal", f"{ARXIV}1912.00818", "fedper"),
    "fedrep": Method(FedRep, "personal heads, trained in turn", f"{ARXIV}2102.07078", "fedrep", trains_heads=True),
    "fedbabu": Method(
        FedBABU, "the backbone under fixed random heads", f"{ARXIV}2106.06042", "fedbabu", trains_heads=True
    ),
    "ditto": Method(Ditto, "personal models pulled towards a global one", f"{ARXIV}2012.04221", "ditto"),
    "matfl": Method(MaTFL, "models mixed by the similarity of their weights", "", "matfl"),
    "ntk-fedavg": Method(
        NTKFedAvg,
        "fedavg of the model linearised at θ_p",
        "https://openreview.net/forum?id=K8jxsDF9xO",
        sets={"backbone.linearised": True},
    ),
    "task-arithmetic": Method(
        TaskArithmetic, "one-shot: θ_p + λ Σ τ for all tasks", f"{ARXIV}2212.04089", "task-arithmetic"
    ),
    "ties": Method(TIES, "one-shot: trim, elect, merge what agrees", f"{ARXIV}2306.01708", "ties"),
    "emr": Method(EMR, "one-shot: elect, mask, rescale over all tasks", f"{ARXIV}2405.17461"),
    "individual": Method(Individual, "every client alone, nothing is shared"),
    "zero-shot": Method(
        ZeroShot, "θ_p with zero-shot heads, no training", f"{ARXIV}2103.00020", sets={"train.heads": "zero-shot"}
    ),
    "central-individual": Method(CentralIndividual, "upper bound: a task's pooled images, one model per task"),
    "central-mtl": Method(CentralMTL, "upper bound: all pooled images, one model for all tasks"),
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
    if settings.strategy == "fedprox" and settings.fedprox.mu < 0:
        raise SettingsError(
            "strategy 'fedprox' needs fedprox.mu, the strength of its pull, and none was given: try 0.001, 0.01, 0.1, 1"
        )
    if chosen.trains_heads and settings.train.heads == "zero-shot":
        raise SettingsError(
            f"strategy {settings.strategy!r} is about training heads, and train.heads = zero-shot freezes them: take "
            "train.heads = average or local"
        )
    if settings.strategy == "fedrep" and settings.train.steps < 2:
        raise SettingsError("strategy 'fedrep' divides a round's steps between heads and backbone: train.steps >= 2")
    _check_guards(chosen, settings)
    return settings


def _check_guards(chosen: Method, settings: Settings) -> None:
    """Refuse robust aggregation and privacy where there is nothing for them to act on."""
    rule, name, robust = chosen.strategy.rule, settings.strategy, settings.robust
    if robust != RobustSettings() and rule.payload(settings, settings.rounds) == "nothing":
        raise SettingsError(f"robust.* is given, and strategy {name!r} sends nothing that could be bounded: remove it")
    if robust.mean != "weighted" and not chosen.strategy.robust_mean:
        raise SettingsError(
            f"robust.mean = {robust.mean!r}: strategy {name!r} takes no mean over a task's holders; remove it, "
            "robust.clip-factor and robust.clip-norm work"
        )
    if settings.privacy.noise_multiplier > 0 and not rule.separate_updates:
        able = [other for other, method in METHODS.items() if method.strategy.rule.separate_updates]
        raise SettingsError(
            f"privacy.noise-multiplier > 0 with strategy {name!r}: clients clip and noise where each round makes one "
            f"update per task, and nothing else of it is kept or sent: {', '.join(able)}"
        )


def create(name: str, settings: Settings, model: ModelInfo, **arguments: Any) -> ManyTaskStrategy:
    """Build a strategy by name; `arguments` go to its constructor (`run_name`, `observer`)."""
    return method(name).strategy(settings, model, **arguments)
