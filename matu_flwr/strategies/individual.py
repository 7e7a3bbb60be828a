"""Every client alone: it fine-tunes each of its tasks on its own images and shares nothing.

The baseline that says whether federating pays. Models and heads stay in the client's own persistent state; only test
counts travel.
"""

from __future__ import annotations

from typing import ClassVar

from matu_flwr.client.rule import Alone, Rule
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.registration import Client
from matu_flwr.merging import ClientUpdate, TaskGraph, TaskVectors


class Individual(ManyTaskStrategy):
    """No vectors in either direction; see `ManyTaskStrategy` for the parameters."""

    about = "every client alone, nothing is shared"

    rule: ClassVar[type[Rule]] = Alone

    def downlink_vector(self, client: Client) -> TaskVectors | None:
        """Nothing: the client goes on from what it keeps."""
        return None

    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Nothing to merge."""
        return None
