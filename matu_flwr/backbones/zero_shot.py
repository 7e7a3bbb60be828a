"""Zero-shot heads: frozen heads made from class names with the text tower that belongs to the backbone.

Each class name is put into prompt templates ("a photo of a {}"), and the text tower turns the prompts into embeddings.
A class's row of the head is the normalised mean of its normalised embeddings, times exp(logit scale) (Radford et al.,
2021). Every node builds the heads of its own tasks, or reads them from a file made by `matu heads`. Clients announce a
digest of what a head was made from, so that the server notices if two holders of a task have different heads.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from matu_flwr import digests
from matu_flwr.backbones import mini_clip
from matu_flwr.backbones.errors import BackboneError, first_line
from matu_flwr.backbones.factory import Backbone
from matu_flwr.backbones.heads import LinearHead
from matu_flwr.backbones.weights import tensor_digest
from matu_flwr.files import write_tensors
from matu_flwr.texts import listed

# timm's name of a CLIP image tower: open_clip's name of the whole model.
OPEN_CLIP = {
    "vit_base_patch32_clip_224": "ViT-B-32",
    "vit_base_patch32_clip_256": "ViT-B-32-256",
    "vit_base_patch16_clip_224": "ViT-B-16",
    "vit_large_patch14_clip_224": "ViT-L-14",
    "vit_large_patch14_clip_336": "ViT-L-14-336",
    "vit_huge_patch14_clip_224": "ViT-H-14",
    "vit_base_patch32_clip_quickgelu_224": "ViT-B-32-quickgelu",
    "vit_base_patch16_clip_quickgelu_224": "ViT-B-16-quickgelu",
    "vit_large_patch14_clip_quickgelu_224": "ViT-L-14-quickgelu",
}
# Prompts that are encoded at once.
BATCH = 256


class TextTower(Protocol):
    """Turns texts into embeddings.

    Attributes
    ----------
    fingerprint : str
        Tells text towers with different weights apart.
    logit_scale : float
        The factor for cosines of embeddings.
    """

    fingerprint: str
    logit_scale: float

    def encode(self, texts: Sequence[str]) -> Tensor:
        """N texts to (N, F) float32, each row of length 1."""


@dataclass(frozen=True)
class Prompts:
    """The class names of a task in the order of the labels, and prompt templates with {} for the class name."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class ZeroShotHeads:
    """Frozen heads by task, and by task a digest of the text tower, class names and templates that made the head."""

    heads: dict[str, LinearHead]
    digests: dict[str, str]


def zero_shot_head(tower: TextTower, prompts: Prompts) -> LinearHead:
    """Make a head with weight (C, F) from C class names and any number of templates."""
    texts = [template.format(name) for name in prompts.classes for template in prompts.templates]
    embedded = torch.cat([tower.encode(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)])
    per_class = embedded.view(len(prompts.classes), len(prompts.templates), -1).mean(dim=1)  # (C, F)
    weight = F.normalize(per_class, dim=-1) * tower.logit_scale
    return LinearHead(weight, torch.zeros(len(prompts.classes)), zero_shot=True)


def zero_shot_heads(backbone: str, tasks: Mapping[str, Prompts], heads_file: str = "") -> ZeroShotHeads:
    """Make or read the zero-shot heads of some tasks.

    Parameters
    ----------
    backbone : str
        Name of the backbone.
    tasks : mapping of str to Prompts
        Class names and templates by task.
    heads_file : str
        A file written by `write_heads`; "" = make the heads with the backbone's text tower.

    Raises
    ------
    BackboneError
        The backbone has no text tower, the weights of the text tower are missing, or the file lacks a task.
    """
    if heads_file:
        return read_heads(Path(heads_file), backbone, tasks)
    tower = text_tower(backbone)
    return ZeroShotHeads(
        {task: _head(backbone, prompts) for task, prompts in tasks.items()},
        {task: _digest(tower.fingerprint, prompts) for task, prompts in tasks.items()},
    )


# A client asks for its heads in every round, and encoding hundreds of prompts can take minutes on a CPU.
@functools.lru_cache(maxsize=1024)
def _head(backbone: str, prompts: Prompts) -> LinearHead:
    return zero_shot_head(text_tower(backbone), prompts)


def check_fit(heads: ZeroShotHeads, backbone: Backbone) -> ZeroShotHeads:
    """Return the heads, after a check that the backbone's features can be compared with their text embeddings.

    Raises
    ------
    BackboneError
        The backbone is not a CLIP tower, or its features have another length than the embeddings.
    """
    if not backbone.clip:
        raise BackboneError(
            f"backbone {backbone.name!r} does not end in CLIP's projection, so train.heads = zero-shot cannot be used "
            "with it: choose weights that do, with a tag such as .openai, or set train.heads to average or local"
        )
    for task, head in heads.heads.items():
        if head.weight.shape[1] != backbone.num_features:
            raise BackboneError(
                f"zero-shot head of task {task!r} has {head.weight.shape[1]} columns, expected the "
                f"{backbone.num_features} features of backbone {backbone.name!r}: write the heads file again with "
                "this backbone's text tower"
            )
    return heads


def _digest(source: str, prompts: Prompts) -> str:
    return digests.of_json([source, prompts.classes, prompts.templates])[: digests.SHORT]


@functools.lru_cache(maxsize=1)
def text_tower(backbone: str, weights: str = "") -> TextTower:
    """Load the text tower of a backbone: that of the small default, or open_clip's for a CLIP tower of timm.

    Parameters
    ----------
    backbone : str
        The small default, or timm's name of a CLIP tower with its tag.
    weights : str
        A file of the whole CLIP model that open_clip can read; "" = download the published one.

    Raises
    ------
    BackboneError
        The backbone has no text tower, open_clip is not installed, or the weights are missing or cannot be read.
    """
    if backbone == mini_clip.NAME:
        return _MiniText()
    architecture = backbone.split(".")[0]
    if architecture not in OPEN_CLIP:
        raise BackboneError(
            f"backbone {backbone!r} has no text tower: train.heads = zero-shot needs {mini_clip.NAME!r}, one of "
            f"{', '.join(OPEN_CLIP)}, or backbone.heads-file"
        )
    return _OpenClipText(backbone, OPEN_CLIP[architecture], weights)


class _MiniText:
    """The small default's text tower."""

    def __init__(self) -> None:
        self.model = mini_clip.load_text_tower()
        self.fingerprint = mini_clip.text_fingerprint()
        self.logit_scale = mini_clip.logit_scale()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        return self.model.encode(texts)


class _OpenClipText:
    """The text tower of a published CLIP model, through open_clip."""

    def __init__(self, backbone: str, model: str, weights: str) -> None:
        try:
            from matu_flwr._torchvision import ensure_importable

            ensure_importable()
            import open_clip
        except ImportError:
            raise BackboneError(
                f"the text tower of {backbone!r} needs the package open_clip: pip install 'matu-flwr[clip]', or run "
                "`matu heads` on a machine that has it, and set backbone.heads-file to the file"
            ) from None
        if weights and not Path(weights).is_file():
            raise BackboneError(f"text weights {weights} do not exist: give the path of a file of the whole CLIP model")
        hub, quick_gelu = _published(backbone)
        source = model if weights else f"hf-hub:{hub}"
        try:
            self.model = open_clip.create_model(source, pretrained=weights or None, force_quick_gelu=quick_gelu)
            self.tokenizer = open_clip.get_tokenizer(source)
        # open_clip and the Hugging Face Hub raise many kinds of exceptions.
        except Exception as error:
            where = f"file {weights} as {model}" if weights else f"open_clip_model.safetensors of {hub}"
            raise BackboneError(
                f"the text tower of {backbone!r} could not be loaded from {where} ({first_line(error)}); "
                "fetch that file on a machine with a network, run `matu heads --text-weights FILE` and set "
                "backbone.heads-file to what it writes"
            ) from error
        # Images go through timm's tower, so open_clip's own image tower only takes memory.
        del self.model.visual
        self.model.eval()
        self.logit_scale = float(self.model.logit_scale.detach().exp())
        # The same weights with the other activation give other embeddings.
        activation = b"quick gelu" if quick_gelu else b"gelu"
        self.fingerprint = tensor_digest(self.model.state_dict(), activation)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        found: Tensor = self.model.encode_text(self.tokenizer(list(texts)), normalize=True)
        return found


def _published(backbone: str) -> tuple[str, bool]:
    """Name of the whole CLIP model on the Hugging Face Hub, and whether it was trained with OpenAI's "quick GELU"."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(backbone, allow_unregistered=False)
    described: dict[str, Any] = config.to_dict() if config else {}  # type: ignore[no-untyped-call]
    # The name of some weights does not mention quick GELU. For those timm has a note.
    native = any("quickgelu" in str(note).lower() for note in described.get("notes") or ())
    return str(described.get("hf_hub_id") or f"timm/{backbone}"), native or "quickgelu" in backbone


# --- heads in a file -----------------------------------------------------------------------------------------------


def write_heads(path: Path, backbone: str, tasks: Mapping[str, Prompts], text_weights: str = "") -> None:
    """Make the heads of some tasks and write them to a safetensors file, so that nodes need no text tower.

    The file has one tensor per task: <task>/weight (C, F) float32. Its metadata has the class names and templates.
    """
    tower = text_tower(backbone, text_weights)
    tensors = {f"{task}/weight": zero_shot_head(tower, prompts).weight for task, prompts in tasks.items()}
    described = {task: {"classes": prompts.classes, "templates": prompts.templates} for task, prompts in tasks.items()}
    metadata = {"backbone": backbone, "text": tower.fingerprint, "tasks": json.dumps(described)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, metadata)


def read_heads(path: Path, backbone: str, tasks: Mapping[str, Prompts]) -> ZeroShotHeads:
    """Read the heads of some tasks from a file that `write_heads` wrote.

    The class names must be those of `tasks`. The templates may differ: the file's count.

    Raises
    ------
    BackboneError
        The file does not exist or cannot be read, is for another backbone, lacks a task, or has other class names.
    """
    if not path.is_file():
        raise BackboneError(
            f"heads file {path} does not exist: write it with `matu heads`, or clear backbone.heads-file"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            text, found_backbone = metadata["text"], metadata["backbone"]
            described = {
                task: Prompts(tuple(map(str, prompts["classes"])), tuple(map(str, prompts["templates"])))
                for task, prompts in json.loads(metadata["tasks"]).items()
            }
            found = {task: file.get_tensor(f"{task}/weight") for task in tasks if task in described}
    except (AttributeError, KeyError, OSError, RecursionError, SafetensorError, TypeError, ValueError) as error:
        raise BackboneError(
            f"heads file {path} cannot be read ({error}): expected one written by `matu heads`"
        ) from error
    if found_backbone != backbone:
        raise BackboneError(
            f"heads file {path} is for backbone {found_backbone!r}, expected {backbone!r}: write one with "
            "`matu heads` for this backbone"
        )
    heads, digests = {}, {}
    for task, prompts in tasks.items():
        if task not in found:
            raise BackboneError(
                f"heads file {path} has no task {task!r}; it has {listed(sorted(described))}: write it again with "
                "`matu heads` for this suite"
            )
        classes, weight = described[task].classes, found[task]
        if classes != prompts.classes:
            raise BackboneError(
                f"heads file {path}: task {task!r} has classes {list(classes)[:5]}…, expected "
                f"{list(prompts.classes)[:5]}…: write it again with `matu heads` for this suite"
            )
        if weight.dim() != 2 or len(weight) != len(classes) or weight.dtype != torch.float32:
            raise BackboneError(
                f"heads file {path}: the head of task {task!r} is {tuple(weight.shape)} of {weight.dtype}, expected "
                f"({len(classes)}, F) of torch.float32: write it again with `matu heads`"
            )
        if not bool(torch.isfinite(weight).all()):
            raise BackboneError(
                f"heads file {path}: the head of task {task!r} has NaN or infinity: write it again with `matu heads`"
            )
        heads[task] = LinearHead(weight, torch.zeros(len(classes)), zero_shot=True)
        digests[task] = _digest(text, described[task])
    return ZeroShotHeads(heads, digests)
