"""What a strategy has to know of the backbone. It needs no model: the server merges vectors of length d."""

from __future__ import annotations

from typing import Protocol

from matu_flwr.vectors import ParameterLayout


class ModelInfo(Protocol):
    """`matu_flwr.backbones.Backbone` is one; a test may have its own."""

    @property
    def d(self) -> int:
        """Length of a task vector."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of θ_p and its layout: tells whether two nodes start from the same parameters."""

    @property
    def num_features(self) -> int:
        """Width of what a head reads."""

    @property
    def layout(self) -> ParameterLayout:
        """Where each named tensor lies in a task vector."""
