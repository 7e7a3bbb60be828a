"""θ_p with zero-shot heads: nobody trains, and only the counts of tests travel.

Radford et al.: Learning Transferable Visual Models From Natural Language Supervision. ICML 2021.
https://arxiv.org/abs/2103.00020

The method sets `train.heads = zero-shot`, so it needs a backbone with a text tower, or a heads file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import override

from matu_flwr.config.settings import Scalar, Settings
from matu_flwr.federation.model_info import ModelInfo
from matu_flwr.federation.registration import Client
from matu_flwr.strategies.individual import Individual


class ZeroShot(Individual):
    """A single round in which nobody is asked to train, followed by the closing test."""

    about = "θ_p with zero-shot heads, no training"
    paper = "https://arxiv.org/abs/2103.00020"
    sets: ClassVar[Mapping[str, Scalar]] = {"train.heads": "zero-shot"}

    def __init__(self, settings: Settings, model: ModelInfo, **arguments: Any) -> None:
        super().__init__(settings, model, **arguments)
        # Whatever `rounds` says: without training, more rounds would change nothing.
        self.num_rounds = 1

    @override
    def sample(self, server_round: int) -> list[Client]:
        return []
