"""FedBABU: the backbone is trained under fixed random heads; heads are fine-tuned only where they are used.

Oh, Kim, Yun: FedBABU: Toward Enhanced Representation for Federated Image Classification. ICLR 2022.
https://arxiv.org/abs/2106.06042

The paper fine-tunes the whole network or the head before evaluation; here the head, for `fedbabu.fine-tune` steps on
the client's images of the task. Those steps come on top of the round's.
"""

from __future__ import annotations

from typing import ClassVar

from matu_flwr.local.rules import FedBABU as FedBABURule
from matu_flwr.local.rules import Rule
from matu_flwr.strategies.fedavg import FedAvg


class FedBABU(FedAvg):
    """FedAvg's server; no head travels."""

    rule: ClassVar[type[Rule]] = FedBABURule
