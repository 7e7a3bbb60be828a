"""Backbones by name: the project's small vision transformer, any timm model, random, downloaded or local weights.

θ_p never travels: server and clients build it from the same settings and compare its fingerprint.
"""

from __future__ import annotations

import difflib
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from matu_flwr._torchvision import ensure_importable
from matu_flwr.vectors import ParameterLayout

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

OWN = ("vit_mini_convstem_32",)


class BackboneError(ValueError):
    """A backbone that cannot be built: unknown name, missing or foreign weights."""


@dataclass(frozen=True)
class Backbone:
    """One pre-trained model θ_p and the working copy that is fine-tuned.

    Attributes
    ----------
    module : nn.Module
        (B, 3, S, S) float32 -> (B, F) float32. One instance serves all tasks of a process in turn: `load` it first.
    layout : ParameterLayout
        Of all parameters: full fine-tuning.
    theta_p : Tensor
        (d,) float32, the common start.
    fingerprint : str
        SHA-256 of layout and θ_p.
    mean, std : tuple of float
        Per channel of pixels in [0, 1].
    """

    name: str
    module: nn.Module
    layout: ParameterLayout
    theta_p: Tensor
    fingerprint: str
    image_size: int
    num_features: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def d(self) -> int:
        """Number of trainable parameters: the length of a task vector."""
        return self.layout.d

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name, in the order of the layout."""
        return dict(self.module.named_parameters())

    def load(self, task_vector: Tensor | None) -> None:
        """Put the working copy at θ_p + τ; None is τ = 0."""
        theta = self.theta_p if task_vector is None else self.theta_p + task_vector
        self.layout.write(theta, self.parameters())

    def task_vector(self) -> Tensor:
        """τ = θ − θ_p of the working copy, a new (d,) float32 vector."""
        return self.layout.flatten(self.parameters()).sub_(self.theta_p)


@functools.lru_cache(maxsize=2)  # a simulation actor serves many clients with one model
def create_backbone(name: str, *, weights: str = "", image_size: int = 32, seed: int = 0) -> Backbone:
    """Build a backbone; the same arguments give the same θ_p.

    Parameters
    ----------
    name : str
        A name of this project (`OWN`) or any model of timm.
    weights : str
        "": random initialisation from `seed`. "pretrained": timm's download. Otherwise a local safetensors or torch
        file with timm's key names; its classifier is dropped and its position embedding resized.
    image_size : int
        Pixels; the model is built for it.
    seed : int
        Of the random initialisation only.

    Raises
    ------
    BackboneError
        Unknown name (with the nearest match), missing file, keys that do not fit, a download that failed, or a model
        with batch-norm statistics, which a task vector does not carry.

    Notes
    -----
    The random initialisation is the same on machines whose PyTorch computes the same; where it does not, fingerprints
    differ and the server refuses the client rather than mixing two θ_p.
    """
    ensure_importable()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, config = _build(name, weights, image_size)
    if any("running_" in key for key, _ in module.named_buffers()):
        raise BackboneError(
            f"backbone {name!r} has batch-norm running statistics, which are not parameters and would stay behind; "
            "choose a model with layer or group norm, such as a vision transformer"
        )
    module.eval()  # no dropout or drop path: a client step is a function of its seed alone
    parameters = dict(module.named_parameters())
    layout = ParameterLayout.of(parameters)
    theta_p = layout.flatten(parameters)
    return Backbone(
        name=name,
        module=module,
        layout=layout,
        theta_p=theta_p,
        fingerprint=layout.fingerprint(theta_p),
        image_size=image_size,
        num_features=int(module.num_features),  # type: ignore[arg-type]  # timm sets it on every model
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _build(name: str, weights: str, image_size: int) -> tuple[nn.Module, dict[str, Any]]:
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    if name in OWN:
        if weights == "pretrained":
            raise BackboneError(f"backbone {name!r} has no weights to download; leave backbone.weights empty")
        own = _mini(image_size)
        if weights:
            _load(own, checkpoint_filter_fn, "head", name, weights)
        return own, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, [*OWN, *timm.list_models()], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise BackboneError(f"unknown backbone {name!r}; {hint}own: {list(OWN)}, or any name of timm.list_models()")
    family = sys.modules[timm.models.model_entrypoint(name.split(".")[0]).__module__]
    arguments: dict[str, Any] = {"num_classes": 0, "pretrained": weights == "pretrained"}
    try:
        try:
            module = timm.create_model(name, img_size=image_size, **arguments)
        except TypeError:  # convolutional networks take images of any size and no such argument
            module = timm.create_model(name, **arguments)
    except Exception as error:  # timm and the hub raise many kinds; each means that this model cannot be had
        raise BackboneError(
            _unloadable(name, weights, error)
            if weights == "pretrained"
            else f"backbone {name!r} cannot be built for {image_size} pixels: {error}"
        ) from error
    config: dict[str, Any] = module.pretrained_cfg  # type: ignore[assignment]  # timm sets it on every model
    if weights not in ("", "pretrained"):
        # Not timm's own loading from a file: without a classifier it passes over keys that do not fit.
        _load(module, getattr(family, "checkpoint_filter_fn", None), config["classifier"], name, weights)
    return module, config


def _mini(image_size: int) -> VisionTransformer:
    """The small default: timm's VisionTransformer on a stem of three convolutions of stride 2, 0.69 M parameters.

    From random weights, 300 steps of 32 images take the tasks of the offline suite to .83 to 1.00; with a plain 8x8
    patch embedding of the same cost they reach .62 to .85 (early convolutions: Xiao et al., NeurIPS 2021). 16 tokens at
    32 pixels keep a step near 30 ms on one CPU core.
    """
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.layers.norm import LayerNorm2d
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    width = 128

    def stem(**arguments: Any) -> nn.Module:
        del arguments["bias"]  # of a patch projection, which there is none of
        channels = (width // 4, width // 2, width)
        # Layer norm: batch norm's running statistics would not be part of a task vector.
        convolutions = ConvStem(depth=3, channels=channels, norm_layer=LayerNorm2d, act_layer=nn.GELU)
        return HybridEmbed(convolutions, proj=False, **arguments)

    return VisionTransformer(
        img_size=image_size,
        patch_size=1,
        embed_layer=stem,
        embed_dim=width,
        depth=3,
        num_heads=4,
        class_token=False,
        global_pool="avg",
        num_classes=0,
    )


def _read(weights: str) -> dict[str, Tensor]:
    if not Path(weights).is_file():
        raise BackboneError(_missing(weights))
    from timm.models import load_state_dict

    try:
        state: dict[str, Tensor] = load_state_dict(weights, weights_only=True)
    except Exception as error:  # safetensors, pickle and zip errors: the file is not what it should be
        raise BackboneError(f"weights file {weights} cannot be read: {error}") from error
    return state


def _load(module: nn.Module, convert: Any, classifier: str | tuple[str, ...], name: str, weights: str) -> None:
    """Load a file into `module`: every tensor, and no other. `convert` is the model family's key filter in timm."""
    layers = (classifier,) if isinstance(classifier, str) else classifier
    state = _read(weights)
    try:
        state = convert(state, module) if convert is not None else state
        dropped = tuple(f"{layer}." for layer in layers)
        module.load_state_dict({key: value for key, value in state.items() if not key.startswith(dropped)})
    except Exception as error:  # a filter that meets a foreign file raises whatever it stumbles over
        raise BackboneError(_unloadable(name, weights, error)) from error


def _missing(weights: str) -> str:
    return (
        f"weights file {weights} does not exist; backbone.weights takes '', 'pretrained' or the absolute path of a "
        "safetensors or torch file"
    )


def _unloadable(name: str, weights: str, error: Exception) -> str:
    if weights == "pretrained":
        return (
            f"the pre-trained weights of {name!r} could not be downloaded ({error}); place the file of that model on "
            "this machine and set backbone.weights to its path"
        )
    return f"weights file {weights} does not fit backbone {name!r}: {error}"
