"""What the upper bounds on pooled images share.

Nothing of this is federated. Clients register, so that the tasks are those of the other methods; then this process
trains on the whole training set of every task that somebody holds, which it has to have itself (the suite's files), and
tests on the whole test set. A round is as many steps of a task as all of its holders take together under the other
methods, so as many images are seen in all. Nothing travels.
"""

from __future__ import annotations

import functools
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch

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
    """Trains and tests in the server's process; see `ManyTaskStrategy` for the parameters."""

    rule: ClassVar[type[Rule]] = Alone
    model: Backbone

    @abstractmethod
    def train_pools(self, pools: Mapping[str, HeldTask], round_: int) -> None:
        """Move `task_vectors` and `heads` on by one round."""

    def downlink_vector(self, client: Client) -> TaskVectors | None:
        """Nothing travels."""
        return None

    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Nothing comes back."""
        return None

    def train_round(self, server_round: int) -> None:
        """One round in this process."""
        if self.settings.train.threads:
            torch.set_num_threads(self.settings.train.threads)
        self.begin(server_round)
        began = time.monotonic()
        self.train_pools(self._pools, server_round)
        self._round.server_seconds = time.monotonic() - began
        self.finish_round()

    def test_round(self, server_round: int) -> None:
        """Test here what a round gave, and before the first what all start from."""
        if server_round == 0:
            self.heads = self.first_heads()
        if self.is_tested(server_round) or server_round in (0, self.num_rounds):
            self.test(self._pools, server_round)

    @functools.cached_property
    def _pools(self) -> dict[str, HeldTask]:
        return self.pools()

    def pools(self) -> dict[str, HeldTask]:
        """All images of every task that somebody holds.

        Raises
        ------
        SettingsError
            A task of the clients is not of the suite, or has other classes here.
        """
        settings, suite = self.settings, load_suite(self.settings.suite)
        data, cache = str(paths.data_dir(settings) or ""), str(paths.cache_dir(settings))
        found = {}
        for task, classes in self.classes.items():
            if task not in suite.tasks:
                raise SettingsError(
                    f"strategy {settings.strategy!r} trains on pooled images, and task {task!r} is not of suite "
                    f"{settings.suite!r}: the server has no images of it"
                )
            whole = task_data(settings.suite, task, self.model.image_size, settings.seed, data, cache)
            if whole.classes != classes:
                raise SettingsError(
                    f"strategy {settings.strategy!r}: task {task!r} has classes {list(whole.classes)[:5]} on the "
                    f"server, expected the clients' {list(classes)[:5]}"
                )
            found[task] = HeldTask.whole(whole)
        return found

    def first_heads(self) -> dict[str, LinearHead]:
        """Zeros, or the frozen heads."""
        settings = self.settings
        if settings.train.heads != "zero-shot":
            return {task: zero_head(len(names), self.model.num_features) for task, names in self.classes.items()}
        suite = load_suite(settings.suite).tasks
        prompts = {task: Prompts(names, suite[task].templates) for task, names in self.classes.items()}
        return zero_shot_heads(settings.backbone.name, prompts, settings.backbone.heads_file).heads

    def test(self, pools: Mapping[str, HeldTask], round_: int) -> None:
        """Test every task's model on its whole test set."""
        found: dict[str, Evaluation] = {
            task: evaluate(
                self.model,
                self.task_vectors.get(task),
                self.heads[task],
                pool.test,
                self.settings.train.precision,
            )
            for task, pool in pools.items()
        }
        accuracy = {task: result.correct / result.examples for task, result in found.items()}
        self.observe(accuracy_event(round_, accuracy, {t: result.loss for t, result in found.items()}, "clients"))

    def share(self, task: str, pool: HeldTask, round_: int) -> TaskShare:
        """Head, images and seed of a task in a round."""
        seed = derive_seed(self.settings.seed, "central", round_, task)
        return TaskShare(self.heads[task], pool.train, seed)

    def steps(self, task: str) -> int:
        """Steps of a round: those of all holders together."""
        return self.settings.train.steps * len(self.holders(task))
