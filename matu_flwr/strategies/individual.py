"""Every client works alone: it fine-tunes each of its tasks on its own images and shares nothing.

This baseline shows whether a federation is worth it. Models and heads stay in the client's own files. Only the counts
of its tests travel.
"""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from matu_flwr.client.rule import Alone, Rule
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.registration import Client
from matu_flwr.merging import ClientUpdate, TaskGraph, TaskVectors


class Individual(ManyTaskStrategy):
    """No vectors travel in either direction; see `ManyTaskStrategy` for the parameters."""

    about = "every client alone, nothing is shared"

    rule: ClassVar[type[Rule]] = Alone

    @override
    def downlink_vector(self, client: Client) -> TaskVectors | None:
        """None: a client goes on from the models that it keeps."""
        return None

    @override
    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        return None
