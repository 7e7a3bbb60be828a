"""Fine-tune from θ_p + τ: one task by itself (method, client step 1), or several tasks with one shared backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from matu_flwr.backbones import Backbone, LinearHead
from matu_flwr.client.images import ImageSet, normalise, to_host
from matu_flwr.config.sections import TrainSettings
from matu_flwr.texts import Brief


class TrainingDiverged(Brief, RuntimeError):
    """The loss became NaN or infinite. The text says whether it was the training, or what training started from."""


@dataclass(frozen=True)
class FitResult:
    """The result of fine-tuning one task.

    Attributes
    ----------
    task_vector : Tensor
        τ = θ − θ_p, (d,) float32, on the CPU.
    head : LinearHead
        The trained head. A zero-shot head comes back unchanged.
    loss : float
        Mean cross-entropy over the steps.
    """

    task_vector: Tensor
    head: LinearHead
    loss: float


@dataclass(frozen=True)
class TaskShare:
    """What training needs of one task at a client: the head to start from, its images, the seed of their order."""

    head: LinearHead
    data: ImageSet
    seed: int


@dataclass(frozen=True)
class Span:
    """Where the steps of one call lie in the whole run: `done` steps came before them, of `total` steps in all."""

    done: int
    total: int


@dataclass(frozen=True)
class Proximal:
    """A pull of the backbone θ towards a centre θ_c: μ/2 ‖θ − θ_c‖² is added to the loss.

    Attributes
    ----------
    strength : float
        μ ≥ 0.
    center : Tensor, optional
        The centre as τ_c = θ_c − θ_p, (d,) float32. None: the centre is θ_p.
    """

    strength: float
    center: Tensor | None


Update = Literal["both", "backbone", "heads"]
"""Which part of a model training changes."""


def fit(
    backbone: Backbone,
    start: Tensor | None,
    head: LinearHead,
    data: ImageSet,
    options: TrainSettings,
    *,
    seed: int,
    task: str,
    span: Span | None = None,
) -> FitResult:
    """Fine-tune backbone and head on one task.

    Parameters
    ----------
    backbone : Backbone
        Its working copy is overwritten.
    start : Tensor, optional
        τ to start from, (d,) float32; None is θ_p itself.
    head : LinearHead
        The head to start from; the object itself is not changed. A zero-shot head stays frozen.
    data : ImageSet
        The client's training images of this task.
    options : TrainSettings
        Steps, batch size, optimiser and rates. The optimiser's state lives for this call only.
    seed : int
        Seed of the order of images. Nothing else here is random.
    task : str
        Its name, for the text of the error.
    span : Span, optional
        Where these steps lie in the run, for the schedule of the learning rates. By default there are no others.

    Raises
    ------
    TrainingDiverged
        The loss or the trained weights are not finite.
    """
    vector, heads, losses = fit_jointly(backbone, start, {task: TaskShare(head, data, seed)}, options, span=span)
    return FitResult(vector, heads[task], losses[task])


def fit_jointly(
    backbone: Backbone,
    start: Tensor | None,
    tasks: Mapping[str, TaskShare],
    options: TrainSettings,
    *,
    span: Span | None = None,
    update: Update = "both",
    proximal: Proximal | None = None,
) -> tuple[Tensor, dict[str, LinearHead], dict[str, float]]:
    """Fine-tune one shared backbone, and a head per task, on several tasks.

    Steps alternate over the tasks in the order given, with `options.steps` steps for each task. So every task sees as
    many images and steps as if it were trained alone, however many other tasks or images the client has.

    Parameters
    ----------
    backbone, start, options, span
        See `fit`.
    tasks : mapping of str to TaskShare
        By task, the head, the images and the seed of their order.
    update : {"both", "backbone", "heads"}
        The part that the steps change. The other one stays as it was.
    proximal : Proximal, optional
        A pull of the backbone towards a centre. Clipping bounds the gradient with the pull included.

    Returns
    -------
    task_vector : Tensor
        τ = θ − θ_p of the shared backbone, (d,) float32, on the CPU.
    heads : dict of str to LinearHead
        Trained heads by task.
    losses : dict of str to float
        Mean cross-entropy over each task's own steps.

    Raises
    ------
    TrainingDiverged
        A loss or a trained weight is not finite. The text names the task.
    """
    device = backbone.device
    backbone.load(start)
    parameters = list(backbone.parameters().values())
    heads = {task: _copy(share.head, device) for task, share in tasks.items()}
    trained = [t for head in heads.values() if not head.zero_shot for t in (head.weight, head.bias)]
    optimizer = make_optimizer(
        parameters if update != "heads" else [], trained if update != "backbone" else [], options
    )
    pull = _Pull(backbone, proximal) if proximal is not None else None
    rates = [group["lr"] for group in optimizer.param_groups]
    span = span or Span(0, options.steps)
    batches = {
        task: share.data.shuffled(options.steps, options.batch_size, share.seed, device)
        for task, share in tasks.items()
    }
    losses: dict[str, list[Tensor]] = {task: [] for task in tasks}
    half = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16")
    for step in range(options.steps):
        factor = rate_factor(span.done + step, span.total, options)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        for task, head in heads.items():
            images, labels = next(batches[task])
            with half, torch.set_grad_enabled(update != "heads"):
                features = backbone.module(normalise(images, backbone.mean, backbone.std))
            # Heads compute in float32: bfloat16 has so few digits that two classes would often get the same logit.
            logits = head(features.float())  # (B, F) -> (B, C)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if pull is not None:
                # Before clipping, because the bound is for the gradient of the whole loss, the pull included.
                pull.add()
            if options.clip_norm > 0 and update != "heads":
                torch.nn.utils.clip_grad_norm_(parameters, options.clip_norm)
            optimizer.step()
            # Kept as a tensor until the end: reading a number from a GPU waits until it has finished the step.
            losses[task].append(loss.detach())
    means = {}
    for task, found in losses.items():
        values: list[float] = torch.stack(found).tolist()
        bad = next((value for value in values if not math.isfinite(value)), None)
        if bad is not None:
            raise diverged(backbone, start, tasks, task, f"the training loss became {bad}", options)
        means[task] = sum(values) / len(values)
    vector = backbone.task_vector()
    done = {task: _detached(head) for task, head in heads.items()}
    for task, head in done.items():
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (vector, head.weight, head.bias)):
            what = "the last training step left weights that are not finite"
            raise diverged(backbone, start, tasks, task, what, options)
    return to_host(vector), done, means


class _Pull:
    """Adds μ(θ − θ_c) to the gradients of a backbone's parameters."""

    def __init__(self, backbone: Backbone, proximal: Proximal) -> None:
        center = backbone.theta_p if proximal.center is None else backbone.theta_p + proximal.center.to(backbone.device)
        self.strength = proximal.strength
        self.pairs = [
            (parameter, center[backbone.layout.slices[name]].view(parameter.shape))
            for name, parameter in backbone.parameters().items()
        ]

    @torch.no_grad()
    def add(self) -> None:
        for parameter, center in self.pairs:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(parameter - center, alpha=self.strength)


def rate_factor(step: int, total: int, options: TrainSettings) -> float:
    """The factor on the learning rates at `step`, counted from 0, of `total` steps; from 0 to 1.

    It rises linearly over the first `warmup` share of the steps. After that it is constant, or follows a cosine that
    would reach 0 one step after the last.
    """
    rising = options.warmup * total
    if step < rising:
        return min(1.0, (step + 1) / rising)
    if options.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(total - rising, 1)))


def _copy(head: LinearHead, device: torch.device) -> LinearHead:
    """The head on the device: a copy with gradients to train, or the frozen head itself."""
    if head.zero_shot:
        return head.to(device)
    weight, bias = (tensor.detach().clone().to(device).requires_grad_() for tensor in (head.weight, head.bias))
    return LinearHead(weight, bias)


def _detached(head: LinearHead) -> LinearHead:
    return LinearHead(head.weight.detach().cpu(), head.bias.detach().cpu(), head.zero_shot)


# A mean loss in nats from which a start counts as spoilt: right classes get a probability of 2e-9. Guessing gives ln C.
HOPELESS = 20.0


def diverged(
    backbone: Backbone,
    start: Tensor | None,
    tasks: Mapping[str, TaskShare],
    task: str,
    what: str,
    options: TrainSettings,
) -> TrainingDiverged:
    """Make the error of a training that failed, and find out whether what it started from was spoilt already.

    Parameters
    ----------
    backbone, start, tasks, options
        See `fit_jointly`. One spoilt head spoils the backbone, and with it the other tasks, so all are looked at.
    task : str
        The task at which it was seen.
    what : str
        What was seen.
    """
    for name, share in tasks.items():
        loss = first_loss(backbone, start, share, options)
        if not loss <= HOPELESS:  # NaN is not
            return TrainingDiverged(
                f"task {name!r}: the loss was {loss:.4g} before the first step: what the client started from, sent by "
                "the server or kept from an earlier round, gives no usable model. Nothing that it did in this round is "
                "the cause: see in the history of the run in which round the task was spoilt, and resume from a "
                f"checkpoint before that. (Then, at task {task!r}, {what}.)"
            )
    return TrainingDiverged(
        f"task {task!r}: {what}; lower train.lr (now {options.lr}) or set train.clip-norm (now {options.clip_norm})"
    )


@torch.no_grad()
def first_loss(backbone: Backbone, start: Tensor | None, share: TaskShare, options: TrainSettings) -> float:
    """Mean cross-entropy of the first batch, before any step."""
    backbone.load(start)
    images, labels = next(iter(share.data.shuffled(1, options.batch_size, share.seed, backbone.device)))
    features = backbone.module(normalise(images, backbone.mean, backbone.std))
    return float(F.cross_entropy(share.head.to(backbone.device)(features.float()), labels))


def make_optimizer(
    backbone: list[torch.nn.Parameter], heads: list[Tensor], options: TrainSettings
) -> torch.optim.Optimizer:
    """AdamW with one learning rate for the backbone and one for trained heads."""
    groups = [{"params": backbone, "lr": options.lr}] if backbone else []
    groups += [{"params": heads, "lr": options.head_lr}] if heads else []
    return torch.optim.AdamW(groups, weight_decay=options.weight_decay, fused=True)
