"""What a strategy has to know about the backbone. It needs no model, since the server only merges vectors."""

from __future__ import annotations

from typing import Protocol

from matu_flwr.vectors import ParameterLayout


class ModelInfo(Protocol):
    """What the server has to know about the backbone. `matu_flwr.backbones.Backbone` has all of it."""

    @property
    def d(self) -> int:
        """Length of a task vector."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of θ_p and its layout, in hexadecimal. Nodes with equal ones start from the same parameters."""

    @property
    def num_features(self) -> int:
        """F, the number of features that a head reads."""

    @property
    def layout(self) -> ParameterLayout:
        """Position of each named tensor in a task vector."""
