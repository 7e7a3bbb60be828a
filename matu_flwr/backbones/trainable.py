"""Which parameters are trained: all, or LoRA adapters. Also the linearised model, and where the last blocks begin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from matu_flwr.backbones.errors import BackboneError
from matu_flwr.seeds import derive_seed
from matu_flwr.vectors import ParameterLayout

Trainable = Literal["full", "lora"]


def add_lora(module: nn.Module, *, rank: int, alpha: float, targets: str, seed: int) -> nn.Module:
    """Wrap `module` with PEFT's LoRA adapters (Hu et al., 2022). After that only the adapters are trainable.

    An adapter changes a layer's weight W to W + alpha / rank · B A. B starts at zero, so the model starts unchanged. A
    is drawn from `seed`, so that all nodes start from the same adapters. Task vectors are differences from that start.

    Parameters
    ----------
    module : nn.Module
        The pre-trained model. Its own parameters are frozen.
    rank : int
        Number of rows of A and of columns of B.
    alpha : float
        Scale of the adapters.
    targets : str
        Names of the layers that get an adapter, or the ends of their names, separated by commas.
    seed : int
        The run's seed.

    Raises
    ------
    BackboneError
        PEFT is not installed, or no linear or convolutional layer has such a name.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise BackboneError("backbone.trainable = lora needs the package peft: pip install 'matu-flwr[lora]'") from None
    names = [name.strip() for name in targets.split(",") if name.strip()]
    if not names:
        raise BackboneError(f"backbone.lora-targets = {targets!r} names no layer: give names such as qkv,fc1")
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for name in names:
        if not any(layer == name or layer.endswith(f".{name}") for layer in layers):
            ends = sorted({layer.rpartition(".")[2] for layer in layers})
            raise BackboneError(f"backbone.lora-targets: no linear layer is called {name!r}; layers end in {ends}")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT declares an int, but a float works
        target_modules=names,
        lora_dropout=0.0,
        bias="none",
    )
    torch.manual_seed(derive_seed(seed, "lora"))
    adapted: nn.Module = get_peft_model(module, config)
    return adapted


def length_before_last_blocks(layout: ParameterLayout, count: int) -> int:
    """Number of parameters of a task vector that lie before the last `count` blocks; all d if `count` is 0.

    Raises
    ------
    BackboneError
        Fewer than `count` blocks are trained.
    """
    if count == 0:
        return layout.d
    # PEFT's wrapper puts this prefix before the names of a model with LoRA.
    names = {name: name.removeprefix("base_model.model.") for name in layout.slices}
    blocks = sorted({int(name.split(".")[1]) for name in names.values() if name.startswith("blocks.")})
    if count > len(blocks):
        raise BackboneError(
            f"fedper.blocks = {count}, but {len(blocks)} blocks of this backbone are trained: lower it to that or "
            "less, or use a vision transformer"
        )
    first = f"blocks.{blocks[-count]}."
    starts: list[int] = [layout.slices[name].start for name, short in names.items() if short.startswith(first)]
    return min(starts)


class Linearised(nn.Module):
    """The linear approximation of a model at its start: f(x; θ_p) + J(x; θ_p)(θ − θ_p).

    J is the Jacobian of f with respect to the trainable parameters θ. It is never formed: each batch takes one
    forward-mode product with it. Muhamed et al., 2024 (NTK-FedAvg); Ortiz-Jimenez et al., 2023.

    Parameters
    ----------
    module : nn.Module
        The model f, with its parameters at θ_p. A copy of θ_p is kept here, and training changes the module's own
        parameters, θ.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.origin = {key: p.detach().clone() for key, p in module.named_parameters() if p.requires_grad}
        # PyTorch's fused attention has no forward-mode derivative.
        for layer in module.modules():
            if "fused_attn" in vars(layer):
                vars(layer)["fused_attn"] = False
        for parameter in module.parameters():
            parameter.grad = None

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) float32 to features (B, F) float32."""
        theta: Mapping[str, Tensor] = dict(self.module.named_parameters())
        step = {key: theta[key] - start for key, start in self.origin.items()}

        def at(parameters: dict[str, Tensor]) -> Tensor:
            out: Tensor = torch.func.functional_call(self.module, parameters, (images,))
            return out

        value, change = torch.func.jvp(at, (self.origin,), (step,))  # type: ignore[misc]  # three with has_aux
        moved: Tensor = value + change
        return moved

    def _apply(self, fn: Any, recurse: bool = True) -> Linearised:
        # PyTorch calls this to move or convert the parameters. The copy of θ_p is not among them, so it is moved here.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.origin = {key: fn(start) for key, start in self.origin.items()}
        return self
