"""One file per method, each a Flower Strategy."""

from matu_flwr.strategies.base import ManyTaskStrategy
from matu_flwr.strategies.fedavg import FedAvg
from matu_flwr.strategies.individual import Individual
from matu_flwr.strategies.matu import MaTU
from matu_flwr.strategies.registration import Client, FederationError
from matu_flwr.strategies.registry import available, create, method, prepared
from matu_flwr.strategies.stream_grid import StreamGrid

__all__ = [
    "Client",
    "FedAvg",
    "FederationError",
    "Individual",
    "MaTU",
    "ManyTaskStrategy",
    "StreamGrid",
    "available",
    "create",
    "method",
    "prepared",
]
