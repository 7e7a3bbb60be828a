"""θ_p with zero-shot heads: no training, nothing travels but test counts.

Radford et al.: Learning Transferable Visual Models From Natural Language Supervision. ICML 2021.
https://arxiv.org/abs/2103.00020

The method sets `train.heads = zero-shot`, so it needs a backbone with a text tower, or a heads file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from matu_flwr.config.settings import Scalar, Settings
from matu_flwr.federation.model_info import ModelInfo
from matu_flwr.federation.registration import Client
from matu_flwr.strategies.individual import Individual


class ZeroShot(Individual):
    """One round in which nobody is asked to train, and the closing test."""

    about = "θ_p with zero-shot heads, no training"
    paper = "https://arxiv.org/abs/2103.00020"
    sets: ClassVar[Mapping[str, Scalar]] = {"train.heads": "zero-shot"}

    def __init__(self, settings: Settings, model: ModelInfo, **arguments: Any) -> None:
        super().__init__(settings, model, **arguments)
        self.num_rounds = 1  # whatever `rounds` says: more would change nothing

    def sample(self, server_round: int) -> list[Client]:
        """Nobody trains."""
        return []
