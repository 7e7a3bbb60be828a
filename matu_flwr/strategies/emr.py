"""EMR-Merging: elect, mask and rescale all tasks' vectors once, without a cross-task step.

Huang, Ye, Yuan, Chen, Zhang, Cai, Wang, Liu, Ouyang: EMR-Merging: Tuning-Free High-Performance Model Merging. NeurIPS
2024. https://arxiv.org/abs/2405.17461

The server merges the tasks' vectors as they are (holders send one per task, uncompressed), with the operator of
`merging.unify`. A client gets the one vector and the modulators of its own tasks.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from matu_flwr.merging import PAPER, UnifiedTaskVector, unify
from matu_flwr.strategies.one_shot import OneShotMerge


class EMR(OneShotMerge):
    """One unified vector over all tasks, with a mask and a rescaler for each."""

    about = "one-shot: elect, mask, rescale over all tasks"
    paper = "https://arxiv.org/abs/2405.17461"

    def merge_tasks(self, task_vectors: Mapping[str, Tensor]) -> UnifiedTaskVector:
        """Elect, mask, rescale."""
        return unify(task_vectors, **PAPER)
