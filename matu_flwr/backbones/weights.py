"""Finds, reads and loads files of pre-trained weights."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from matu_flwr.backbones.errors import BackboneError, first_line

ENDINGS = (".safetensors", ".bin", ".pt", ".pth")


def place_for(name: str, folder: Path) -> Path | None:
    """The weights file for a model in `folder`: its name with the first of `ENDINGS` that exists; None if none does."""
    return next((path for ending in ENDINGS if (path := folder / f"{name}{ending}").is_file()), None)


def read(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors or torch file, by name. Code in the file is not run.

    Raises
    ------
    BackboneError
        The file does not exist, cannot be read, or is a TorchScript archive.
    """
    if not path.is_file():
        raise BackboneError(
            f"weights file {path} does not exist; backbone.weights takes 'pretrained', 'random' or the absolute path "
            "of a safetensors or torch file"
        )
    from timm.models import load_state_dict

    try:
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    # Damaged and foreign files raise errors of safetensors, pickle or zip, which have no common base class.
    except Exception as error:
        # PyTorch's own message would advise to load the file in a way that runs the code in it.
        if "TorchScript" in str(error):
            raise BackboneError(
                f"weights file {path} is a TorchScript archive, which can hold code: if you trust it, load it yourself "
                "and save its state_dict() as a safetensors file"
            ) from error
        raise BackboneError(
            f"weights file {path} cannot be read: {error}; expected a safetensors or torch file"
        ) from error
    return state


def tensor_digest(tensors: Mapping[str, Tensor], beginning: bytes = b"") -> str:
    """SHA-256 (hex) of `beginning`, followed by each tensor's name and bytes, in the order of the names."""
    digest = hashlib.sha256(beginning)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_file(module: nn.Module, path: Path, name: str, *, drop: tuple[str, ...]) -> None:
    """Load a weights file into `module`. The file must have every tensor of the module, and no others.

    Parameters
    ----------
    module : nn.Module
        A model of timm.
    path : Path
        Safetensors or torch file.
    name : str
        Name of the backbone, for errors.
    drop : tuple of str
        Layers in the file that the module does not have and that are left out: a classifier.

    Raises
    ------
    BackboneError
        The file cannot be read, or its tensors do not fit the module.
    """
    # timm can load a file itself. But without a classifier it ignores tensors that do not fit, so that a model could
    # keep random weights without a word.
    #
    # A family of models in timm may have a filter. It converts the layouts of OpenAI and open_clip to timm's, and
    # resizes position embeddings.
    family = sys.modules[type(module).__module__]
    convert: Callable[..., dict[str, Tensor]] | None = getattr(family, "checkpoint_filter_fn", None)
    state = read(path)
    try:
        state = convert(state, module) if convert is not None else state
        dropped = tuple(f"{layer}." for layer in drop)
        module.load_state_dict({key: value for key, value in state.items() if not key.startswith(dropped)})
    # A filter that is given another model's file can fail with any exception.
    except Exception as error:
        raise BackboneError(f"weights file {path} does not fit backbone {name!r}: {error}") from error


def missing_download(name: str, config: dict[str, Any], folder: Path, error: Exception) -> str:
    """Text of the error after a failed download: which file to get, and where to put it."""
    hub, file = config.get("hf_hub_id"), config.get("hf_hub_filename") or "model.safetensors"
    if not hub and not config.get("url"):
        return (
            f"timm knows no published weights of {name!r} ({first_line(error)}): set backbone.weights to the path of "
            "a file of your own, or to random"
        )
    source = f"{file} of the Hugging Face model {hub}" if hub else config.get("url") or "the published weights"
    return (
        f"the pre-trained weights of {name!r} could not be downloaded ({first_line(error)}); fetch {source} "
        f"on another machine and put it at {folder / name}.safetensors (or .bin, .pt), or set "
        "backbone.weights to its path"
    )
