"""Zero-shot heads: class names and prompt templates, through the text tower that belongs to the backbone.

The head of a class is the normalised mean of the normalised embeddings of its prompts, times exp(logit scale)
(Radford et al., 2021). It is frozen. Every node builds the heads of its own tasks, or reads them from one file made
by `matu heads`; a digest of where a head comes from is announced, so that holders of one task cannot disagree in
silence.
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
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from matu_flwr import digests
from matu_flwr.backbones import mini_clip
from matu_flwr.backbones.errors import BackboneError, first_line
from matu_flwr.backbones.factory import Backbone
from matu_flwr.backbones.heads import LinearHead
from matu_flwr.backbones.weights import tensor_digest
from matu_flwr.files import replacing

# timm's name of a CLIP tower -> open_clip's name of the whole model
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
BATCH = 256  # prompts at once


class TextTower(Protocol):
    """What turns prompts into embeddings."""

    fingerprint: str
    logit_scale: float

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(N, F) float32 of length 1."""


@dataclass(frozen=True)
class Prompts:
    """Class names in the order of their labels, and templates with {} for the name."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class ZeroShotHeads:
    """Frozen heads by task, and a digest of where each comes from."""

    heads: dict[str, LinearHead]
    digests: dict[str, str]


def zero_shot_head(tower: TextTower, prompts: Prompts) -> LinearHead:
    """(C, F) head from C class names and any number of templates."""
    texts = [template.format(name) for name in prompts.classes for template in prompts.templates]
    embedded = torch.cat([tower.encode(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)])
    per_class = embedded.view(len(prompts.classes), len(prompts.templates), -1).mean(dim=1)  # (C, F)
    weight = F.normalize(per_class, dim=-1) * tower.logit_scale
    return LinearHead(weight, torch.zeros(len(prompts.classes)), zero_shot=True)


def zero_shot_heads(backbone: str, tasks: Mapping[str, Prompts], heads_file: str = "") -> ZeroShotHeads:
    """Heads of some tasks.

    Parameters
    ----------
    backbone : str
        Name of the backbone.
    tasks : mapping of str to Prompts
        Class names and templates by task.
    heads_file : str
        File written by `write_heads`; "" = through the backbone's text tower.

    Raises
    ------
    BackboneError
        The backbone has no text tower, its weights are not here, or the file does not have what is asked for.
    """
    if heads_file:
        return read_heads(Path(heads_file), backbone, tasks)
    tower = text_tower(backbone)
    return ZeroShotHeads(
        {task: _head(backbone, prompts) for task, prompts in tasks.items()},
        {task: _digest(tower.fingerprint, prompts) for task, prompts in tasks.items()},
    )


@functools.lru_cache(maxsize=1024)  # a client asks in every round; hundreds of prompts take minutes on a CPU
def _head(backbone: str, prompts: Prompts) -> LinearHead:
    return zero_shot_head(text_tower(backbone), prompts)


def check_fit(heads: ZeroShotHeads, backbone: Backbone) -> ZeroShotHeads:
    """Give the heads back if the backbone's features lie in the space of their text embeddings.

    Raises
    ------
    BackboneError
        The backbone is no CLIP tower, or embeds into another number of dimensions.
    """
    if not backbone.clip:
        raise BackboneError(
            f"backbone {backbone.name!r} does not end in CLIP's projection (a tag such as .openai names weights that "
            "do), so train.heads = zero-shot means nothing for it: choose such a tag, or trained heads"
        )
    for task, head in heads.heads.items():
        if head.weight.shape[1] != backbone.num_features:
            raise BackboneError(
                f"zero-shot head of task {task!r} has {head.weight.shape[1]} columns, expected the "
                f"{backbone.num_features} features of backbone {backbone.name!r}: write the heads file "
                "with its text tower"
            )
    return heads


def _digest(source: str, prompts: Prompts) -> str:
    return digests.of_json([source, prompts.classes, prompts.templates])[: digests.SHORT]


@functools.lru_cache(maxsize=1)
def text_tower(backbone: str, weights: str = "") -> TextTower:
    """The text tower of a backbone: the small default's own, or open_clip's for timm's CLIP towers.

    Parameters
    ----------
    backbone : str
        The small default or timm's name of a CLIP tower, with its tag.
    weights : str
        File of the whole CLIP model, as open_clip reads it; "" = the download that timm's name stands for.
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
                f"the text tower of {backbone!r} needs the package open_clip: pip install 'matu-flwr[clip]', or take a "
                "backbone.heads-file written by `matu heads` where it is installed"
            ) from None
        if weights and not Path(weights).is_file():
            raise BackboneError(f"text weights {weights} do not exist: expected a file of the whole CLIP model")
        hub, quick_gelu = _published(backbone)
        source = model if weights else f"hf-hub:{hub}"
        try:
            self.model = open_clip.create_model(source, pretrained=weights or None, force_quick_gelu=quick_gelu)
            self.tokenizer = open_clip.get_tokenizer(source)
        except Exception as error:  # open_clip and the hub raise many kinds
            where = f"file {weights} as {model}" if weights else f"open_clip_model.safetensors of {hub}"
            raise BackboneError(
                f"the text tower of {backbone!r} could not be loaded from {where} ({first_line(error)}); "
                "fetch that file where there is a network, run `matu heads --text-weights FILE` and set "
                "backbone.heads-file"
            ) from error
        del self.model.visual  # timm's tower does its work
        self.model.eval()
        self.logit_scale = float(self.model.logit_scale.detach().exp())
        activation = b"quick gelu" if quick_gelu else b"gelu"  # the same tensors mean another tower
        self.fingerprint = tensor_digest(self.model.state_dict(), activation)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        found: Tensor = self.model.encode_text(self.tokenizer(list(texts)), normalize=True)
        return found


def _published(backbone: str) -> tuple[str, bool]:
    """Where the whole model of a CLIP tower is published, and whether it was trained with OpenAI's activation."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(backbone, allow_unregistered=False)
    described: dict[str, Any] = config.to_dict() if config else {}  # type: ignore[no-untyped-call]
    # timm notes it for weights whose own name says nothing of it
    native = any("quickgelu" in str(note).lower() for note in described.get("notes") or ())
    return str(described.get("hf_hub_id") or f"timm/{backbone}"), native or "quickgelu" in backbone


# --- heads in a file -----------------------------------------------------------------------------------------------


def write_heads(path: Path, backbone: str, tasks: Mapping[str, Prompts], text_weights: str = "") -> None:
    """Write the heads of some tasks, so that nodes need no text tower: <task>/weight (C, F) float32."""
    tower = text_tower(backbone, text_weights)
    tensors = {f"{task}/weight": zero_shot_head(tower, prompts).weight for task, prompts in tasks.items()}
    described = {task: {"classes": prompts.classes, "templates": prompts.templates} for task, prompts in tasks.items()}
    metadata = {"backbone": backbone, "text": tower.fingerprint, "tasks": json.dumps(described)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_heads(path: Path, backbone: str, tasks: Mapping[str, Prompts]) -> ZeroShotHeads:
    """Read the heads of some tasks; the classes have to be those of the tasks, the templates are the file's.

    Raises
    ------
    BackboneError
        No such file, another backbone, a task that it lacks, or other classes.
    """
    if not path.is_file():
        raise BackboneError(
            f"heads file {path} does not exist: write it with `matu heads`, or clear backbone.heads-file"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            described: dict[str, Any] = json.loads(metadata["tasks"])
            found = {task: file.get_tensor(f"{task}/weight") for task in tasks if task in described}
    except (SafetensorError, KeyError, ValueError) as error:
        raise BackboneError(
            f"heads file {path} cannot be read ({error}): expected one written by `matu heads`"
        ) from error
    if metadata["backbone"] != backbone:
        raise BackboneError(f"heads file {path} is for backbone {metadata['backbone']!r}, expected {backbone!r}")
    heads, digests = {}, {}
    for task, prompts in tasks.items():
        if task not in found:
            raise BackboneError(f"heads file {path} has no task {task!r}; it has {', '.join(sorted(described))}")
        classes = tuple(described[task]["classes"])
        if classes != prompts.classes:
            raise BackboneError(
                f"heads file {path}: task {task!r} has classes {list(classes)[:5]}…, expected "
                f"{list(prompts.classes)[:5]}…"
            )
        heads[task] = LinearHead(found[task], torch.zeros(len(classes)), zero_shot=True)
        digests[task] = _digest(metadata["text"], Prompts(classes, tuple(described[task]["templates"])))
    return ZeroShotHeads(heads, digests)
