"""Client-side differential privacy: a task's update is clipped and noised before it is used for anything.

McMahan, Ramage, Talwar, Zhang: Learning Differentially Private Recurrent Language Models. ICLR 2018 (clip and noise a
client's update); Dwork, Roth: The Algorithmic Foundations of Differential Privacy. 2014, appendix A (the Gaussian
mechanism).

In round r client n releases for its task t

    y = x · min(1, S / ‖x‖₂) + N(0, σ² S² I),    x = (θ_n^t − start, head − its start)

with S = `privacy.clip-norm` and σ = `privacy.noise-multiplier`. A trained head is part of x, so backbone and head have
one common norm and are clipped together. Both starts come from the server. All that is sent or kept (unified vector,
masks, rescalers, residuals) is computed from y, which costs no further privacy. The mean training loss also tells
something about the images, so it is withheld.

Two data sets are neighbours if all of client n's training images of task t are replaced by as many others. The clipped
x then moves by at most 2S, so a release is a Gaussian mechanism with noise multiplier σ / 2: see
`federation.privacy_books`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from matu_flwr.backbones import LinearHead
from matu_flwr.client.fit import FitResult
from matu_flwr.config.sections import PrivacySettings
from matu_flwr.merging.blocks import blocks


def gaussian_mechanism(
    parts: Sequence[Tensor], clip_norm: float, noise_multiplier: float, chance: np.random.Generator
) -> list[Tensor]:
    """Clip the parts of one vector together, and add noise to each.

    Parameters
    ----------
    parts : sequence of Tensor
        Any shapes, float32, on the CPU. All of them end to end are the vector x.
    clip_norm : float > 0
        S, the largest norm of x that is not clipped.
    noise_multiplier : float ≥ 0
        σ, the noise's standard deviation in units of S.
    chance : numpy.random.Generator
        Where the noise comes from.

    Returns
    -------
    list of Tensor
        y: new tensors of the same shapes, float32.
    """
    norm = math.sqrt(
        math.fsum(float(flat[a:b].double().square().sum()) for flat in map(_flat, parts) for a, b in blocks(len(flat)))
    )
    ratio = 1.0 if norm <= clip_norm else clip_norm / norm
    released = []
    for part in parts:
        flat = _flat(part)
        noised = torch.empty_like(flat)
        for start, stop in blocks(len(flat)):
            noise = torch.from_numpy(chance.standard_normal(stop - start))
            noised[start:stop] = flat[start:stop].double() * ratio + noise_multiplier * clip_norm * noise
        released.append(noised.view(part.shape))
    return released


def _flat(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1)


def private_result(
    result: FitResult,
    start: Tensor | None,
    head: LinearHead,
    options: PrivacySettings,
    chance: np.random.Generator | None = None,
) -> FitResult:
    """The part of a task's training that others may know: start + y, and no loss.

    Parameters
    ----------
    result : FitResult
        As trained.
    start : Tensor, optional
        τ that training started from, (d,) float32; None is θ_p.
    head : LinearHead
        The head that training started from. A frozen one comes back unchanged.
    options : PrivacySettings
        S and σ.
    chance : numpy.random.Generator, optional
        By default a new one, seeded by the operating system. It must not be seeded by the run's seed: the server knows
        that, and could subtract the noise again.

    Returns
    -------
    FitResult
        Its loss is NaN.
    """
    chance = np.random.default_rng() if chance is None else chance
    origin = torch.zeros_like(result.task_vector) if start is None else start
    parts = [result.task_vector - origin]
    if not head.zero_shot:
        parts += [result.head.weight - head.weight, result.head.bias - head.bias]
    moved = gaussian_mechanism(parts, options.clip_norm, options.noise_multiplier, chance)
    released = head if head.zero_shot else LinearHead(head.weight + moved[1], head.bias + moved[2])
    return FitResult(origin + moved[0], released, math.nan)
