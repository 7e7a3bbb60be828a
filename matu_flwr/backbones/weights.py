"""Pre-trained weights: from the package, from a file that somebody placed, from timm's download."""

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
    """A file that was placed in `folder` for the model `name`: `<name>.safetensors`, or one of the other `ENDINGS`."""
    return next((path for ending in ENDINGS if (path := folder / f"{name}{ending}").is_file()), None)


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors or torch file; only tensors are unpickled."""
    if not path.is_file():
        raise BackboneError(
            f"weights file {path} does not exist; backbone.weights takes 'pretrained', 'random' or the absolute path "
            "of a safetensors or torch file"
        )
    from timm.models import load_state_dict

    try:
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # safetensors, pickle and zip errors: the file is not what it should be
        if "TorchScript" in str(error):  # torch's own advice would be to run what is in the file
            raise BackboneError(
                f"weights file {path} is a TorchScript archive, which holds code: load it where you trust it and store "
                "its state_dict() as safetensors"
            ) from error
        raise BackboneError(f"weights file {path} cannot be read: {error}") from error
    return state


def tensor_digest(tensors: Mapping[str, Tensor], beginning: bytes = b"") -> str:
    """SHA-256 (hex) of `beginning`, and of names and bytes of tensors in the order of names."""
    digest = hashlib.sha256(beginning)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_file(module: nn.Module, path: Path, name: str, *, drop: tuple[str, ...]) -> None:
    """Load a file into `module`: every tensor, and no other.

    Not timm's own loading from a file: without a classifier it passes over keys that do not fit.

    Parameters
    ----------
    module : nn.Module
        A model of timm; its family's key filter converts published layouts (OpenAI's and open_clip's towers, other
        patch grids) to timm's.
    path : Path
        Safetensors or torch file.
    name : str
        The backbone, for messages.
    drop : tuple of str
        Layers of the file that the module lacks: a classifier.

    Raises
    ------
    BackboneError
        The file cannot be read or is of another model.
    """
    family = sys.modules[type(module).__module__]
    convert: Callable[..., dict[str, Tensor]] | None = getattr(family, "checkpoint_filter_fn", None)
    state = read(path)
    try:
        state = convert(state, module) if convert is not None else state
        dropped = tuple(f"{layer}." for layer in drop)
        module.load_state_dict({key: value for key, value in state.items() if not key.startswith(dropped)})
    except Exception as error:  # a filter that meets a foreign file raises whatever it stumbles over
        raise BackboneError(f"weights file {path} does not fit backbone {name!r}: {error}") from error


def missing_download(name: str, config: dict[str, Any], folder: Path, error: Exception) -> str:
    """The message for a download that failed: which file to place, and where."""
    hub, file = config.get("hf_hub_id"), config.get("hf_hub_filename") or "model.safetensors"
    if not hub and not config.get("url"):
        return (
            f"timm knows no published weights of {name!r} ({first_line(error)}): set backbone.weights to a file of "
            "your own, or to random"
        )
    source = f"{file} of the Hugging Face model {hub}" if hub else config.get("url") or "the published weights"
    return (
        f"the pre-trained weights of {name!r} could not be downloaded ({first_line(error)}); fetch {source} "
        f"on another machine and place it as {folder / name}.safetensors (or .bin, .pt), or set "
        "backbone.weights to its path"
    )
