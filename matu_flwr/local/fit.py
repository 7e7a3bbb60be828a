"""Fine-tune one task from θ_p + τ for a number of steps (method, client step 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from matu_flwr.backbones import Backbone, LinearHead
from matu_flwr.local.images import ImageSet, normalise
from matu_flwr.settings import TrainSettings


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class FitResult:
    """What fine-tuning one task gave.

    Attributes
    ----------
    task_vector : Tensor
        τ = θ − θ_p, (d,) float32.
    head : LinearHead
        The trained head.
    loss : float
        Mean cross-entropy over the steps.
    """

    task_vector: Tensor
    head: LinearHead
    loss: float


def fit(
    backbone: Backbone,
    start: Tensor | None,
    head: LinearHead,
    data: ImageSet,
    options: TrainSettings,
    *,
    seed: int,
    task: str,
) -> FitResult:
    """Fine-tune backbone and head on one task.

    Parameters
    ----------
    backbone : Backbone
        Its working copy is overwritten.
    start : Tensor, optional
        τ to start from, (d,) float32; None is θ_p itself.
    head : LinearHead
        Start of the head; not changed.
    data : ImageSet
        The client's training images of this task.
    options : TrainSettings
        Steps, batch size, optimiser and rates. The optimiser's state lives for this call only.
    seed : int
        Of the order of images: everything random here.
    task : str
        Named in the error.

    Raises
    ------
    TrainingDiverged
        The loss is not finite.
    """
    backbone.load(start)
    weight = head.weight.clone().requires_grad_()
    bias = head.bias.clone().requires_grad_()
    parameters = list(backbone.parameters().values())
    optimizer = make_optimizer(parameters, [weight, bias], options)
    total = 0.0
    for images, labels in data.shuffled(options.steps, options.batch_size, seed):
        features = backbone.module(normalise(images, backbone.mean, backbone.std))  # (B, F)
        loss = F.cross_entropy(F.linear(features, weight, bias), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if options.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(parameters, options.clip_norm)
        optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _diverged(task, f"the training loss became {value}", options)
        total += value
    trained, vector = LinearHead(weight.detach(), bias.detach()), backbone.task_vector()
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (vector, trained.weight, trained.bias)):
        raise _diverged(task, "the last training step left weights that are not finite", options)
    return FitResult(vector, trained, total / options.steps)


def _diverged(task: str, what: str, options: TrainSettings) -> TrainingDiverged:
    return TrainingDiverged(
        f"task {task!r}: {what}; lower train.lr (now {options.lr}) or set train.clip-norm (now {options.clip_norm})"
    )


def make_optimizer(
    backbone: list[torch.nn.Parameter], head: list[Tensor], options: TrainSettings
) -> torch.optim.Optimizer:
    """AdamW or SGD with one learning rate for the backbone and one for the head."""
    groups = [{"params": backbone, "lr": options.lr}, {"params": head, "lr": options.head_lr}]
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=options.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=options.weight_decay, fused=True)
