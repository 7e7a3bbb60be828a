"""What the two upper bounds share: they train on the pooled images of all clients, in the server's process.

Nothing here is federated, and nothing travels. Clients only register, so that the tasks are the same as under the other
methods. The server then trains on the whole training set of every task that a client holds, and tests on its whole test
set, so it needs the suite's files itself. In a round it takes as many steps on a task as all holders of that task take
together under the other methods. So every method sees the same number of images.
"""

from __future__ import annotations

import functools
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from typing_extensions import override

from matu_flwr.backbones import Backbone, LinearHead, Prompts, zero_head, zero_shot_heads
from matu_flwr.client import Evaluation, evaluate
from matu_flwr.client.fit import TaskShare
from matu_flwr.client.node import HeldTask
from matu_flwr.client.rule import Alone, Rule
from matu_flwr.config import paths
from matu_flwr.config.settings import SettingsError
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.registration import Client
from matu_flwr.federation.round_books import accuracy_event
from matu_flwr.merging import ClientUpdate, TaskGraph, TaskVectors
from matu_flwr.seeds import derive_seed
from matu_flwr.tasks.datasets import task_data
from matu_flwr.tasks.suite import load_suite


class Central(ManyTaskStrategy):
    """Base of the methods that train and test in the server's process; see `ManyTaskStrategy` for the parameters."""

    rule: ClassVar[type[Rule]] = Alone
    model: Backbone

    @abstractmethod
    def train_pools(self, pools: Mapping[str, HeldTask], round_: int) -> None:
        """Train for one round, and put the results into `task_vectors` and `heads`.

        Parameters
        ----------
        pools : mapping of str to HeldTask
            All images of each task.
        round_ : int
            From 1.
        """

    @override
    def downlink_vector(self, client: Client) -> TaskVectors | None:
        return None

    @override
    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        return None

    @override
    def train_round(self, server_round: int) -> None:
        """Train for one round in this process, without asking any client."""
        if self.settings.train.threads:
            torch.set_num_threads(self.settings.train.threads)
        self.begin(server_round)
        began = time.monotonic()
        self.train_pools(self._pools, server_round)
        self._round.server_seconds = time.monotonic() - began
        self.finish_round()

    @override
    def test_round(self, server_round: int) -> None:
        """Test the models of this round here. Round 0 stands for the start: θ_p with its first heads."""
        if server_round == 0:
            self.heads = self.first_heads()
        if self.is_tested(server_round) or server_round in (0, self.num_rounds):
            self.test(self._pools, server_round)

    @functools.cached_property
    def _pools(self) -> dict[str, HeldTask]:
        return self.pools()

    def pools(self) -> dict[str, HeldTask]:
        """All images of every task that a client holds, read from the suite's files.

        Raises
        ------
        SettingsError
            A client's task is not in the suite, or has other classes there.
        """
        settings, suite = self.settings, load_suite(self.settings.suite)
        data, cache = str(paths.data_dir(settings) or ""), str(paths.cache_dir(settings))
        found = {}
        for task, classes in self.classes.items():
            if task not in suite.tasks:
                raise SettingsError(
                    f"strategy {settings.strategy!r} trains on pooled images, and task {task!r} is not in suite "
                    f"{settings.suite!r}, so the server has no images of it: "
                    "choose a suite that has it, or a strategy that trains at the clients"
                )
            whole = task_data(settings.suite, task, self.model.image_size, settings.seed, data, cache)
            if whole.classes != classes:
                raise SettingsError(
                    f"strategy {settings.strategy!r}: task {task!r} has classes {list(whole.classes)[:5]} on the "
                    f"server, expected {list(classes)[:5]} as at the clients: give both the same suite file"
                )
            found[task] = HeldTask.whole(whole)
        return found

    def first_heads(self) -> dict[str, LinearHead]:
        """Heads before any training, by task: zeros, or the zero-shot heads where `train.heads` asks for them."""
        settings = self.settings
        if settings.train.heads != "zero-shot":
            return {task: zero_head(len(names), self.model.num_features) for task, names in self.classes.items()}
        suite = load_suite(settings.suite).tasks
        prompts = {task: Prompts(names, suite[task].templates) for task, names in self.classes.items()}
        return zero_shot_heads(settings.backbone.name, prompts, settings.backbone.heads_file).heads

    def test(self, pools: Mapping[str, HeldTask], round_: int) -> None:
        """Test every task's model on the task's whole test set, and report the accuracies."""
        found: dict[str, Evaluation] = {
            task: evaluate(
                self.model,
                self.task_vectors.get(task),
                self.heads[task],
                pool.test,
                self.settings.train.precision,
                task=task,
            )
            for task, pool in pools.items()
        }
        accuracy = {task: result.correct / result.examples for task, result in found.items()}
        self.observe(accuracy_event(round_, accuracy, {t: result.loss for t, result in found.items()}, "clients"))

    def share(self, task: str, pool: HeldTask, round_: int) -> TaskShare:
        """What training on a task starts from in this round: the current head, the images, the seed of their order."""
        seed = derive_seed(self.settings.seed, "central", round_, task)
        return TaskShare(self.heads[task], pool.train, seed)

    def steps(self, task: str) -> int:
        """Number of training steps on a task in a round: as many as all of its holders take together."""
        return self.settings.train.steps * len(self.holders(task))
