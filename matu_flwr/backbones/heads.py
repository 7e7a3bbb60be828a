"""Linear heads. They are not part of the task vector: they are averaged per task like FedAvg, or stay at the client."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearHead:
    """logits = features @ weight.T + bias.

    Attributes
    ----------
    weight : Tensor
        (C, F) float32 for C classes and F features.
    bias : Tensor
        (C,) float32.
    """

    weight: Tensor
    bias: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Both tensors by name."""
        return {"weight": self.weight, "bias": self.bias}


def zero_head(num_classes: int, num_features: int) -> LinearHead:
    """The common start of a head: zeros, so that nothing random has to travel or to be agreed on."""
    return LinearHead(torch.zeros(num_classes, num_features), torch.zeros(num_classes))
