"""Builds a backbone by name: the small CLIP-like default, or any model of timm.

Its weights ship with the package, are downloaded by timm, come from a local file, or are random. The weights at the
start, θ_p, are never sent: server and clients build them from the same settings and compare fingerprints.
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
from matu_flwr.backbones.trainable import Linearised, Trainable, add_lora
from matu_flwr.config import paths
from matu_flwr.config.settings import Settings
from matu_flwr.vectors import ParameterLayout

PRETRAINED, RANDOM = "pretrained", "random"


@dataclass(frozen=True)
class Backbone:
    """A pre-trained model: its weights at the start, θ_p, and the one copy of the model that is fine-tuned.

    Attributes
    ----------
    name : str
        The name it was built by.
    tower : nn.Module
        The image tower, a timm model. With LoRA it is PEFT's wrapper around one.
    module : nn.Module
        (B, 3, S, S) float32 -> (B, F) float32: the tower, or its linearisation. All tasks of a process use this one
        module in turn, so call `load` before each use.
    trainable : dict of str to nn.Parameter
        The parameters that are trained and make up the task vector, in the order of `layout`. All others are frozen.
    layout : ParameterLayout
        Where each trainable parameter lies in a task vector.
    theta_p : Tensor
        (d,) float32: the trainable parameters at the start, on the backbone's device.
    fingerprint : str
        SHA-256 (hex) of the layout, θ_p and every frozen parameter.
    total : int
        Number of parameters of the tower, frozen ones included.
    image_size : int
        Side of the images in pixels, S.
    num_features : int
        F. For a CLIP tower this is the length of its embedding.
    clip : bool
        Whether the tower ends in CLIP's projection. Only then can its features be compared with text embeddings.
    mean, std : tuple of float
        Mean and standard deviation of each channel, by which pixels in [0, 1] are normalised.
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
        """The device of the model and of θ_p."""
        return self.theta_p.device

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name, in the order of the layout."""
        return self.trainable

    def load(self, task_vector: Tensor | None) -> None:
        """Set the model's trainable parameters to θ_p + τ, for a (d,) task vector τ; None means τ = 0."""
        theta = self.theta_p if task_vector is None else self.theta_p + task_vector.to(self.device)
        self.layout.write(theta, self.trainable)

    def task_vector(self) -> Tensor:
        """τ = θ − θ_p of the model as it is now: a new (d,) float32 tensor on the model's device."""
        return self.layout.flatten(self.trainable).sub_(self.theta_p)

    def parts(self) -> dict[str, int]:
        """Number of trainable parameters in each part of the model, in the order of the layout.

        A part is one module at the top level, or one block.
        """
        found: dict[str, int] = {}
        for name, where in self.layout.slices.items():
            # PEFT's wrapper puts this prefix before the names of a model with LoRA.
            path = name.removeprefix("base_model.model.").split(".")
            part = ".".join(path[:2]) if path[0] in ("blocks", "stages", "layers") else path[0]
            found[part] = found.get(part, 0) + where.stop - where.start
        return found


def backbone_arguments(settings: Settings) -> dict[str, Any]:
    """The arguments of `create_backbone` for a run, except the device. The seed is the run's."""
    return {**settings.backbone.model_dump(exclude={"heads_file"}), "seed": settings.seed}


# In a simulation one process plays many clients in turn. They share the cached model.
@functools.lru_cache(maxsize=2)
def create_backbone(
    name: str,
    *,
    weights: str = PRETRAINED,
    image_size: int = 0,
    seed: int = 0,
    device: str = "cpu",
    trainable: Trainable = "full",
    linearised: bool = False,
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    lora_targets: str = "qkv,attn.proj,fc1,fc2",
) -> Backbone:
    """Build a backbone. The same arguments give the same θ_p, and in one process the same `Backbone` object.

    Parameters
    ----------
    name : str
        The small default (`mini_clip.NAME`) or any model of timm. If timm has several weights for a model, the name
        ends in the tag of one of them: "vit_base_patch32_clip_224.openai".
    weights : str
        "pretrained": the weights in the package, else a file named after the model in `paths.weights_dir()`, else
        timm's download. "random": drawn from `seed`. Anything else is the path of a safetensors or torch file in the
        layout of timm, OpenAI or open_clip. A classifier in the file is left out, and its position embedding is
        resized to the model's.
    image_size : int
        Side in pixels of the images that the model is built for. 0 means the size that it was trained with.
    seed : int
        Seed of random weights and of LoRA's matrices A.
    device : str
        Device of the model and of θ_p.
    trainable : {"full", "lora"}
        Which parameters are trained: all, or LoRA adapters.
    linearised : bool
        Whether to train the model's linear approximation at θ_p (`Linearised`).
    lora_rank, lora_alpha, lora_targets
        See `add_lora`.

    Raises
    ------
    BackboneError
        The name is unknown (the text suggests a similar one), the weights are missing or do not fit, the download
        failed (the text says which file to put where), the model cannot have these options, or it has batch norm.

    Notes
    -----
    PyTorch draws the same random weights on most machines, but does not promise it. Where they differ, the fingerprints
    differ too, and the server refuses the client instead of mixing two different θ_p.
    """
    ensure_importable()
    # Building a model draws from PyTorch's global generator. Its state is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower, config, clip = _build(name, weights, image_size)
        if any("running_" in key for key, _ in tower.named_buffers()):
            raise BackboneError(
                f"backbone {name!r} has batch-norm running statistics, which are not trained parameters, so a task "
                "vector cannot carry them; choose a model with layer or group norm, such as a vision transformer"
            )
        # timm gives CLIP's projection a bias that the published towers do not have. It must not be trained. It is
        # looked up here because PEFT changes the names of the parameters.
        bias = dict(tower.named_parameters()).get(f"{config['classifier']}.bias") if clip else None
        if trainable == "lora":
            tower = add_lora(tower, rank=lora_rank, alpha=lora_alpha, targets=lora_targets, seed=seed)
        elif trainable != "full":
            raise BackboneError(f"trainable = {trainable!r}: expected 'full' or 'lora'")
        if bias is not None:
            bias.requires_grad_(False)
    side = image_size or own_image_size(config)
    # The tower stays in evaluation mode, also in training: without dropout and drop path, a client's step depends on
    # nothing random but its seed.
    num_features = _output_width(tower.eval(), side, name)
    tower.to(device)
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
    """Number of features F that a tower gives for an image."""
    # It is tried with one image, because timm's attributes do not tell it for all models.
    try:
        features: Tensor = tower(torch.zeros(1, 3, side, side))
    # A model that does not take images of this size can fail anywhere inside, with any exception.
    except Exception as error:
        raise BackboneError(
            f"backbone {name!r} does not take images of {side} pixels: {first_line(error)}; set backbone.image-size to "
            "a size that it takes, or to 0 for the one it was trained with"
        ) from error
    if features.dim() != 2:
        raise BackboneError(
            f"backbone {name!r} gives an array of shape {tuple(features.shape)} for an image, expected (1, F): "
            "choose an image classifier"
        )
    return features.shape[1]


def _fingerprint(tower: nn.Module, layout: ParameterLayout, theta_p: Tensor) -> str:
    """SHA-256 (hex) of the layout, θ_p and all frozen parameters."""
    fingerprint = layout.fingerprint(theta_p)
    frozen = {key: p for key, p in tower.named_parameters() if not p.requires_grad}
    if not frozen:
        return fingerprint
    rest = ParameterLayout.of(frozen)
    return digests.of_bytes(f"{fingerprint} {rest.fingerprint(rest.flatten(frozen))}".encode())


def own_image_size(config: dict[str, Any]) -> int:
    """Side in pixels of the images that a model was trained with."""
    return int(config["input_size"][-1])


def _build(name: str, source: str, image_size: int) -> tuple[nn.Module, dict[str, Any], bool]:
    """Build the image tower with its weights.

    Returns it, timm's description of it, and whether it ends in CLIP's projection.
    """
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
    file = (
        mini_clip.weights_path()
        if shipped
        else weights.place_for(_full_name(name, config), paths.weights_dir())
        if source == PRETRAINED
        else None
    )
    download = source == PRETRAINED and file is None
    try:
        module = timm_model(name, size, pretrained=download, **arguments)
    # timm and the Hugging Face Hub raise many kinds of exceptions. Each means that this model cannot be had.
    except Exception as error:
        if download:
            place = paths.weights_dir()
            raise BackboneError(weights.missing_download(_full_name(name, config), config, place, error)) from error
        raise BackboneError(f"backbone {name!r} cannot be built for {size} pixels: {error}") from error
    if shipped:
        mini_clip.load_vision(module)
    elif not download and source != RANDOM:
        drop = config["classifier"]
        layers = () if clip else (drop,) if isinstance(drop, str) else tuple(drop or ())
        weights.load_file(module, file or Path(source), name, drop=layers)
    return module, config, clip


def timm_model(name: str, image_size: int, **arguments: Any) -> nn.Module:
    """Create timm's model for images of `image_size` pixels."""
    import timm

    try:
        model: nn.Module = timm.create_model(name, img_size=image_size, **arguments)
    # Convolutional networks take images of any size, and do not have this argument.
    except TypeError:
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
    """Names of all published weights of an architecture, each with its tag."""
    import timm

    found: list[str] = timm.list_pretrained(f"{architecture}.*")
    return found


def _full_name(name: str, config: dict[str, Any]) -> str:
    """The model's name with the tag of its weights. timm's default tag is added if the name has none."""
    tag = config.get("tag")
    return name if "." in name or not tag else f"{name}.{tag}"


def is_clip_tower(config: dict[str, Any]) -> bool:
    """Whether a model's last layer is CLIP's projection, which belongs to the tower, and not a classifier.

    timm does not say this, so it is read from the model's name: "_ft_" marks a CLIP tower that was fine-tuned to
    classify.
    """
    name = f"{config['architecture']}.{config.get('tag') or ''}"
    return "clip" in name and config["num_classes"] > 0 and "_ft_" not in name
