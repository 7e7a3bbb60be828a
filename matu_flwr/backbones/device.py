"""Where a process computes."""

from __future__ import annotations

import torch

from matu_flwr.backbones.errors import BackboneError


def choose_device(wanted: str) -> str:
    """Resolve "auto", "cpu" or "cuda".

    "auto" is the GPU if this process sees one: a simulation's actor sees what `client-resources-num-gpus` gives it, a
    SuperNode what CUDA_VISIBLE_DEVICES leaves it.

    Raises
    ------
    BackboneError
        A GPU is asked for and none is there.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted != "cpu" and not torch.cuda.is_available():
        raise BackboneError(
            f"train.device = {wanted}, but this process sees no GPU: give clients one (client-resources-num-gpus, or "
            "CUDA_VISIBLE_DEVICES on a node), or set train.device to auto or cpu"
        )
    return wanted
