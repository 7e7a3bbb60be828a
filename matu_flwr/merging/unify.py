"""Elect, mask, rescale: the client's side of MaTU, and its downlink.

Tsouvalas, Ozcelebi, Meratnia: Many-Task Federated Fine-Tuning via Unified Task Vectors. arXiv 2502.06376, 2025.
The operator is that of EMR-Merging (Huang et al., NeurIPS 2024), applied to the tasks of one client.

    σ = sgn(Σ_t τ^t)                                      the elected sign
    μ[i] = mean of |τ^t[i]| over the tasks                the elected magnitude
    τ = σ ⊙ μ                                             the unified task vector
    m^t = 1[τ^t ⊙ τ > 0]                                  the mask of task t: where it agrees
    λ^t = ‖m^t ⊙ τ^t‖₁ / ‖m^t ⊙ τ‖₁                       its rescaler for set bits
    λ₋^t = ‖(1 − m^t) ⊙ τ^t‖₁ / ‖(1 − m^t) ⊙ τ‖₁            and for cleared ones, both over τ ≠ 0
    τ̄^t = λ^t · m^t ⊙ τ − λ₋^t · (1 − m^t) ⊙ τ              what the receiver reconstructs

This is what a run does by default, and the functions below are these lines in their order. Where τ ≠ 0, a cleared bit
says that the task's own sign was −σ (or 0): the receiver uses that.

As published (`PAPER`), two lines differ: μ is the largest magnitude that agrees, and cleared bits stand for nothing:

    μ[i] = max of |τ^t[i]| over tasks with sgn τ^t[i] = σ[i]
    τ̄^t = λ^t · m^t ⊙ τ,  λ^t = ‖τ^t‖₁ / ‖m^t ⊙ τ‖₁

Such a λ^t has no bound: a task of few parameters may win the election only where it is tiny. λ is 10⁶ at most.

A CPU and an NVIDIA GPU run the same formulas as compiled loops (`merging.kernels`), which tests compare with these
functions to the bit.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from matu_flwr.choices import Magnitude, Reconstruction
from matu_flwr.merging.blocks import GPU_BLOCK, Norms, blocks
from matu_flwr.merging.kernels import for_device
from matu_flwr.merging.masks import PackedMasks, pack, packed_length
from matu_flwr.merging.options import MAX_MAGNITUDE, MAX_RESCALER, check_choice
from matu_flwr.merging.task_vectors import UnifiedTaskVector, as_task_vectors, check_magnitudes

# ---------------------------------------------------------------- the formulas, over a block of B parameters


def elected_sign(taus: Sequence[Tensor]) -> Tensor:
    """σ = sgn(Σ_t τ^t), the sum in float64 (client step 2)."""
    total = torch.zeros_like(taus[0], dtype=torch.float64)  # (B,)
    for tau in taus:  # (B,) float32, in the order of the names of tasks
        total += tau
    return total.sign_().float()  # (B,) in {-1, 0, 1}


def mean_magnitude(taus: Sequence[Tensor], sigma: Tensor) -> Tensor:
    """μ, the default: mean of |τ^t| over all tasks, 0 where σ = 0 (client step 2)."""
    total = torch.zeros_like(sigma, dtype=torch.float64)  # (B,)
    for tau in taus:
        total += tau.abs()
    # Not by a number of the host: a GPU would multiply with its reciprocal.
    mean = total / torch.full_like(total[:1], len(taus))
    return mean.float().mul_(sigma != 0)  # (B,) float32


def largest_agreeing(taus: Sequence[Tensor], sigma: Tensor) -> Tensor:
    """μ as published: the largest |τ^t| among tasks with sgn τ^t = σ (client step 2)."""
    mu = torch.zeros_like(sigma)  # (B,)
    for tau in taus:
        torch.maximum(mu, tau * sigma, out=mu)  # |τ^t| where the task agrees, ≤ 0 elsewhere
    return mu


def agreeing(tau: Tensor, unified: Tensor) -> Tensor:
    """m^t = 1[τ^t ⊙ τ > 0] (client step 3): the sign alone, since a product of two tiny numbers would be 0."""
    return tau * unified.sign() > 0  # (B,) bool


def norms(tau: Tensor, mask: Tensor, unified: Tensor) -> Tensor:
    """The sums of which rescalers are made, in float64: the fields of `Norms` for one block."""
    own, elected = tau.double().abs_(), unified.double().abs_()  # (B,) each
    cleared = ~mask & (elected > 0)
    return torch.stack([part.sum() for part in (own, elected * mask, own * mask, own * cleared, elected * cleared)])


def rescalers(found: Norms, reconstruction: Reconstruction) -> tuple[float, float]:
    """λ^t and λ₋^t over the whole vector, 0 where no bit is of its kind (client step 3)."""
    if reconstruction == "masked":
        return _ratio(found.own, found.set), 0.0
    return _ratio(found.own_set, found.set), _ratio(found.own_cleared, found.cleared)


def _ratio(own: float, elected: float) -> float:
    return min(own / elected, MAX_RESCALER) if elected > 0 else 0.0


def elect_and_mask(taus: Sequence[Tensor], magnitude: Magnitude = "mean") -> tuple[Tensor, list[Tensor], list[Norms]]:
    """The formulas block by block, on whatever device the vectors are on: what every kernel has to give.

    Parameters
    ----------
    taus : sequence of Tensor
        (d,) float32 each, in the order in which their sum is to be taken.
    magnitude : {"mean", "max"}
        See `unify`.

    Returns
    -------
    tuple
        τ (d,) float32; m^t (ceil(d / 8),) uint8 and `Norms` for each of `taus`.
    """
    d, device = taus[0].shape[0], taus[0].device
    elect = mean_magnitude if magnitude == "mean" else largest_agreeing
    unified = torch.empty(d, device=device)
    bits = [torch.empty(packed_length(d), dtype=torch.uint8, device=device) for _ in taus]
    sums = torch.zeros(len(taus), 5, dtype=torch.float64, device=device)
    for start, stop in blocks(d, None if device.type == "cpu" else GPU_BLOCK):
        parts = [tau[start:stop] for tau in taus]
        sigma = elected_sign(parts)
        tau_block = torch.mul(sigma, elect(parts, sigma), out=unified[start:stop])  # τ = σ ⊙ μ
        for row, tau in enumerate(parts):
            mask = agreeing(tau, tau_block)
            bits[row][start // 8 : packed_length(stop)] = pack(mask)  # (B,) bool -> (ceil(B / 8),) uint8
            sums[row] += norms(tau, mask, tau_block)
    return unified, bits, [Norms(*row) for row in sums.tolist()]


# ---------------------------------------------------------------- the operator


def unify(
    task_vectors: Mapping[str, Any],
    *,
    magnitude: Magnitude = "mean",
    reconstruction: Reconstruction = "complete",
) -> UnifiedTaskVector:
    """Elect, mask and rescale the task vectors of one client (method, client steps 2 and 3).

    The sum that elects the sign runs in float64 over the tasks in the order of their names, so the result does not
    depend on the order of the mapping and masks are the same bits on every machine.

    Parameters
    ----------
    task_vectors : mapping of str to Tensor, ndarray or list of numbers
        τ^t by task, (d,), any d ≥ 0, all on one device, with no number above 10³⁰ in magnitude. float32 is read where
        it is, so that it may be a memory-mapped file larger than memory; other floating-point types are converted. A
        mapping of a model's tensors is refused: what of it is the task vector, and in which order, is yours to say
        (`matu_flwr.vectors.ParameterLayout`).
    magnitude : {"mean", "max"}
        μ: the mean over all tasks; or the largest magnitude of tasks that agree with the elected sign, as published.
    reconstruction : {"complete", "masked"}
        Give cleared bits a rescaler of their own; or make modulators for the published reconstruction, where they
        stand for nothing. `unify(task_vectors, **PAPER)` is the published operator.

    Returns
    -------
    UnifiedTaskVector
        With `.vector` (d,) float32, `.masks` as `PackedMasks`, `.rescalers` and, where complete, `.opposites`. One
        task: `.vector` is a copy of that task's vector and its rescaler is 1.

    Raises
    ------
    MergeError
        See `as_task_vectors` and `check_magnitudes`; a switch that does not exist.

    Notes
    -----
    Numbers below 1.4e-45, the smallest of float32, are 0: a mean magnitude may be, and then nothing is elected there. A
    rescaler is 10⁶ at most. So `reconstruct` never overflows, and nothing of the result is refused by the wire.

    One pass over the data. Working memory beyond inputs and outputs: a few blocks of parameters per thread. The first
    call of a process loads the compiled kernels, and the first on a machine compiles them.
    """
    check_choice("magnitude", magnitude, get_args(Magnitude))
    check_choice("reconstruction", reconstruction, get_args(Reconstruction))
    vectors = as_task_vectors(task_vectors)
    tasks = sorted(vectors)
    taus = [vectors[task] for task in tasks]
    run = for_device(taus[0].device).unify or elect_and_mask
    unified, bits, found = run(taus, magnitude)
    # The norm is not below any of its numbers, and NaN is not below anything.
    if not all(of_task.own <= MAX_MAGNITUDE for of_task in found):
        check_magnitudes(vectors)
    masks = PackedMasks(dict(zip(tasks, bits, strict=True)), unified.shape[0])
    both = {task: rescalers(of_task, reconstruction) for task, of_task in zip(tasks, found, strict=True)}
    opposites = {task: opposite for task, (_, opposite) in both.items()} if reconstruction == "complete" else {}
    return UnifiedTaskVector(unified, masks, {task: own for task, (own, _) in both.items()}, opposites)


@functools.cache
def warm_up() -> threading.Thread:
    """Load what `unify` on a CPU needs, once per process, in a thread of its own, which is returned.

    A process that trains first has the kernels then when it needs them: where every message has a process of its own,
    loading them would be the larger part of `unify`.
    """
    loading = threading.Thread(target=unify, args=({"none": torch.zeros(1)},), name="matu-warm-up", daemon=True)
    loading.start()
    return loading
