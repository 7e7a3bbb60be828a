"""TIES-Merging: trim small numbers, elect a sign, average what agrees with it; one model for all tasks.

Yadav, Tam, Choshen, Raffel, Bansal: TIES-Merging: Resolving Interference When Merging Models. NeurIPS 2023.
https://arxiv.org/abs/2306.01708

By default, `ties.keep` and `ties.scale` are what the paper advises without validation data: keep the largest 20 % of
the numbers by magnitude, and scale the merged vector by λ = 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor
from typing_extensions import override

from matu_flwr.merging import PAPER, UnifiedTaskVector, unify
from matu_flwr.merging.averages import ties
from matu_flwr.strategies.one_shot import OneShotMerge


class TIES(OneShotMerge):
    """For each parameter, the mean of those trimmed vectors that agree with the elected sign."""

    about = "one-shot: trim, elect, merge what agrees"
    paper = "https://arxiv.org/abs/2306.01708"
    section = "ties"

    @override
    def merge_tasks(self, task_vectors: Mapping[str, Tensor]) -> UnifiedTaskVector:
        options = self.settings.ties
        return unify(dict.fromkeys(task_vectors, ties(task_vectors, options.keep, options.scale)), **PAPER)

    @override
    def gain(self, tasks: int) -> float:
        """λ √T: no number is larger than the largest of its parameter, and these add up over parameters."""
        return max(1.0, self.settings.ties.scale * math.sqrt(tasks))
