"""FedProx: FedAvg with a pull towards the global model during local training.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks. MLSys 2020.
https://arxiv.org/abs/1812.06127

The server is FedAvg's. The paper lets slow clients do less work. Here every client takes the same number of steps, as
under the other methods. The strength of the pull, the paper's μ, is `fedprox.mu`. It has no default value: with 0, the
value in released code, the method would be FedAvg.
"""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from matu_flwr.client.fit import Proximal
from matu_flwr.client.rule import Joint, Rule
from matu_flwr.config.settings import Settings, SettingsError
from matu_flwr.strategies.fedavg import FedAvg


class FedProxRule(Joint):
    """FedProx's client: FedAvg's, with μ/2 ‖θ − θ_global‖² added to the loss of every step. Heads are not pulled."""

    @override
    def proximal(self) -> Proximal:
        """The pull towards the backbone that the client received, from which this round's training starts."""
        return Proximal(self.work.settings.fedprox.mu, self.common_start())


class FedProx(FedAvg):
    """FedAvg's server. What is new happens at the clients: see `FedProxRule`."""

    about = "fedavg with a pull towards the global model"
    paper = "https://arxiv.org/abs/1812.06127"
    section = "fedprox"

    rule: ClassVar[type[Rule]] = FedProxRule

    @classmethod
    @override
    def check(cls, settings: Settings) -> None:
        """Refuse a run in which nobody has set `fedprox.mu`.

        Raises
        ------
        SettingsError
            `fedprox.mu` is negative, as it is by default.
        """
        if settings.fedprox.mu < 0:
            raise SettingsError(
                "strategy 'fedprox' needs fedprox.mu, the strength of its pull, and none was given: try 0.001, 0.01, "
                "0.1, 1"
            )
