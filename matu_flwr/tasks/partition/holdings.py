"""The partition of a suite as a run's settings have it: nodes and the manifest ask here, so that they agree."""

from __future__ import annotations

import functools

from matu_flwr.config.settings import Settings
from matu_flwr.tasks.partition.partition import SplitRule, deal
from matu_flwr.tasks.suite import load_suite


@functools.lru_cache(maxsize=4)
def deal_suite(settings: Settings, num_clients: int) -> list[list[str]]:
    """Tasks of the run's suite by partition id; remembered, as a thousand simulated clients ask in turn."""
    part = settings.partition
    return deal(
        list(load_suite(settings.suite).tasks),
        num_clients,
        min_tasks=part.min_tasks,
        max_tasks=part.max_tasks,
        seed=settings.seed,
        how=part.deal,
        task_alpha=part.task_alpha,
    )


def split_rule(settings: Settings) -> SplitRule:
    """How a task's training images are split among its holders."""
    part = settings.partition
    return SplitRule(part.split, part.alpha, part.classes_per_holder, part.min_examples)
