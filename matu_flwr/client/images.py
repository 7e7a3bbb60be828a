"""A client's share of a task's images, read in batches, and the copies to and from a device."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CPU = torch.device("cpu")
# A share of at most so many bytes is copied to a GPU as a whole.
UPLOAD = 2**30


@dataclass(frozen=True)
class ImageSet:
    """Some images of a larger array. It may be memory-mapped, since only the batches that are read are copied.

    Attributes
    ----------
    images : ndarray
        (N, S, S, 3) uint8, RGB.
    labels : ndarray
        (N,) int64.
    index : ndarray
        (n,) int64: the rows of the array that belong to this share.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The images, (B, S, S, 3) uint8, and labels, (B,) int64, at `positions` of this share, which count from 0."""
        rows = self.index[positions]
        return torch.from_numpy(self.images[rows]), torch.from_numpy(self.labels[rows])

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images once, in batches of at most `batch_size`."""
        for start in range(0, len(self), batch_size):
            yield self.batch(np.arange(start, min(start + batch_size, len(self))))

    def shuffled(
        self, steps: int, batch_size: int, seed: int, device: torch.device = CPU
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`steps` batches of min(batch_size, n) images, on `device`.

        The images of an epoch come without replacement, in a new order for every epoch. A batch may reach into the next
        epoch. On a GPU, a share that is not too large is copied there once, as bytes, and batches are taken from it.
        """
        size = min(batch_size, len(self))
        rng = np.random.default_rng(seed)
        epochs = [rng.permutation(len(self)) for _ in range(-(-steps * size // len(self)))]
        order = np.concatenate([np.empty(0, dtype=np.int64), *epochs])[: steps * size].reshape(steps, size)
        if _goes_up(len(self) * int(np.prod(self.images.shape[1:])), device):
            images, labels = (part.to(device) for part in self.batch(np.arange(len(self))))
            # The whole order at once: a copy in every step would wait for the GPU.
            for rows in torch.from_numpy(order).to(device):
                yield images[rows], labels[rows]
            return
        for positions in order:
            images, labels = self.batch(positions)
            yield to_device(images, device), to_device(labels, device)


def _goes_up(size: int, device: torch.device) -> bool:
    """Whether a share of `size` bytes is copied to the device as a whole."""
    return device.type != "cpu" and size <= UPLOAD


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a device, at the same time as it computes where the device allows that."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """Copy to the CPU. From a GPU, the copy goes into pinned memory, which PyTorch keeps and uses again."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn images, (B, S, S, 3) uint8, into input of a backbone, (B, 3, S, S) float32, on the same device.

    Pixels are scaled to [0, 1]; then each channel's `mean` is subtracted, and the result divided by its `std`.
    """
    shift, scale = _on_device(mean, images.device), _on_device(std, images.device)
    pixels = images.permute(0, 3, 1, 2).float().div_(255).sub_(shift).div_(scale)
    # On a GPU the memory stays channels-last, as the images come and as convolutions want it. On a CPU that is slower.
    return pixels.contiguous() if pixels.device.type == "cpu" else pixels


# Cached, because a copy for every batch would wait for the GPU.
@functools.lru_cache(maxsize=16)
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One number per channel, as (3, 1, 1) float32 on the device."""
    # Tests run in inference mode. A tensor made there could not be used in training later, and this one is kept.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(-1, 1, 1)
