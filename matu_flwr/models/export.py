"""Exporting a task's fine-tuned model as a timm checkpoint, or as a PEFT adapter folder if LoRA was trained.

Both can be read without this package (docs/backbones.md shows how). The small default backbone is the exception: timm
knows its architecture only after `matu_flwr.backbones.mini_clip.register()` was called.

`model.safetensors`, `config.json`            timm: `timm.create_model("local-dir:FOLDER", pretrained=True)`
`adapter_model.safetensors`, `adapter_config.json`   PEFT: `PeftModel.from_pretrained(base, FOLDER)`
`head.safetensors`                            weight (C, F) and bias (C,), if the head is not part of the model
`classes.json`                                class names in the order of the logits, kind of head, image size
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from matu_flwr.backbones import Backbone, BackboneError, LinearHead
from matu_flwr.backbones.errors import first_line
from matu_flwr.backbones.factory import timm_model
from matu_flwr.files import give_mode, new_folder, obstacle
from matu_flwr.models import artefacts
from matu_flwr.models.finetuned import Source, open_run


def export_model(out_dir: str | Path, task: str, target: str | Path, source: Source = "task-vector") -> dict[str, Path]:
    """Write the fine-tuned model of one task into a new folder.

    A linear head becomes the classifier of a timm checkpoint. If the backbone ends with CLIP's projection, projection
    and head are multiplied into one layer, which gives the same logits. A zero-shot head normalises its features, which
    a timm classifier cannot do, so it becomes a file of its own.

    Parameters
    ----------
    out_dir : str or Path
        Output folder of the run.
    task : str
        One of the run's tasks.
    target : str or Path
        Folder to write. It must not exist yet, or be empty.
    source : {"task-vector", "unified"}
        See `load_finetuned`.

    Returns
    -------
    dict of str to Path
        The files written, by what they hold: "classes", "model", "adapter", "head".

    Raises
    ------
    ArtefactError
        The run or the task does not exist, `target` is not empty or cannot be written, or the heads stayed at the
        clients.
    BackboneError
        The model is linearised, which neither library supports, or its classifier is not a single linear layer.
    """
    folder = Path(target)
    if reason := obstacle(folder):
        raise artefacts.ArtefactError(f"nothing can be written to {folder}: {reason}; name another folder")
    if folder.exists() and any(folder.iterdir()):
        raise artefacts.ArtefactError(f"{folder} is not empty: name a new folder for the export")
    backbone, head, classes = open_run(out_dir, task, source)
    # Only a linearised backbone wraps its tower in another module.
    if backbone.module is not backbone.tower:
        raise BackboneError(
            f"the run in {out_dir} trained a linearised model, which timm does not have; use load_finetuned instead"
        )
    if head is None:
        raise artefacts.ArtefactError(
            f"the run in {out_dir} left the heads at its clients: there are no logits to export for task {task!r}"
        )
    described = {
        "task": task,
        "classes": classes,
        "backbone": backbone.name,
        "image_size": backbone.image_size,
        "mean": backbone.mean,
        "std": backbone.std,
        "head": "zero-shot: logits = normalise(features) @ weight.T" if head.zero_shot else "linear",
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not there, also if two commands export to the same place at once.
        with new_folder(folder, mode=0o777) as work:
            files = {"classes": work / "classes.json"}
            if hasattr(backbone.tower, "peft_config"):
                backbone.tower.save_pretrained(str(work))  # type: ignore[operator]  # a PeftModel
                files["adapter"] = work / "adapter_model.safetensors"
            else:
                _save_timm(backbone, None if head.zero_shot else head, classes, work)
                files["model"] = work / "model.safetensors"
            if "adapter" in files or head.zero_shot:
                tensors = {name: tensor.contiguous() for name, tensor in head.tensors().items()}
                save_file(tensors, work / "head.safetensors")
                files["head"] = work / "head.safetensors"
            files["classes"].write_text(json.dumps(described, indent=1), encoding="utf-8")
            for path in work.iterdir():
                # safetensors makes its files for their owner only.
                give_mode(path)
    except OSError as error:
        raise artefacts.ArtefactError(f"{folder} cannot be written: {error}; name another folder") from error
    return {name: folder / path.name for name, path in files.items()}


def _save_timm(backbone: Backbone, head: LinearHead | None, classes: list[str], folder: Path) -> None:
    """Write a timm folder, with `head` as the classifier if there is one."""
    from timm.models import save_for_hf

    state = {key: tensor.detach().clone() for key, tensor in backbone.tower.state_dict().items()}
    # Without a head, a CLIP tower keeps its projection, which timm stores as the classifier.
    num_classes = len(head.bias) if head is not None else backbone.num_features if backbone.clip else 0
    model = timm_model(backbone.name, backbone.image_size, num_classes=num_classes)
    if head is not None:
        state |= _classifier(model, state, head, backbone)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise BackboneError(
            f"backbone {backbone.name!r} with {num_classes} classes has a special classifier, in which a linear "
            f"head has no place ({first_line(error)}); use load_finetuned instead"
        ) from error
    save_for_hf(model, str(folder), {"label_names": classes} if head else None, safe_serialization=True)


def _classifier(model: nn.Module, state: dict[str, Tensor], head: LinearHead, backbone: Backbone) -> dict[str, Tensor]:
    """Return the weight and the bias of timm's classifier layer, by the names of its parameters."""
    config: Any = model.pretrained_cfg
    layer = config["classifier"]
    weight, bias = head.weight, head.bias
    if backbone.clip:
        # Head and projection are one linear layer: W (P f + p) + b = (W P) f + (W p + b).
        bias = bias + head.weight @ state.get(f"{layer}.bias", torch.zeros(backbone.num_features))
        weight = head.weight @ state[f"{layer}.weight"]
    return {f"{layer}.weight": weight, f"{layer}.bias": bias}
