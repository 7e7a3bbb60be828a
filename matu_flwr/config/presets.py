"""Presets: several settings under one name. There is none for a single setting: `matu.kappa=0` is as short."""

from __future__ import annotations

from matu_flwr.config.closed import Scalar

PRESETS: dict[str, dict[str, Scalar]] = {
    # Our reading of the published method. docs/method.md says which parts are published and which are our reading.
    "paper": {
        "matu.payload": "vector",
        "matu.magnitude": "max",
        "matu.reconstruction": "masked",
        "matu.agreement": "threshold-or-soft",
        "matu.epsilon": 0.5,
        "matu.epsilon-unit": "similarity",
        "matu.signs": "masked",
        "matu.relation-weight": "similarity",
        "matu.combine": "mean",
        "wire.vector-dtype": "float32",
        "wire.compression": "none",
    },
}
"""For each value of `matu.preset` the settings that it changes, by flat key."""
