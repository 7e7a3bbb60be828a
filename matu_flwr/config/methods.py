"""The names of the methods. They stand apart so that a wrong one is told at once: methods need PyTorch and Flower."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from matu_flwr.config.closed import SettingsError

CLASSES: dict[str, tuple[str, str]] = {
    "matu": ("matu", "MaTU"),
    "pertask-fedavg": ("pertask_fedavg", "PerTaskFedAvg"),
    "fedavg": ("fedavg", "FedAvg"),
    "fedprox": ("fedprox", "FedProx"),
    "fedper": ("fedper", "FedPer"),
    "fedrep": ("fedrep", "FedRep"),
    "fedbabu": ("fedbabu", "FedBABU"),
    "ditto": ("ditto", "Ditto"),
    "matfl": ("matfl", "MaTFL"),
    "ntk-fedavg": ("ntk_fedavg", "NTKFedAvg"),
    "task-arithmetic": ("task_arithmetic", "TaskArithmetic"),
    "ties": ("ties", "TIES"),
    "emr": ("emr", "EMR"),
    "individual": ("individual", "Individual"),
    "zero-shot": ("zero_shot", "ZeroShot"),
    "central-individual": ("central_individual", "CentralIndividual"),
    "central-mtl": ("central_mtl", "CentralMTL"),
}
"""For each name the module in `matu_flwr.strategies`, and the class in it."""


def check_method(name: str, known: Iterable[str] = CLASSES) -> None:
    """Raise `SettingsError` if there is no such method. The text names the nearest match and lists all names."""
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SettingsError(f"unknown strategy {name!r}; {hint}available: {', '.join(names)}")
