"""Upper bound: one model per task, on the pooled images of all of its holders."""

from __future__ import annotations

from collections.abc import Mapping

from typing_extensions import override

from matu_flwr.client import fit
from matu_flwr.client.fit import Span
from matu_flwr.client.node import HeldTask
from matu_flwr.strategies.central import Central


class CentralIndividual(Central):
    """Fine-tune one model per task on the pooled images of the task: the most that its holders could reach together."""

    about = "upper bound: a task's pooled images, one model per task"

    @override
    def train_pools(self, pools: Mapping[str, HeldTask], round_: int) -> None:
        for task, pool in pools.items():
            share, steps = self.share(task, pool, round_), self.steps(task)
            result = fit(
                self.model,
                self.task_vectors.get(task),
                share.head,
                share.data,
                self.settings.train.model_copy(update={"steps": steps}),
                seed=share.seed,
                task=task,
                span=Span((round_ - 1) * steps, self.num_rounds * steps),
            )
            self.task_vectors[task], self.heads[task] = result.task_vector, result.head
