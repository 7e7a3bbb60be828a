"""Test one task's model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from matu_flwr.backbones import Backbone, LinearHead
from matu_flwr.client.images import ImageSet, normalise, to_device
from matu_flwr.texts import Brief


class UnusableModel(Brief, RuntimeError):
    """A model gave no finite loss on test images, so that its accuracy means nothing."""


BATCH = 256
"""Images that are tested at a time."""


@dataclass(frozen=True)
class Evaluation:
    """Result of a test on some images. The counts of several shares of one test set can be added up.

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
def evaluate(
    backbone: Backbone,
    task_vector: Tensor | None,
    head: LinearHead,
    data: ImageSet,
    precision: Literal["float32", "bfloat16"] = "float32",
    *,
    task: str = "",
) -> Evaluation:
    """Test the model θ_p + τ with `head` on some images.

    Parameters
    ----------
    backbone : Backbone
        Its working copy is overwritten.
    task_vector : Tensor, optional
        τ, (d,) float32; None is θ_p itself.
    head : LinearHead
        The head of the task.
    data : ImageSet
        The test images.
    precision : {"float32", "bfloat16"}
        Of the backbone; the head always computes in float32.
    task : str
        Its name, for the text of the error.

    Raises
    ------
    UnusableModel
        The loss is not finite.
    """
    backbone.load(task_vector)
    head = head.to(backbone.device)
    # Added up on the device: reading a number from a GPU would wait for it after every batch.
    correct = torch.zeros((), dtype=torch.int64, device=backbone.device)
    loss = torch.zeros((), dtype=torch.float64, device=backbone.device)
    half = torch.autocast(backbone.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    for cpu_images, cpu_labels in data.in_order(BATCH):
        images, labels = to_device(cpu_images, backbone.device), to_device(cpu_labels, backbone.device)
        with half:
            features = backbone.module(normalise(images, backbone.mean, backbone.std))
        logits = head(features.float())  # (B, C)
        correct += (logits.argmax(dim=1) == labels).sum()
        loss += F.cross_entropy(logits, labels, reduction="sum")
    mean = float(loss) / max(len(data), 1)
    if not math.isfinite(mean):
        raise UnusableModel(
            f"task {task!r}: the loss of the model on {len(data)} test images is {mean}, so its accuracy would mean "
            "nothing. Testing changes no model: see in the history of the run in which round the task was spoilt, and "
            "resume from a checkpoint before that"
        )
    return Evaluation(int(correct), len(data), mean)
