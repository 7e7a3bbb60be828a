"""NTK-FedAvg: FedAvg of a model that is linear in its parameters.

Muhamed, Mankikar, Smith: Fed Up with Complexity: Simplifying Many-Task Federated Learning with NTKFedAvg. PML workshop
at ICLR 2024. https://openreview.net/forum?id=K8jxsDF9xO

Clients train f(x; θ_p) + J(x; θ_p)(θ − θ_p), the average is tested the same way, and so are exports refused: no library
has such a model. The method sets `backbone.linearised`. With LoRA only B moves at first order, because B = 0 at θ_p.
"""

from __future__ import annotations

from matu_flwr.strategies.fedavg import FedAvg


class NTKFedAvg(FedAvg):
    """FedAvg's server and client; the backbone is linearised at θ_p."""
