"""The client's side of every method: one class each, named by the strategy in `matu_flwr.strategies`."""

from matu_flwr.local.rules.alone import Alone, OneShot
from matu_flwr.local.rules.base import Fitted, Rule
from matu_flwr.local.rules.ditto import Ditto
from matu_flwr.local.rules.fedbabu import FedBABU
from matu_flwr.local.rules.fedper import FedPer
from matu_flwr.local.rules.fedprox import FedProx
from matu_flwr.local.rules.fedrep import FedRep
from matu_flwr.local.rules.joint import Joint
from matu_flwr.local.rules.separate import Separate, Unified

__all__ = [
    "Alone",
    "Ditto",
    "FedBABU",
    "FedPer",
    "FedProx",
    "FedRep",
    "Fitted",
    "Joint",
    "OneShot",
    "Rule",
    "Separate",
    "Unified",
]
