"""Upper bound: one model for all tasks, on all pooled images."""

from __future__ import annotations

from collections.abc import Mapping

from typing_extensions import override

from matu_flwr.client.fit import Span, fit_jointly
from matu_flwr.client.node import HeldTask
from matu_flwr.strategies.central import Central


class CentralMTL(Central):
    """Joint training of one model on the pooled images of all tasks.

    Steps alternate over the tasks, and every task gets the same number of them: the mean, over the tasks, of the steps
    that the holders of a task take together.
    """

    about = "upper bound: all pooled images, one model for all tasks"

    @override
    def train_pools(self, pools: Mapping[str, HeldTask], round_: int) -> None:
        steps = max(1, round(sum(self.steps(task) for task in pools) / len(pools)))
        vector, heads, _ = fit_jointly(
            self.model,
            # Any task will do: all of them have the same vector.
            self.task_vectors.get(min(pools)),
            {task: self.share(task, pool, round_) for task, pool in pools.items()},
            self.settings.train.model_copy(update={"steps": steps}),
            span=Span((round_ - 1) * steps, self.num_rounds * steps),
        )
        self.task_vectors = dict.fromkeys(pools, vector)
        self.heads = heads
