"""A share of a data set's images, read in batches."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CPU = torch.device("cpu")
UPLOAD = 2**30  # bytes of a share that go to a GPU as a whole


@dataclass(frozen=True)
class ImageSet:
    """Some images of a larger array, which may be memory-mapped: only the batches that are read are copied.

    Attributes
    ----------
    images : ndarray
        (N, S, S, 3) uint8, RGB.
    labels : ndarray
        (N,) int64.
    index : ndarray
        (n,) int64: which of the N belong to this share.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images (B, S, S, 3) uint8 and labels (B,) int64 at positions 0..n-1 of this share."""
        rows = self.index[positions]
        return torch.from_numpy(self.images[rows]), torch.from_numpy(self.labels[rows])

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images once, in batches of at most `batch_size`."""
        for start in range(0, len(self), batch_size):
            yield self.batch(np.arange(start, min(start + batch_size, len(self))))

    def shuffled(
        self, steps: int, batch_size: int, seed: int, device: torch.device = CPU
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`steps` batches of min(batch_size, n) images: epoch after epoch without replacement, reshuffled each.

        A share that is not too large goes to a GPU once, as bytes; batches are then taken there.
        """
        size = min(batch_size, len(self))
        rng = np.random.default_rng(seed)
        epochs = [rng.permutation(len(self)) for _ in range(-(-steps * size // len(self)))]
        order = np.concatenate([np.empty(0, dtype=np.int64), *epochs])[: steps * size].reshape(steps, size)
        if _goes_up(len(self) * int(np.prod(self.images.shape[1:])), device):
            images, labels = (part.to(device) for part in self.batch(np.arange(len(self))))
            for rows in torch.from_numpy(order).to(device):  # once: a copy per step would wait for the GPU
                yield images[rows], labels[rows]
            return
        for positions in order:
            images, labels = self.batch(positions)
            yield to_device(images, device), to_device(labels, device)


def _goes_up(size: int, device: torch.device) -> bool:
    """Whether a share of `size` bytes is copied to the device as a whole."""
    return device.type != "cpu" and size <= UPLOAD


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a device, beside the computation where the device allows it."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """Copy to the CPU; from a GPU into pinned memory, which PyTorch keeps for the next one."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32, pixels in [0, 1] minus mean, over std; on the images' device.

    On a GPU the memory stays channels-last, as the images are and as its convolutions want it; on a CPU that is slower.
    """
    shift, scale = _on_device(mean, images.device), _on_device(std, images.device)
    pixels = images.permute(0, 3, 1, 2).float().div_(255).sub_(shift).div_(scale)
    return pixels.contiguous() if pixels.device.type == "cpu" else pixels


@functools.lru_cache(maxsize=16)  # copied once: a copy per batch would wait for the GPU
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A number per channel, (3, 1, 1) float32."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(-1, 1, 1)
