"""EMR-Merging: elect, mask and rescale all tasks' vectors once, without a cross-task step.

Huang, Ye, Yuan, Chen, Zhang, Cai, Wang, Liu, Ouyang: EMR-Merging: Tuning-Free High-Performance Model Merging. NeurIPS
2024. https://arxiv.org/abs/2405.17461

The operator is that of `merging.unify`. MaTU's clients apply it to their own tasks in every round; here the server
applies it once, to the vectors of all tasks. Holders send these one per task, without unifying them. A client gets the
one unified vector, and the mask and rescaler of each of its tasks.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from typing_extensions import override

from matu_flwr.merging import PAPER, UnifiedTaskVector, unify
from matu_flwr.strategies.one_shot import OneShotMerge


class EMR(OneShotMerge):
    """One unified vector over all tasks, with a mask and a rescaler for each."""

    about = "one-shot: elect, mask, rescale over all tasks"
    paper = "https://arxiv.org/abs/2405.17461"

    @override
    def merge_tasks(self, task_vectors: Mapping[str, Tensor]) -> UnifiedTaskVector:
        return unify(task_vectors, **PAPER)
