"""FedRep: a shared representation under personal heads, trained in turn.

Collins, Hassani, Mokhtari, Shakkottai: Exploiting Shared Representations for Personalized Federated Learning. ICML
2021. https://arxiv.org/abs/2102.07078

The backbone is the representation, the linear heads are the personal part, one per task of a client. In a round the
first `fedrep.head-share` of the steps train the heads on the frozen backbone, the others the backbone under
frozen heads.
"""

from __future__ import annotations

from typing import ClassVar

from matu_flwr.local.rules import FedRep as FedRepRule
from matu_flwr.local.rules import Rule
from matu_flwr.strategies.fedavg import FedAvg


class FedRep(FedAvg):
    """FedAvg's server; heads stay at the clients."""

    rule: ClassVar[type[Rule]] = FedRepRule
