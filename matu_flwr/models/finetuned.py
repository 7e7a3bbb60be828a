"""Loading a run's results as a model that classifies images."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from matu_flwr.backbones import Backbone, BackboneError, LinearHead, create_backbone
from matu_flwr.client.images import normalise
from matu_flwr.models import artefacts
from matu_flwr.models.pictures import as_batch

Source = Literal["task-vector", "unified"]


@dataclass(frozen=True)
class FineTuned:
    """One task's fine-tuned model.

    Attributes
    ----------
    task : str
        Name of the task.
    backbone : nn.Module
        The timm model with the task's fine-tuned weights θ_p + τ^t: (B, 3, S, S) float32 -> (B, F) float32. It is a
        copy, which the caller may change.
    head : LinearHead, optional
        None if heads stayed at the clients.
    classes : list of str
        Class names in the order of the logits.
    image_size : int
        Side S of the images that the backbone takes, in pixels.
    mean, std : tuple of float
        Mean and standard deviation per colour, with which pixels in [0, 1] are normalised.
    """

    task: str
    backbone: nn.Module
    head: LinearHead | None
    classes: list[str]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @torch.inference_mode()
    def logits(self, images: Any) -> Tensor:
        """Compute the logits of images, (B, C) float32.

        Parameters
        ----------
        images : path, PIL image, ndarray, Tensor, or a list of these
            One image or several, of any size; see `pictures.as_batch`. (B, S, S, 3) uint8 RGB is taken as it is.
            Everything else is cut and resized as the task's images were for training. Do not normalise: that is done
            here.

        Returns
        -------
        Tensor
            On the device of `backbone`.

        Raises
        ------
        ArtefactError
            The run kept the heads at the clients.
        PictureError
            The images cannot be read.
        """
        if self.head is None:
            raise artefacts.ArtefactError(
                f"task {self.task!r}: the run kept heads at the clients (train.heads = 'local'); use `.backbone` with "
                "a head of your own"
            )
        batch = as_batch(images, self.image_size)
        device = next(self.backbone.parameters()).device
        head = self.head.to(device)
        # Some models cannot compute with no image at all.
        if not len(batch):
            return torch.empty(0, len(self.classes), device=device)
        return head(self.backbone(normalise(batch.to(device), self.mean, self.std)))

    def predict(self, images: Any) -> list[str]:
        """Return the class name of each image: a list of one for one image. See `logits` for what is taken."""
        return [self.classes[i] for i in self.logits(images).argmax(dim=1).tolist()]


def load_finetuned(out_dir: str | Path, task: str, source: Source = "task-vector") -> FineTuned:
    """Load the fine-tuned model of one task.

    Parameters
    ----------
    out_dir : str or Path
        Output folder of a run.
    task : str
        One of the run's tasks.
    source : {"task-vector", "unified"}
        Where the weights come from. "task-vector" adds the task's own vector τ^t to the pre-trained weights θ_p.
        "unified" takes instead what the one unified vector τ of all tasks keeps of it, λ^t · m^t ⊙ τ with the task's
        mask m^t and rescaler λ^t (method, client step 4).

    Raises
    ------
    ArtefactError
        The run or the task does not exist.
    BackboneError
        The backbone built here differs from the one that the run started from.
    """
    backbone, head, classes = open_run(out_dir, task, source)
    # Copied, because this process shares one backbone: the next call would load other weights into it.
    return FineTuned(
        task, copy.deepcopy(backbone.module), head, classes, backbone.image_size, backbone.mean, backbone.std
    )


def open_run(out_dir: str | Path, task: str, source: Source) -> tuple[Backbone, LinearHead | None, list[str]]:
    """Return the backbone with one task's fine-tuned weights, the task's head and its class names.

    The backbone is the one that this process shares: copy it before you change it. Parameters and errors are those of
    `load_finetuned`.
    """
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
            f"the run in {folder} started from weights with fingerprint {model.fingerprint[:12]}…, but here "
            f"{model.backbone} gives {backbone.fingerprint[:12]}…: use the same weights file and PyTorch release"
        )
    backbone.load(tau)
    return backbone, artefacts.read_head(folder, task), model.classes[task]
