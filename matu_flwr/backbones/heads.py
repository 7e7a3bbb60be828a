"""Heads. They are not part of the task vector.

A linear head is trained; it is averaged per task like FedAvg, or stays at the client. A zero-shot head comes from the
class names and is frozen: every node builds the same one, so it never travels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LinearHead:
    """logits = features @ weight.T + bias; of a zero-shot head, the features are brought to length 1 before.

    Attributes
    ----------
    weight : Tensor
        (C, F) float32 for C classes and F features.
    bias : Tensor
        (C,) float32.
    zero_shot : bool
        Rows are text embeddings times the logit scale; frozen.
    """

    weight: Tensor
    bias: Tensor
    zero_shot: bool = False

    def __call__(self, features: Tensor) -> Tensor:
        """(B, F) -> logits (B, C)."""
        return F.linear(F.normalize(features, dim=-1) if self.zero_shot else features, self.weight, self.bias)

    def tensors(self) -> dict[str, Tensor]:
        """Both tensors by name."""
        return {"weight": self.weight, "bias": self.bias}

    def to(self, device: torch.device) -> LinearHead:
        """The same head on a device."""
        return LinearHead(self.weight.to(device), self.bias.to(device), self.zero_shot)


def zero_head(num_classes: int, num_features: int) -> LinearHead:
    """The common start of a linear head: zeros, so that nothing random has to travel or to be agreed on."""
    return LinearHead(torch.zeros(num_classes, num_features), torch.zeros(num_classes))
