"""How the mathematics of `merging` runs fast, behind one door: `for_device`.

    CPU      loops that Numba compiles: `cpu_unify`, `cpu_replies`, `cpu_codes`, written in the words of `lanes`.
             `cpu_blocks`, `cpu_merge` and `cpu_quantise` hand them blocks of whole vectors.
    CUDA     programs that Triton compiles: `triton_unify`, `triton_merge`.

The specification of each is plain torch, where it is explained: `merging.unify.elect_and_mask`,
`merging.aggregate.MergeInTorch`, `merging.quantise`. Kernels know the data types of `merging`, and nobody knows them
but through this door. Numba, LLVM and Triton take their time to load, so nothing here imports them before it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from matu_flwr.choices import Magnitude
from matu_flwr.merging.blocks import Norms
from matu_flwr.merging.options import MergeOptions
from matu_flwr.merging.task_graph import SignAgreement
from matu_flwr.merging.task_vectors import ClientUpdate


class Merge(Protocol):
    """The arithmetic of one round's merge; see `merging.aggregate.MergeInTorch`."""

    def merge(self) -> tuple[SignAgreement, int | None]:
        """Pass 1: τ̂^t of every task, where directions agree, and the first client whose vector is not finite."""

    def combine(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        """Pass 2: the cross-task step, for the tasks in `weights`."""


class Kernels(NamedTuple):
    """What runs compiled on one kind of device; None where plain torch is what runs there.

    Attributes
    ----------
    unify : callable
        As `merging.unify.elect_and_mask`.
    merge : callable
        (updates, tasks, options, merged) -> `Merge`, as `merging.aggregate.MergeInTorch`.
    quantise, dequantise : callable
        As `quantise_in_torch` and `dequantise_in_torch` of `merging.quantise`.
    """

    unify: Callable[[Sequence[Tensor], Magnitude], tuple[Tensor, list[Tensor], list[Norms]]] | None = None
    merge: Callable[[Sequence[ClientUpdate], list[str], MergeOptions, Tensor], Merge] | None = None
    quantise: Callable[[Tensor, int, int, Tensor, Tensor], None] | None = None
    dequantise: Callable[[Tensor, Tensor, Tensor, Tensor], None] | None = None


def for_device(device: torch.device) -> Kernels:
    """The compiled kernels of a device; none of them where it has none."""
    if device.type == "cpu":
        from matu_flwr.merging.kernels.cpu_blocks import unify_on_cpu
        from matu_flwr.merging.kernels.cpu_merge import MergeOnCpu
        from matu_flwr.merging.kernels.cpu_quantise import dequantise_on_cpu, quantise_on_cpu

        return Kernels(unify_on_cpu, MergeOnCpu, quantise_on_cpu, dequantise_on_cpu)
    if device.type == "cuda" and find_spec("triton"):  # comes with PyTorch for CUDA on Linux
        from matu_flwr.merging.kernels.triton_merge import MergeInTriton
        from matu_flwr.merging.kernels.triton_unify import unify_in_triton

        return Kernels(unify_in_triton, MergeInTriton)
    return Kernels()
