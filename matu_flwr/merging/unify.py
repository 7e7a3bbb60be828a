"""Elect, mask, rescale: the client's side of MaTU, and its downlink.

Tsouvalas, Ozcelebi, Meratnia: Many-Task Federated Fine-Tuning via Unified Task Vectors. arXiv 2502.06376, 2025.
The operator is that of EMR-Merging (Huang et al., NeurIPS 2024), applied to the tasks of one client.

    σ = sgn(Σ_t τ^t)                                      the elected sign
    μ[i] = max of |τ^t[i]| over tasks with sgn τ^t[i] = σ[i]   the elected magnitude
    τ = σ ⊙ μ                                             the unified task vector
    m^t = 1[τ^t ⊙ τ > 0],  λ^t = ‖τ^t‖₁ / ‖m^t ⊙ τ‖₁        the modulators of task t: mask and rescaler
    τ̄^t = λ^t · m^t ⊙ τ                                   what the receiver reconstructs

Ours, beside it: where τ ≠ 0, a cleared bit says that the task's own sign was −σ (or 0). With reconstruction =
"complete" the receiver uses that, with a rescaler of its own for cleared bits; the magnitude that fits then is the mean
over the tasks:

    μ[i] = mean of |τ^t[i]| over the tasks
    λ^t = ‖m^t ⊙ τ^t‖₁ / ‖m^t ⊙ τ‖₁,  λ₋^t = ‖(1 − m^t) ⊙ τ^t‖₁ / ‖(1 − m^t) ⊙ τ‖₁     both over σ ≠ 0
    τ̄^t = λ^t · m^t ⊙ τ − λ₋^t · (1 − m^t) ⊙ τ
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from torch import Tensor

from matu_flwr.merging.errors import MergeError
from matu_flwr.merging.masks import PackedMasks, mask_block
from matu_flwr.merging.options import Magnitude, Reconstruction

# Parameters handled at a time. A multiple of 8 (bit packing), and no more than PyTorch sums on one thread: a sum over a
# block has one order of additions whatever the number of threads, so rescalers are the same bits on any machine.
BLOCK = 1 << 15


def blocks(d: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) of at most `size` parameters, or BLOCK, that cover 0..d."""
    size = size or BLOCK
    for start in range(0, d, size):
        yield start, min(start + size, d)


@dataclass(frozen=True)
class UnifiedTaskVector:
    """One vector for all tasks of a client, and the modulators that give each task's own vector back.

    Attributes
    ----------
    vector : Tensor
        τ, (d,) float32; bfloat16 where the wire carried that.
    masks : mapping of str to Tensor
        m^t by task, (d,) bool. `PackedMasks` holds the same as bits.
    rescalers : mapping of str to float
        λ^t by task; 0 for a task whose mask is empty: its vector is all zero, or (possible only for tiny d) loses the
        election at every parameter.
    opposites : mapping of str to float
        λ₋^t by task: what a cleared bit stands for, times −τ. Empty: nothing, as published.
    """

    vector: Tensor
    masks: Mapping[str, Tensor]
    rescalers: Mapping[str, float]
    opposites: Mapping[str, float] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """Task names, sorted."""
        return sorted(self.rescalers)

    @property
    def d(self) -> int:
        """Number of parameters."""
        return self.vector.shape[0]

    def reconstruct(self, task: str) -> Tensor:
        """τ̄^t = λ^t · m^t ⊙ τ, less λ₋^t · (1 − m^t) ⊙ τ, as a new (d,) float32 vector (method, client step 4)."""
        if task not in self.rescalers:
            raise MergeError(f"no task {task!r} in this unified task vector; it holds {self.tasks}")
        return self.reconstruct_block(task, 0, self.d)

    def reconstruct_block(self, task: str, start: int, stop: int) -> Tensor:
        """Parameters start..stop of `reconstruct`, (stop - start,) float32; `start` a multiple of 8."""
        mask = mask_block(self.masks, task, start, stop)
        vector = self.vector[start:stop].float()
        # Not in place on `.float()`: for float32 that is the vector itself.
        if not self.opposites:
            return (vector * mask).mul_(self.rescalers[task])
        return vector * torch.where(mask, self.rescalers[task], -self.opposites[task])


def first_non_finite(vector: Tensor) -> int | None:
    """Where a (d,) vector first has NaN or infinity; None if nowhere. Block by block: no temporary of length d."""
    for start, stop in blocks(vector.shape[0]):
        finite = torch.isfinite(vector[start:stop])
        if not bool(finite.all()):
            return start + int(torch.nonzero(~finite)[0, 0])
    return None


def check_shapes(task_vectors: Mapping[str, Tensor]) -> int:
    """Refuse, by name, what cannot be a set of task vectors for its form; returns their common length d.

    Raises
    ------
    MergeError
        No tasks; a vector that is not 1-dimensional float32 of the common length, or is on another device.
    """
    if not task_vectors:
        raise MergeError("no tasks: unify needs at least one task vector")
    first = next(iter(task_vectors))
    d = task_vectors[first].numel()
    for task, tau in task_vectors.items():
        if tau.dtype != torch.float32:
            raise MergeError(f"task vector {task!r} is {tau.dtype}, expected torch.float32: convert it with .float()")
        if tau.shape != (d,):
            raise MergeError(
                f"task vector {task!r} has shape {tuple(tau.shape)}, expected ({d},) as task {first!r}: "
                "flatten both with the same ParameterLayout"
            )
        if tau.device != task_vectors[first].device:
            raise MergeError(
                f"task vector {task!r} is on {tau.device}, expected {task_vectors[first].device} as task {first!r}: "
                "move it with .to()"
            )
    return d


def check_task_vectors(task_vectors: Mapping[str, Tensor]) -> int:
    """Refuse, by name, what cannot be a set of task vectors; returns their common length d.

    Raises
    ------
    MergeError
        See `check_shapes`; NaN or infinity in a vector.
    """
    d = check_shapes(task_vectors)
    for task, tau in task_vectors.items():
        at = first_non_finite(tau)
        if at is not None:
            raise MergeError(f"task vector {task!r} has {float(tau[at])} at parameter {at}: the training diverged")
    return d


def unify(
    task_vectors: Mapping[str, Tensor],
    *,
    magnitude: Magnitude = "max",
    reconstruction: Reconstruction = "masked",
    packed: bool = False,
) -> UnifiedTaskVector:
    """Elect, mask and rescale the task vectors of one client (method, client steps 2 and 3).

    The sum that elects the sign runs in float64 over the tasks in the order of their names, so the result does not
    depend on the order of the mapping and masks are the same bits on every machine.

    Parameters
    ----------
    task_vectors : mapping of str to Tensor
        τ^t by task, (d,) float32, any d ≥ 0, all on one device. They may be memory-mapped files larger than memory.
    magnitude : {"max", "mean"}
        μ: the largest magnitude of tasks that agree with the elected sign, as published; or the mean over all tasks.
    reconstruction : {"masked", "complete"}
        Make modulators for the published reconstruction, or those that give cleared bits a rescaler of their own.
    packed : bool
        Give the masks as `PackedMasks`, the form that travels: T · d / 8 bytes instead of T · d.

    Returns
    -------
    UnifiedTaskVector
        With `.vector` (d,) float32, `.masks` (d,) bool and `.rescalers`. One task: `.vector` is a copy of that task's
        vector and its rescaler is 1.

    Raises
    ------
    MergeError
        See `check_task_vectors`.

    Notes
    -----
    One pass over the data. Working memory beyond inputs and outputs: a few blocks of parameters per thread. The first
    call of a process loads the compiled kernels, and the first on a machine compiles them.
    """
    check_shapes(task_vectors)
    tasks = sorted(task_vectors)
    taus = [task_vectors[task].detach() for task in tasks]
    unified, found, norms = _backend(taus[0].device)(taus, packed=packed, magnitude=magnitude)
    if not all(math.isfinite(norm.own) for norm in norms):
        check_task_vectors(task_vectors)
    by_task = dict(zip(tasks, found, strict=True))
    masks: Mapping[str, Tensor] = PackedMasks(by_task, unified.shape[0]) if packed else by_task
    of = dict(zip(tasks, norms, strict=True))
    if reconstruction == "masked":
        return UnifiedTaskVector(unified, masks, {task: ratio(of[task].own, of[task].set) for task in tasks})
    return UnifiedTaskVector(
        unified,
        masks,
        {task: ratio(of[task].own_set, of[task].set) for task in tasks},
        {task: ratio(of[task].own_cleared, of[task].cleared) for task in tasks},
    )


@dataclass
class Norms:
    """L1 norms of one task's vector and of the elected magnitudes, over set and over cleared bits, in float64."""

    own: float = 0.0  # ‖τ^t‖₁
    set: float = 0.0  # ‖m^t ⊙ τ‖₁
    own_set: float = 0.0  # ‖m^t ⊙ τ^t‖₁
    own_cleared: float = 0.0  # ‖(1 − m^t) ⊙ τ^t‖₁ where σ ≠ 0
    cleared: float = 0.0  # ‖(1 − m^t) ⊙ τ‖₁


def ratio(own: float, elected: float) -> float:
    """A rescaler; 0 where no bit is of its kind."""
    return own / elected if elected > 0 else 0.0


def _backend(device: torch.device) -> Callable[..., tuple[Tensor, Sequence[Tensor], Sequence[Norms]]]:
    """Who elects and masks on this device. Imported here: Numba and Triton take their time."""
    if device.type == "cpu":
        from matu_flwr.merging.kernels.cpu_blocks import unify_on_cpu

        return unify_on_cpu
    if device.type == "cuda" and find_spec("triton"):
        from matu_flwr.merging.kernels.triton_unify import unify_in_triton

        return unify_in_triton
    from matu_flwr.merging.kernels.torch_blocks import unify_in_torch

    return unify_in_torch


@functools.cache
def warm_up() -> threading.Thread:
    """Load what `unify` on a CPU needs, once per process, in a thread of its own, which is returned.

    A process that trains first has the kernels then when it needs them: where every message has a process of its own,
    loading them would be the larger part of `unify`.
    """
    loading = threading.Thread(target=unify, args=({"none": torch.zeros(1)},), name="matu-warm-up", daemon=True)
    loading.start()
    return loading


def without_modulators(unified: UnifiedTaskVector) -> UnifiedTaskVector:
    """The unified vector alone, for every task: an ablation. Masks are its support and rescalers 1; none travels."""
    support = unified.vector != 0
    return UnifiedTaskVector(unified.vector, dict.fromkeys(unified.tasks, support), dict.fromkeys(unified.tasks, 1.0))
