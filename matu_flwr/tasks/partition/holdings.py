"""The partition that a run's settings describe. Nodes and the manifest both use this module, so that they agree."""

from __future__ import annotations

import functools

from matu_flwr.config.settings import Settings
from matu_flwr.tasks.partition.partition import SplitRule, deal
from matu_flwr.tasks.suite import load_suite


# Cached, because a process that simulates many clients asks once for each of them.
@functools.lru_cache(maxsize=4)
def deal_suite(settings: Settings, num_clients: int) -> list[list[str]]:
    """The tasks of each client by partition id, from the run's suite and its section `partition`."""
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
    """How this run splits a task's training images among its holders."""
    part = settings.partition
    return SplitRule(part.split, part.alpha, part.min_examples)
