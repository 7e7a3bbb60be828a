"""FedProx's client (Li et al., 2020): joint training with a pull towards what it received."""

from __future__ import annotations

from matu_flwr.local.fit import Proximal
from matu_flwr.local.rules.joint import Joint


class FedProx(Joint):
    """μ/2 ‖θ − θ_global‖² is added to every step's loss; heads are not pulled."""

    def proximal(self) -> Proximal:
        """Towards the start of the round."""
        return Proximal(self.work.settings.fedprox.mu, self.common_start())
