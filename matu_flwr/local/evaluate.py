"""Test one task's model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from matu_flwr.backbones import Backbone, LinearHead
from matu_flwr.local.images import ImageSet, normalise

BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """Counts over some test images: shares of one test set add up.

    Attributes
    ----------
    correct : int
        Images whose label got the largest logit.
    examples : int
        Images tested.
    loss : float
        Mean cross-entropy.
    """

    correct: int
    examples: int
    loss: float


@torch.inference_mode()
def evaluate(backbone: Backbone, task_vector: Tensor | None, head: LinearHead, data: ImageSet) -> Evaluation:
    """Accuracy and loss of θ_p + τ with `head` on `data`; the backbone's working copy is overwritten."""
    backbone.load(task_vector)
    correct, loss = 0, 0.0
    for images, labels in data.in_order(BATCH):
        features = backbone.module(normalise(images, backbone.mean, backbone.std))
        logits = F.linear(features, head.weight, head.bias)  # (B, C)
        correct += int((logits.argmax(dim=1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return Evaluation(correct, len(data), loss / max(len(data), 1))
