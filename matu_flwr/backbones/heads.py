"""Classification heads, which turn features into class scores. They are not part of the task vector.

A linear head is trained. It is averaged over the clients that hold the task, or stays at its client. A zero-shot head
is made from the class names and is frozen. Every node builds the same one, so it is never sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LinearHead:
    """A linear layer: logits = features @ weight.T + bias.

    A zero-shot head scales each image's features to length 1 first.

    Attributes
    ----------
    weight : Tensor
        (C, F) float32 for C classes and F features.
    bias : Tensor
        (C,) float32.
    zero_shot : bool
        Whether the rows of `weight` are text embeddings times the logit scale. Such a head is frozen.
    """

    weight: Tensor
    bias: Tensor
    zero_shot: bool = False

    def __call__(self, features: Tensor) -> Tensor:
        """Features (B, F) to logits (B, C)."""
        return F.linear(F.normalize(features, dim=-1) if self.zero_shot else features, self.weight, self.bias)

    def tensors(self) -> dict[str, Tensor]:
        """`weight` and `bias` by name."""
        return {"weight": self.weight, "bias": self.bias}

    def to(self, device: torch.device) -> LinearHead:
        """Copy the head to a device."""
        return LinearHead(self.weight.to(device), self.bias.to(device), self.zero_shot)


def zero_head(num_classes: int, num_features: int) -> LinearHead:
    """The start of a linear head: weight (C, F) and bias (C,) of zeros, float32.

    All clients start from the same head without sending one or agreeing on a seed.
    """
    return LinearHead(torch.zeros(num_classes, num_features), torch.zeros(num_classes))
