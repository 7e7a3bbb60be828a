"""A task learns from related tasks (method, server step 5)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from matu_flwr.merging.options import MergeOptions


def combine_related(
    tau: Tensor, mask: Tensor, related: Mapping[str, Tensor], weights: Mapping[str, float], options: MergeOptions
) -> Tensor:
    """Mix the vectors of related tasks into one task's vector, over one block.

    Parameters
    ----------
    tau : Tensor
        τ̂^t, (B,).
    mask : Tensor
        m̂^t, (B,) in [0, 1]: other tasks reach task t only where its holders agree.
    related : mapping of str to Tensor
        τ̂^{t'} of each t' in Z^t, (B,).
    weights : mapping of str to float
        Weight w of each t' in Z^t.
    options : MergeOptions
        `combine` is read.

    Returns
    -------
    Tensor
        mean: (τ̂^t + Σ w m̂^t ⊙ τ̂^{t'}) / (1 + Σ w);  sum: τ̂^t + 1/|Z^t| Σ w m̂^t ⊙ τ̂^{t'};  τ̂^t itself if Z^t is empty.
    """
    if not related:
        return tau
    borrowed = sum((weights[other] * related[other] for other in related), start=tau.new_zeros(()))
    if options.combine == "mean":
        return (tau + mask * borrowed) / (1 + sum(weights.values()))
    return tau + mask * borrowed / len(related)
