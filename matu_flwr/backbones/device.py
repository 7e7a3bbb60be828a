"""Chooses between CPU and GPU."""

from __future__ import annotations

import torch

from matu_flwr.backbones.errors import BackboneError


def choose_device(wanted: str) -> str:
    """Turn the setting `train.device` into the name of a PyTorch device.

    "auto" means the GPU if this process sees one, else the CPU. In a simulation a client's process sees a GPU if
    `client-resources-num-gpus` gives it one. A SuperNode sees the GPUs listed in CUDA_VISIBLE_DEVICES, by default all.

    Parameters
    ----------
    wanted : str
        "auto", "cpu" or "cuda".

    Returns
    -------
    str
        "cpu" or "cuda".

    Raises
    ------
    BackboneError
        "cuda" is wanted and this process sees no GPU.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted != "cpu" and not torch.cuda.is_available():
        raise BackboneError(
            f"train.device = {wanted}, but this process sees no GPU: give clients one (client-resources-num-gpus, or "
            "CUDA_VISIBLE_DEVICES on a node), or set train.device to auto or cpu"
        )
    return wanted
