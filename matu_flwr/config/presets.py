"""Presets: several settings under one name. What sets one key alone has none: `matu.kappa=0` says it as well."""

from __future__ import annotations

from matu_flwr.config.closed import Scalar

PRESETS: dict[str, dict[str, Scalar]] = {
    # Our reading of the published method; docs/method.md says what is published and what is read into it.
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
"""By the value of `matu.preset`: settings by flat key."""
