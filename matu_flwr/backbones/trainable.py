"""Which parameters are in the task vector: all of them, LoRA adapters, or the last blocks; and the linearised model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from matu_flwr.backbones.errors import BackboneError
from matu_flwr.seeds import derive_seed
from matu_flwr.vectors import ParameterLayout

Trainable = Literal["full", "lora", "blocks"]


def add_lora(module: nn.Module, *, rank: int, alpha: float, targets: str, seed: int) -> nn.Module:
    """Wrap `module` with PEFT's LoRA adapters (Hu et al., 2022), the only trainable parameters then.

    A is drawn from `seed`, the same at every node, and B is zero: the model starts as θ_p, and the adapters' own
    start is the common origin of the task vectors.

    Parameters
    ----------
    module : nn.Module
        Pre-trained; its parameters are frozen.
    rank : int
        r of W + alpha / r · B A.
    alpha : float
        Scale.
    targets : str
        Comma-separated ends of layer names.
    seed : int
        Of the run.

    Raises
    ------
    BackboneError
        PEFT is not installed, or no layer has such a name.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise BackboneError("backbone.trainable = lora needs the package peft: pip install 'matu-flwr[lora]'") from None
    names = [name.strip() for name in targets.split(",") if name.strip()]
    if not names:
        raise BackboneError(f"backbone.lora-targets = {targets!r} names no layer")
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for name in names:
        if not any(layer == name or layer.endswith(f".{name}") for layer in layers):
            ends = sorted({layer.rpartition(".")[2] for layer in layers})
            raise BackboneError(f"backbone.lora-targets: no linear layer is called {name!r}; layers end in {ends}")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # declared int, used as a float
        target_modules=names,
        lora_dropout=0.0,
        bias="none",
    )
    torch.manual_seed(derive_seed(seed, "lora"))
    adapted: nn.Module = get_peft_model(module, config)
    return adapted


def freeze_but_last_blocks(module: nn.Module, count: int, name: str) -> None:
    """Leave only the last `count` transformer blocks, and what comes after them, trainable.

    Raises
    ------
    BackboneError
        The model has no blocks in a row, or fewer.
    """
    blocks = getattr(module, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise BackboneError(
            f"backbone {name!r} has no row of blocks; backbone.trainable = blocks needs a vision transformer"
        )
    if count > len(blocks):
        raise BackboneError(f"backbone.last-blocks = {count}, but backbone {name!r} has {len(blocks)} blocks")
    order = [key for key, _ in module.named_parameters()]
    first = next(index for index, key in enumerate(order) if key.startswith(f"blocks.{len(blocks) - count}."))
    for key, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and order.index(key) >= first)


def length_before_last_blocks(layout: ParameterLayout, count: int) -> int:
    """How many parameters of a task vector come before the last `count` blocks; all of them for 0.

    Raises
    ------
    BackboneError
        The vector covers fewer blocks, or none.
    """
    if count == 0:
        return layout.d
    names = {name: name.removeprefix("base_model.model.") for name in layout.slices}
    blocks = sorted({int(name.split(".")[1]) for name in names.values() if name.startswith("blocks.")})
    if count > len(blocks):
        raise BackboneError(
            f"fedper.blocks = {count}, but {len(blocks)} blocks of this backbone are trained: lower it, or take a "
            "vision transformer"
        )
    first = f"blocks.{blocks[-count]}."
    starts: list[int] = [layout.slices[name].start for name, short in names.items() if short.startswith(first)]
    return min(starts)


class Linearised(nn.Module):
    """f(x; θ_p) + J(x; θ_p)(θ − θ_p): a model that is linear in its trainable parameters.

    Muhamed et al., 2024 (NTK-FedAvg); Ortiz-Jimenez et al., 2023. One forward-mode product per batch, no Jacobian is
    formed.

    Parameters
    ----------
    module : nn.Module
        At θ_p. Its trainable parameters are θ from now on; θ_p is kept beside them.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.origin = {key: p.detach().clone() for key, p in module.named_parameters() if p.requires_grad}
        for layer in module.modules():
            if "fused_attn" in vars(layer):
                vars(layer)["fused_attn"] = False  # torch's fused attention has no forward-mode derivative
        for parameter in module.parameters():
            parameter.grad = None

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) float32 -> (B, F) float32."""
        theta: Mapping[str, Tensor] = dict(self.module.named_parameters())
        step = {key: theta[key] - start for key, start in self.origin.items()}

        def at(parameters: dict[str, Tensor]) -> Tensor:
            out: Tensor = torch.func.functional_call(self.module, parameters, (images,))
            return out

        value, change = torch.func.jvp(at, (self.origin,), (step,))  # type: ignore[misc]  # three with has_aux
        moved: Tensor = value + change
        return moved

    def _apply(self, fn: Any, recurse: bool = True) -> Linearised:
        """Keep θ_p on the device of the parameters."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.origin = {key: fn(start) for key, start in self.origin.items()}
        return self
