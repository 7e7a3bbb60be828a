"""What client-side differential privacy has cost so far: ε for a given δ, per client and task.

The mechanism is that of `client.privacy`. Two data sets are neighbours if all of one client's training images of one
task are replaced by as many others. The clipped update then moves by up to twice the clip norm, so the effective noise
multiplier is σ / 2.

Every message that asks a client to train counts as a release, whether a reply came or not. We claim no amplification by
sampling: the server that sees the updates also draws the clients, from a seed that everybody knows. A client that is
left out of a round releases nothing in it. That is the only way in which `fraction-train` < 1 lowers ε.

ε comes from Opacus' accountant (Rényi differential privacy, Mironov 2017). It is an upper bound, for a sampling rate of
q = 1.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from matu_flwr.config.sections import PrivacySettings
from matu_flwr.config.settings import SettingsError
from matu_flwr.events import Guards

# Rényi orders: near 1 is best where ε is in the thousands, a million where it is near zero.
ORDERS = [1 + float(x) for x in np.logspace(-4, 6, 600)]
RELATION = "all training images of one task at one client, replaced by as many others"


# Cached, because most clients have been asked to train the same number of times.
@functools.lru_cache(maxsize=4096)
def epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Upper bound ε on what an observer of so many releases can learn.

    Parameters
    ----------
    noise_multiplier : float > 0
        σ of `client.privacy`: the noise's standard deviation in units of the clip norm.
    releases : int ≥ 0
        Rounds in which the client was asked to train.
    delta : float in (0, 1)
        δ.

    Raises
    ------
    SettingsError
        Opacus is not installed.
    """
    if releases == 0:
        return 0.0
    accountant = _accountant()
    accountant.history = [(noise_multiplier / 2, 1.0, releases)]
    return float(accountant.get_epsilon(delta, alphas=ORDERS))


def _accountant() -> Any:
    """A new accountant of Opacus.

    Opacus takes a second to import, so it is imported only where there is something to account for.
    """
    try:
        from opacus.accountants import RDPAccountant
    except ImportError:
        raise SettingsError(
            "privacy.noise-multiplier > 0 needs the package opacus on the server: pip install 'matu-flwr[privacy]'"
        ) from None
    return RDPAccountant()


Releases = dict[str, dict[str, int]]
"""Rounds in which a client was asked to train, by client and task; part of a checkpoint.

A resumed run goes on from these numbers and counts one more for everybody: its clients may already have been asked to
train in the round that was cut off, and are now asked again, with other noise.
"""


class PrivacyBooks:
    """Counts the releases of a run, and says what privacy they have cost.

    Parameters
    ----------
    options : PrivacySettings
        σ and δ. Without noise nothing is counted.

    Raises
    ------
    SettingsError
        Privacy is on, and Opacus is not installed.
    """

    def __init__(self, options: PrivacySettings) -> None:
        self.options = options
        if options.noise_multiplier > 0:
            _accountant()

    def count(self, releases: Releases, client: str, tasks: Iterable[str]) -> None:
        """Count one more release of these tasks, because the client is asked to train them. No effect without noise."""
        if self.options.noise_multiplier > 0:
            counts = releases.setdefault(client, {})
            for task in tasks:
                counts[task] = counts.get(task, 0) + 1

    def event(self, releases: Releases) -> Guards:
        """For the round's event: ε so far, by client and task, and what it depends on. Empty without noise."""
        if self.options.noise_multiplier == 0:
            return {}
        ordered = sorted(releases.items())
        return {
            "privacy": {
                "delta": self.options.delta,
                "noise_multiplier": self.options.noise_multiplier,
                "clip_norm": self.options.clip_norm,
                "relation": RELATION,
                "epsilon": {
                    client: {task: self._epsilon(count) for task, count in sorted(counts.items())}
                    for client, counts in ordered
                },
                # Here the neighbouring data set replaces all images of all tasks of the client.
                "epsilon_all_tasks": {client: self._epsilon(sum(counts.values())) for client, counts in ordered},
            }
        }

    def _epsilon(self, releases: int) -> float:
        return epsilon(self.options.noise_multiplier, releases, self.options.delta)
