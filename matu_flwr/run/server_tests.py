"""The server's own tests of the task vectors τ^t, before they are compressed, on the test sets that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from logging import WARNING

from flwr.common.logger import log

from matu_flwr.backbones import Backbone, LinearHead
from matu_flwr.client import UnusableModel, evaluate
from matu_flwr.client.node import HeldTask
from matu_flwr.config import paths
from matu_flwr.config.settings import Settings
from matu_flwr.events import Event
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.round_books import accuracy_event
from matu_flwr.tasks.datasets import task_data
from matu_flwr.tasks.errors import TaskError
from matu_flwr.tasks.suite import Suite


def test_on_server(
    strategy: ManyTaskStrategy,
    backbone: Backbone,
    settings: Settings,
    suite: Suite,
    heads: Mapping[str, LinearHead],
    observe: Callable[[Event], None],
) -> None:
    """Test every task's model θ_p + τ^t on the whole test set of the task, and record accuracy and loss.

    θ_p are the pre-trained weights and τ^t is the task vector that the server holds. A task is skipped with a warning
    if it is not in the suite (a node with its own data), if its files are not on this machine, or if its classes differ
    from those of the clients.
    """
    accuracy, loss = {}, {}
    for task, classes in strategy.classes.items():
        if task not in heads or task not in strategy.task_vectors:
            continue
        if task not in suite.tasks:
            log(WARNING, "no test on the server for task %s: it is not in suite %s", task, suite.name)
            continue
        data = str(paths.data_dir(settings) or "")
        cache = str(paths.cache_dir(settings))
        try:
            found = task_data(settings.suite, task, backbone.image_size, settings.seed, data, cache)
        except TaskError as error:
            log(WARNING, "no test on the server for task %s: %s", task, error)
            continue
        if found.classes != classes:
            log(WARNING, "no test on the server for task %s: its classes here differ from those of the clients", task)
            continue
        try:
            result = evaluate(backbone, strategy.task_vectors[task], heads[task], HeldTask.whole(found).test, task=task)
        except UnusableModel as error:
            log(WARNING, "no test on the server for task %s: %s", task, error)
            continue
        accuracy[task] = result.correct / result.examples
        loss[task] = result.loss
    if accuracy:
        observe(accuracy_event(strategy.num_rounds, accuracy, loss, "server"))
