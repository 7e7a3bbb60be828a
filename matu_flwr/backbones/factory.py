"""Backbones by name: the small CLIP-like default, any timm model; shipped, downloaded, local or random weights.

θ_p never travels: server and clients build it from the same settings and compare its fingerprint.
"""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matu_flwr import digests
from matu_flwr._torchvision import ensure_importable
from matu_flwr.backbones import mini_clip, weights
from matu_flwr.backbones.errors import BackboneError, first_line
from matu_flwr.backbones.trainable import Linearised, Trainable, add_lora, freeze_but_last_blocks
from matu_flwr.config import paths
from matu_flwr.config.settings import Settings
from matu_flwr.vectors import ParameterLayout

PRETRAINED, RANDOM = "pretrained", "random"


@dataclass(frozen=True)
class Backbone:
    """One pre-trained model θ_p and the working copy that is fine-tuned.

    Attributes
    ----------
    name : str
        As given.
    tower : nn.Module
        The image tower, a timm model; with LoRA, PEFT's wrapper of one.
    module : nn.Module
        (B, 3, S, S) float32 -> (B, F) float32: the tower, or its linearisation. One instance serves all tasks of a
        process in turn: `load` it first.
    trainable : dict of str to nn.Parameter
        What the task vector covers, in the order of the layout; everything else is frozen.
    layout : ParameterLayout
        Of the trainable parameters.
    theta_p : Tensor
        (d,) float32, the common start of the trainable parameters, on the backbone's device.
    fingerprint : str
        SHA-256 of layout, θ_p and every frozen parameter.
    total : int
        Parameters of the tower, frozen ones included.
    image_size : int
        Pixels.
    num_features : int
        F; of a CLIP tower the length of its embedding.
    clip : bool
        The tower ends in CLIP's projection: its features can be compared with text embeddings.
    mean, std : tuple of float
        Per channel of pixels in [0, 1].
    """

    name: str
    tower: nn.Module
    module: nn.Module
    trainable: dict[str, nn.Parameter]
    layout: ParameterLayout
    theta_p: Tensor
    fingerprint: str
    total: int
    image_size: int
    num_features: int
    clip: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def d(self) -> int:
        """Number of trainable parameters: the length of a task vector."""
        return self.layout.d

    @property
    def device(self) -> torch.device:
        """Where model and θ_p lie."""
        return self.theta_p.device

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name, in the order of the layout."""
        return self.trainable

    def load(self, task_vector: Tensor | None) -> None:
        """Put the working copy at θ_p + τ; None is τ = 0."""
        theta = self.theta_p if task_vector is None else self.theta_p + task_vector.to(self.device)
        self.layout.write(theta, self.trainable)

    def task_vector(self) -> Tensor:
        """τ = θ − θ_p of the working copy, a new (d,) float32 vector where the model is."""
        return self.layout.flatten(self.trainable).sub_(self.theta_p)

    def parts(self) -> dict[str, int]:
        """Trainable parameters by part of the model, in the order of the layout: its top level, and each block."""
        found: dict[str, int] = {}
        for name, where in self.layout.slices.items():
            path = name.removeprefix("base_model.model.").split(".")
            part = ".".join(path[:2]) if path[0] in ("blocks", "stages", "layers") else path[0]
            found[part] = found.get(part, 0) + where.stop - where.start
        return found


def backbone_arguments(settings: Settings) -> dict[str, Any]:
    """Arguments of `create_backbone` for a run, without the device. Random weights are drawn from the run's seed."""
    return {**settings.backbone.model_dump(exclude={"heads_file"}), "seed": settings.seed}


@functools.lru_cache(maxsize=2)  # a simulation actor serves many clients with one model
def create_backbone(
    name: str,
    *,
    weights: str = PRETRAINED,
    image_size: int = 0,
    seed: int = 0,
    device: str = "cpu",
    trainable: Trainable = "full",
    last_blocks: int = 1,
    linearised: bool = False,
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    lora_targets: str = "qkv,attn.proj,fc1,fc2",
) -> Backbone:
    """Build a backbone; the same arguments give the same θ_p.

    Parameters
    ----------
    name : str
        The small default (`mini_clip.NAME`) or any model of timm, with the tag of its weights where it has several:
        "vit_base_patch32_clip_224.openai".
    weights : str
        "pretrained": those that ship with the package; a file named after the model in `paths.weights_dir()`; else
        timm's download. "random": initialised from `seed`. Otherwise a local safetensors or torch file in timm's,
        OpenAI's or open_clip's layout; a classifier in it is dropped and its position embedding resized.
    image_size : int
        Pixels; the model is built for it. 0 is the model's own.
    seed : int
        Of a random initialisation and of LoRA's A.
    device : str
        Where the model and θ_p lie.
    trainable : {"full", "lora", "blocks"}
        What the task vector covers.
    last_blocks : int
        K of "blocks".
    linearised : bool
        Train the linearisation at θ_p.
    lora_rank, lora_alpha, lora_targets
        See `add_lora`.

    Raises
    ------
    BackboneError
        Unknown name (with the nearest match), missing file, keys that do not fit, a download that failed (with the
        file to place and where), options that the model cannot have, or a model with batch-norm statistics, which a
        task vector does not carry.

    Notes
    -----
    A random initialisation is the same on machines whose PyTorch computes the same; where it does not, fingerprints
    differ and the server refuses the client rather than mixing two θ_p.
    """
    ensure_importable()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower, config, clip = _build(name, weights, image_size)
        if any("running_" in key for key, _ in tower.named_buffers()):
            raise BackboneError(
                f"backbone {name!r} has batch-norm running statistics, which are not parameters and would stay behind; "
                "choose a model with layer or group norm, such as a vision transformer"
            )
        # timm gives CLIP's projection a bias that the published towers do not have
        bias = dict(tower.named_parameters()).get(f"{config['classifier']}.bias") if clip else None
        if trainable == "blocks":
            freeze_but_last_blocks(tower, last_blocks, name)
        elif trainable == "lora":
            tower = add_lora(tower, rank=lora_rank, alpha=lora_alpha, targets=lora_targets, seed=seed)
        if bias is not None:
            bias.requires_grad_(False)
    side = image_size or own_image_size(config)
    num_features = _output_width(tower.eval(), side, name)
    tower.to(device)  # in evaluation mode: no dropout or drop path: a client step is a function of its seed alone
    parameters = {key: p for key, p in tower.named_parameters() if p.requires_grad}
    layout = ParameterLayout.of(parameters)
    theta_p = layout.flatten(parameters)
    return Backbone(
        name=name,
        tower=tower,
        module=Linearised(tower) if linearised else tower,
        trainable=parameters,
        layout=layout,
        theta_p=theta_p,
        fingerprint=_fingerprint(tower, layout, theta_p),
        total=sum(p.numel() for p in tower.parameters()),
        image_size=side,
        num_features=num_features,
        clip=clip,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


@torch.inference_mode()
def _output_width(tower: nn.Module, side: int, name: str) -> int:
    """Number of features F that a tower gives, seen by one image: timm's attributes do not say it for all models."""
    try:
        features: Tensor = tower(torch.zeros(1, 3, side, side))
    except Exception as error:  # a model that does not take images of this size raises whatever it stumbles over
        raise BackboneError(f"backbone {name!r} does not take images of {side} pixels: {first_line(error)}") from error
    if features.dim() != 2:
        raise BackboneError(f"backbone {name!r} gives {tuple(features.shape)} for an image, expected (1, F)")
    return features.shape[1]


def _fingerprint(tower: nn.Module, layout: ParameterLayout, theta_p: Tensor) -> str:
    """Tell one θ_p from another, frozen parameters included."""
    fingerprint = layout.fingerprint(theta_p)
    frozen = {key: p for key, p in tower.named_parameters() if not p.requires_grad}
    if not frozen:
        return fingerprint
    rest = ParameterLayout.of(frozen)
    return digests.of_bytes(f"{fingerprint} {rest.fingerprint(rest.flatten(frozen))}".encode())


def own_image_size(config: dict[str, Any]) -> int:
    """Side in pixels of the images that a model was trained on."""
    return int(config["input_size"][-1])


def _build(name: str, source: str, image_size: int) -> tuple[nn.Module, dict[str, Any], bool]:
    """The image tower with its weights, timm's description of it, and whether it ends in CLIP's projection."""
    import timm

    mini_clip.register()
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise BackboneError(
            f"unknown backbone {name!r}; {hint}the default is {mini_clip.NAME!r}, others are in timm.list_models()"
        )
    config = _config(name)
    clip = is_clip_tower(config)
    size = image_size or own_image_size(config)
    arguments: dict[str, Any] = {"num_classes": config["num_classes"] if clip else 0}
    shipped = name == mini_clip.NAME and source == PRETRAINED
    folder = paths.weights_dir()
    file = (
        mini_clip.weights_path()
        if shipped
        else weights.place_for(_full_name(name, config), folder)
        if source == PRETRAINED
        else None
    )
    download = source == PRETRAINED and file is None
    try:
        module = timm_model(name, size, pretrained=download, **arguments)
    except Exception as error:  # timm and the hub raise many kinds; each means that this model cannot be had
        if download:
            raise BackboneError(weights.missing_download(_full_name(name, config), config, folder, error)) from error
        raise BackboneError(f"backbone {name!r} cannot be built for {size} pixels: {error}") from error
    if shipped:
        mini_clip.load_vision(module)
    elif not download and source != RANDOM:
        drop = config["classifier"]
        layers = () if clip else (drop,) if isinstance(drop, str) else tuple(drop or ())
        weights.load_file(module, file or Path(source), name, drop=layers)
    return module, config, clip


def timm_model(name: str, image_size: int, **arguments: Any) -> nn.Module:
    """Timm's model for images of `image_size` pixels."""
    import timm

    try:
        model: nn.Module = timm.create_model(name, img_size=image_size, **arguments)
    except TypeError:  # convolutional networks take images of any size and no such argument
        model = timm.create_model(name, **arguments)
    return model


def _config(name: str) -> dict[str, Any]:
    """Timm's description of a model: classifier, mean, std, input size, and where its weights are published."""
    from timm.models import get_pretrained_cfg

    try:
        found = get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        tags = timm_names(name.split(".")[0])
        raise BackboneError(
            f"backbone {name!r}: {error}; timm has {', '.join(tags) or 'no weights of this model'}"
        ) from None
    config: dict[str, Any] = found.to_dict() if found else {}  # type: ignore[no-untyped-call]
    return config


def timm_names(architecture: str) -> list[str]:
    """Names with tags of all published weights of an architecture."""
    import timm

    found: list[str] = timm.list_pretrained(f"{architecture}.*")
    return found


def _full_name(name: str, config: dict[str, Any]) -> str:
    tag = config.get("tag")
    return name if "." in name or not tag else f"{name}.{tag}"


def is_clip_tower(config: dict[str, Any]) -> bool:
    """Whether the last layer is CLIP's projection, a part of the tower, and no classifier of a fine-tuned model."""
    name = f"{config['architecture']}.{config.get('tag') or ''}"
    return "clip" in name and config["num_classes"] > 0 and "_ft_" not in name
