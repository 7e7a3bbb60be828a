"""Task arithmetic: θ_p + λ Σ_t τ^t, one model for all tasks.

Ilharco, Ribeiro, Wortsman, Gururangan, Schmidt, Hajishirzi, Farhadi: Editing Models with Task Arithmetic. ICLR 2023.
https://arxiv.org/abs/2212.04089

λ is `task-arithmetic.scale`. The paper chooses it on validation data; here the user gives it. Every task keeps its own
head.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from typing_extensions import override

from matu_flwr.merging import PAPER, UnifiedTaskVector, unify
from matu_flwr.merging.averages import task_arithmetic
from matu_flwr.strategies.one_shot import OneShotMerge


class TaskArithmetic(OneShotMerge):
    """The scaled sum of all tasks' vectors."""

    about = "one-shot: θ_p + λ Σ τ for all tasks"
    paper = "https://arxiv.org/abs/2212.04089"
    section = "task-arithmetic"

    @override
    def merge_tasks(self, task_vectors: Mapping[str, Tensor]) -> UnifiedTaskVector:
        merged = task_arithmetic(task_vectors, self.settings.task_arithmetic.scale)
        return unify(dict.fromkeys(task_vectors, merged), **PAPER)

    @override
    def gain(self, tasks: int) -> float:
        """λ T: as long as the sum is if all tasks have the same vector."""
        return max(1.0, self.settings.task_arithmetic.scale * tasks)
