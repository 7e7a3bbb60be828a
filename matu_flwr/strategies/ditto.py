"""Ditto: personal models, pulled towards a global one that is FedAvg's.

Li, Hu, Beirami, Smith: Ditto: Fair and Robust Federated Learning Through Personalization. ICML 2021.
https://arxiv.org/abs/2012.04221

A client has one personal model for all of its tasks, as it has one part in the global model, and personal heads. It is
what is tested. λ is `ditto.strength`; with 0, which released code uses, personal models learn nothing from the others.
"""

from __future__ import annotations

from typing import ClassVar

from matu_flwr.local.rules import Ditto as DittoRule
from matu_flwr.local.rules import Rule
from matu_flwr.strategies.fedavg import FedAvg


class Ditto(FedAvg):
    """FedAvg's server; the artefacts hold the global model, the clients' own files the personal ones."""

    rule: ClassVar[type[Rule]] = DittoRule
