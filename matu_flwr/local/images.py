"""A share of a data set's images, read in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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

    def shuffled(self, steps: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`steps` batches of min(batch_size, n) images: epoch after epoch without replacement, reshuffled each."""
        size = min(batch_size, len(self))
        rng = np.random.default_rng(seed)
        order = np.empty(0, dtype=np.int64)
        for _ in range(steps):
            while len(order) < size:
                order = np.concatenate([order, rng.permutation(len(self))])
            yield self.batch(order[:size])
            order = order[size:]


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32, pixels in [0, 1] minus mean, over std."""
    pixels = images.permute(0, 3, 1, 2).float().div_(255)
    shift = torch.tensor(mean).view(3, 1, 1)
    scale = torch.tensor(std).view(3, 1, 1)
    return pixels.sub_(shift).div_(scale).contiguous()
