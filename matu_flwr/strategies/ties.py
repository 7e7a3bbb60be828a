"""TIES-Merging: trim, elect signs, merge what agrees; one model for all tasks.

Yadav, Tam, Choshen, Raffel, Bansal: TIES-Merging: Resolving Interference When Merging Models. NeurIPS 2023.
https://arxiv.org/abs/2306.01708

`ties.keep` and `ties.scale` are the paper's recipe without validation data: the top 20 % by magnitude, λ = 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from matu_flwr.merging import PAPER, UnifiedTaskVector, unify
from matu_flwr.merging.averages import ties
from matu_flwr.strategies.one_shot import OneShotMerge


class TIES(OneShotMerge):
    """The disjoint mean of trimmed vectors."""

    about = "one-shot: trim, elect, merge what agrees"
    paper = "https://arxiv.org/abs/2306.01708"
    section = "ties"

    def merge_tasks(self, task_vectors: Mapping[str, Tensor]) -> UnifiedTaskVector:
        """The merged vector for every task."""
        options = self.settings.ties
        return unify(dict.fromkeys(task_vectors, ties(task_vectors, options.keep, options.scale)), **PAPER)
