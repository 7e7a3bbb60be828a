"""Means over a task's holders that one bad holder cannot move far: coordinate-wise median and trimmed mean.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates. ICML 2018.
https://arxiv.org/abs/1803.01498

Per parameter, over the n holders' values in order of size, the k smallest and the k largest are left out:

    trimmed   mean of what is left,  k = min(⌈trim · n⌉, ⌊(n − 1) / 2⌋)
    median    the same with k = ⌊(n − 1) / 2⌋: one value is left of an odd number, the mean of two of an even one

Every holder counts once: how many images it has is its own word. While at most k of n holders are hostile, the result
lies between the smallest and the largest honest value of that parameter.

One holder: the result is its vector. Two: k = 0, and the result is their plain mean. Neither bounds anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from matu_flwr.choices import MeanKind
from matu_flwr.merging.errors import MergeError

FEWEST = 3  # holders from which something is left out


@dataclass(frozen=True)
class HolderMean:
    """How the vectors of a task's holders become one.

    Attributes
    ----------
    kind : {"weighted", "median", "trimmed"}
        Mean weighted by images, as published; or one of the two that leave out what lies outside.
    trim : float in (0, 0.5)
        Share that "trimmed" leaves out at each end.

    Raises
    ------
    MergeError
        `trim` outside (0, 0.5).
    """

    kind: MeanKind = "weighted"
    trim: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.trim < 0.5:
            raise MergeError(f"trim = {self.trim} is outside (0, 0.5): it is the share left out at each end")

    @property
    def robust(self) -> bool:
        """Whether values are left out at all."""
        return self.kind != "weighted"

    def left_out(self, holders: int) -> int:
        """Values left out at each end of those of n holders: k."""
        most = (holders - 1) // 2
        if self.kind == "median":
            return most
        # ⌈⌉ of a product that ought to be whole: 0.07 · 100 is 7.000000000000001.
        return min(math.ceil(self.trim * holders - 1e-9), most)

    def of(self, stacked: Tensor) -> Tensor:
        """Robust mean over the first axis: (n, B) float32 -> (B,) float64, the same bits in any order of the rows."""
        holders = stacked.shape[0]
        k = self.left_out(holders)
        if k == 0:
            return stacked.double().mean(dim=0)  # of one or two rows
        return _sorted(stacked)[k : holders - k].double().mean(dim=0)


def _sorted(stacked: Tensor) -> Tensor:
    """Each column in order of size. NumPy sorts short columns several times as fast as torch does on a CPU."""
    if stacked.device.type == "cpu":
        return torch.from_numpy(np.sort(stacked.numpy(), axis=0))
    return stacked.sort(dim=0).values


WEIGHTED = HolderMean()
