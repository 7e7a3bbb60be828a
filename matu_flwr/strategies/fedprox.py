"""FedProx: FedAvg with a pull towards the global model during local training.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks. MLSys 2020.
https://arxiv.org/abs/1812.06127

The server is FedAvg's. The paper lets slow clients do less work; here every client takes the same steps, as under the
other methods. μ has no default: with 0, which released code uses, it is FedAvg.
"""

from __future__ import annotations

from typing import ClassVar

from matu_flwr.client.fit import Proximal
from matu_flwr.client.rule import Joint, Rule
from matu_flwr.config.settings import Settings, SettingsError
from matu_flwr.strategies.fedavg import FedAvg


class FedProxRule(Joint):
    """μ/2 ‖θ − θ_global‖² is added to every step's loss; heads are not pulled."""

    def proximal(self) -> Proximal:
        """Towards the start of the round."""
        return Proximal(self.work.settings.fedprox.mu, self.common_start())


class FedProx(FedAvg):
    """FedAvg's server; clients add μ/2 ‖θ − θ_global‖² to the loss (`fedprox.mu`)."""

    about = "fedavg with a pull towards the global model"
    paper = "https://arxiv.org/abs/1812.06127"
    section = "fedprox"

    rule: ClassVar[type[Rule]] = FedProxRule

    @classmethod
    def check(cls, settings: Settings) -> None:
        """μ has to be given."""
        if settings.fedprox.mu < 0:
            raise SettingsError(
                "strategy 'fedprox' needs fedprox.mu, the strength of its pull, and none was given: try 0.001, 0.01, "
                "0.1, 1"
            )
