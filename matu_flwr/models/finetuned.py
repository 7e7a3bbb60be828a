"""From a run's artefacts back to a model that classifies images."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from matu_flwr.backbones import Backbone, BackboneError, LinearHead, create_backbone
from matu_flwr.client.images import normalise
from matu_flwr.models import artefacts

Source = Literal["task-vector", "unified"]


@dataclass(frozen=True)
class FineTuned:
    """One task's fine-tuned model.

    Attributes
    ----------
    backbone : nn.Module
        timm model at θ_p + τ^t, (B, 3, S, S) float32 -> (B, F) float32; the caller's own copy.
    head : LinearHead, optional
        None if heads stayed at the clients.
    classes : list of str
        Names in the order of the logits.
    """

    task: str
    backbone: nn.Module
    head: LinearHead | None
    classes: list[str]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 RGB -> (B, C) float32."""
        if self.head is None:
            raise artefacts.ArtefactError(
                f"task {self.task!r}: the run kept heads at the clients (train.heads = 'local'); use `.backbone` with "
                "a head of your own"
            )
        features = self.backbone(normalise(images, self.mean, self.std))
        return self.head(features)

    def predict(self, images: Tensor) -> list[str]:
        """Class name of each image; (B, S, S, 3) uint8 RGB."""
        return [self.classes[i] for i in self.logits(images).argmax(dim=1).tolist()]


def load_finetuned(out_dir: str | Path, task: str, source: Source = "task-vector") -> FineTuned:
    """Give the fine-tuned model of one task back.

    Parameters
    ----------
    out_dir : str or Path
        Output folder of a run.
    task : str
        One of the run's tasks.
    source : {"task-vector", "unified"}
        θ_p + τ^t, or θ_p + λ^t · m^t ⊙ τ from the one unified vector of all tasks: what the compression keeps.

    Raises
    ------
    ArtefactError
        No such run or task.
    BackboneError
        The backbone built here is not the one the run started from.
    """
    backbone, head, classes = open_run(out_dir, task, source)
    return FineTuned(
        task, copy.deepcopy(backbone.module), head, classes, backbone.image_size, backbone.mean, backbone.std
    )


def open_run(out_dir: str | Path, task: str, source: Source) -> tuple[Backbone, LinearHead | None, list[str]]:
    """The process's backbone at one task's fine-tuned weights, its head and its class names; see `load_finetuned`."""
    folder = Path(out_dir)
    if source not in get_args(Source):
        raise ValueError(f"source = {source!r}: expected one of {list(get_args(Source))}")
    model = artefacts.read_model(folder)
    if task not in model.classes:
        raise artefacts.ArtefactError(
            f"the run in {folder} has no task {task!r}; its tasks are {sorted(model.classes)}"
        )
    if source == "unified":
        tau = artefacts.read_unified(folder).reconstruct(task)
    else:
        tau = artefacts.read_task_vector(folder, task)
    backbone = create_backbone(**model.backbone)
    if backbone.fingerprint != model.fingerprint:
        raise BackboneError(
            f"the run in {folder} started from θ_p {model.fingerprint[:12]}…, here {model.backbone} gives "
            f"{backbone.fingerprint[:12]}…: use the same weights file and PyTorch release"
        )
    backbone.load(tau)
    return backbone, artefacts.read_head(folder, task), model.classes[task]
