"""The tensors of a run as safetensors files: task vectors, heads, and the unified vector with its masks and rescalers.

`task_vectors.safetensors`    <task>/task_vector (d,) float32, <task>/head/weight (C, F), <task>/head/bias (C,)
`unified.safetensors`         vector (d,) float32, <task>/mask (ceil(d / 8),) uint8; the rescalers are in the metadata

d is the number of trained parameters, C the number of classes of the task, and F the number of features. The metadata
of both files names the backbone, its fingerprint and the classes, so that each file can be used without the other.
`matu_flwr.load_finetuned` builds a task's model from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from matu_flwr import files
from matu_flwr.backbones import LinearHead
from matu_flwr.config.closed import SettingsError, kebab
from matu_flwr.config.removed import without_removed
from matu_flwr.merging import PackedMasks, UnifiedTaskVector, unify
from matu_flwr.merging.masks import bits_of
from matu_flwr.texts import Brief, short

TASK_VECTORS = "task_vectors.safetensors"
UNIFIED = "unified.safetensors"


class ArtefactError(Brief, ValueError):
    """A run folder does not have the file or the task that was asked for, or an export has no place to go."""


@dataclass(frozen=True)
class Model:
    """What is needed to use the tensors of a run.

    Attributes
    ----------
    backbone : dict
        Arguments of `create_backbone`.
    fingerprint : str
        Fingerprint of the pre-trained weights θ_p; see `ParameterLayout.fingerprint`.
    classes : dict of str to list of str
        Class names in the order of the logits, by task.
    zero_shot : bool
        Whether the heads are frozen ones, made of class names by CLIP's text tower.
    """

    backbone: dict[str, Any]
    fingerprint: str
    classes: dict[str, list[str]]
    zero_shot: bool = False


def write_tensors(
    out_dir: Path, model: Model, task_vectors: Mapping[str, Tensor], heads: Mapping[str, LinearHead]
) -> dict[str, str]:
    """Write both files, each replaced in one step. Returns their paths, by artefact name."""
    # Cloned, because several tasks may share one vector, and safetensors refuses tensors that share memory.
    tensors = {f"{task}/task_vector": vector.clone() for task, vector in task_vectors.items()}
    for task, head in heads.items():
        tensors |= {f"{task}/head/{name}": tensor for name, tensor in head.tensors().items()}
    metadata = {
        "backbone": json.dumps(model.backbone),
        "fingerprint": model.fingerprint,
        "classes": json.dumps(model.classes),
        "heads": "zero-shot" if model.zero_shot else "linear",
    }
    unified = unify(task_vectors)
    packed = {"vector": unified.vector} | {f"{task}/mask": bits_of(unified.masks, task) for task in unified.tasks}
    modulators = {name: json.dumps(dict(getattr(unified, name))) for name in ("rescalers", "opposites")}
    files.write_tensors(out_dir / TASK_VECTORS, tensors, metadata)
    files.write_tensors(out_dir / UNIFIED, packed, metadata | modulators)
    return {"task vectors": str(out_dir / TASK_VECTORS), "unified vector": str(out_dir / UNIFIED)}


def read_model(out_dir: Path) -> Model:
    """Read the backbone, its fingerprint and the classes of a run.

    Raises
    ------
    ArtefactError
        The file is missing or broken, or the run trained what this release cannot train.
    """
    path = out_dir / TASK_VECTORS
    metadata = _metadata(path)
    backbone, classes = (_mapping(path, name, metadata[name]) for name in ("backbone", "classes"))
    # Under the keys of the settings, because those tell what earlier releases wrote.
    written = {f"backbone.{kebab(name)}": value for name, value in backbone.items()}
    try:
        known = without_removed(written)
    except SettingsError as error:
        raise ArtefactError(f"the run in {out_dir} cannot be loaded: {error}") from None
    backbone = {key.removeprefix("backbone.").replace("-", "_"): value for key, value in known.items()}
    return Model(backbone, metadata["fingerprint"], classes, _zero_shot(metadata))


def read_task_vector(out_dir: Path, task: str) -> Tensor:
    """Read the task vector τ^t of a task, (d,) float32; ArtefactError if the run has no such task."""
    return _tensor(out_dir / TASK_VECTORS, f"{task}/task_vector", task)


def read_head(out_dir: Path, task: str) -> LinearHead | None:
    """Read the head of a task, which is an average or a frozen one; None if heads stayed at the clients."""
    path = out_dir / TASK_VECTORS
    if f"{task}/head/weight" not in _names(path):
        return None
    tensors = {part: _tensor(path, f"{task}/head/{part}", task) for part in ("weight", "bias")}
    return LinearHead(**tensors, zero_shot=_zero_shot(_metadata(path)))


def read_unified(out_dir: Path) -> UnifiedTaskVector:
    """Read the unified vector of all tasks, with the mask and the rescalers of each task."""
    path = out_dir / UNIFIED
    metadata = _metadata(path)
    # Files of earlier releases have no `opposites`, the rescalers of the entries outside a mask.
    rescalers, opposites = (_mapping(path, name, metadata.get(name, "{}")) for name in ("rescalers", "opposites"))
    vector = _tensor(path, "vector", "")
    masks = PackedMasks({task: _tensor(path, f"{task}/mask", task) for task in rescalers}, vector.shape[0])
    return UnifiedTaskVector(vector, masks, rescalers, opposites)


def _mapping(path: Path, name: str, text: str) -> dict[str, Any]:
    """The JSON object that a file keeps in its metadata."""
    try:
        found = json.loads(text)
    except (RecursionError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise ArtefactError(f"{path}: {name} in its metadata is {short(text)}, expected a JSON object")
    return found


def _zero_shot(metadata: Mapping[str, str]) -> bool:
    return metadata.get("heads") == "zero-shot"


def _metadata(path: Path) -> dict[str, str]:
    with _open(path) as file:
        metadata = dict(file.metadata() or {})
    if not metadata.keys() >= {"backbone", "fingerprint", "classes"}:
        raise ArtefactError(
            f"{path} does not hold the tensors of a run: its metadata names no backbone, fingerprint and classes"
        )
    return metadata


def _names(path: Path) -> set[str]:
    with _open(path) as file:
        return set(file.keys())


def _tensor(path: Path, name: str, task: str) -> Tensor:
    with _open(path) as file:
        if name not in file.keys():  # noqa: SIM118  # not a dict
            tasks = sorted({key.split("/")[0] for key in file.keys() if "/" in key})  # noqa: SIM118
            raise ArtefactError(f"{path} has no tensor {name!r} (task {task!r}); its tasks are {tasks}")
        tensor: Tensor = file.get_tensor(name)
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ArtefactError(f"{path}: tensor {name!r} has NaN or infinity: the file is damaged, or the run diverged")
    return tensor


def _open(path: Path) -> Any:
    if not path.is_file():
        raise ArtefactError(
            f"{path} does not exist: expected the output folder of a run whose method leaves task vectors on the server"
        )
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path} is not a readable safetensors file: {error}") from error
