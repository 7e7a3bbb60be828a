"""NTK-FedAvg: FedAvg of a model that is linear in its parameters.

Muhamed, Mankikar, Smith: Fed Up with Complexity: Simplifying Many-Task Federated Learning with NTKFedAvg. PML workshop
at ICLR 2024. https://openreview.net/forum?id=K8jxsDF9xO

Clients train and test the backbone's first-order expansion at θ_p, f(x; θ_p) + J(x; θ_p)(θ − θ_p), where J is the
Jacobian of the backbone f. The method sets `backbone.linearised`. Such a model cannot be exported, because no library
can load it. With LoRA, the expansion depends on the factor B alone: B = 0 at θ_p, so the derivative by the other factor
is zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from matu_flwr.config.settings import Scalar
from matu_flwr.strategies.fedavg import FedAvg


class NTKFedAvg(FedAvg):
    """FedAvg's server and client; the backbone is linearised at θ_p."""

    about = "fedavg of the model linearised at θ_p"
    paper = "https://openreview.net/forum?id=K8jxsDF9xO"
    sets: ClassVar[Mapping[str, Scalar]] = {"backbone.linearised": True}
