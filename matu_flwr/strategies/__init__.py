"""The methods: one file each, with the server's side (a Flower `Strategy`) and the client's side (a `Rule`)."""

from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.registration import Client, FederationError
from matu_flwr.federation.stream_grid import StreamGrid
from matu_flwr.strategies.fedavg import FedAvg
from matu_flwr.strategies.individual import Individual
from matu_flwr.strategies.matu import MaTU
from matu_flwr.strategies.registry import available, create, method, prepared

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
