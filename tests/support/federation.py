"""A small federation in this process: four tasks of the generated suite, a few clients, seconds to run."""

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import client_app
from matu_flwr.backbones import backbone_arguments, create_backbone
from matu_flwr.client import ClientState
from matu_flwr.client.client_round import ClientRound
from matu_flwr.client.node import node_of
from matu_flwr.config.settings import Settings
from matu_flwr.strategies import ManyTaskStrategy, create, prepared
from tests.support.local_grid import LocalGrid

TINY_SUITE = """
name: tiny
description: four generated tasks in two pairs
max_train: 96
max_test: 24
tasks:
  dots: {group: counts, loader: generated, options: {family: counts, style: dots}}
  squares: {group: counts, loader: generated, options: {family: counts, style: squares}}
  gratings: {group: orientations, loader: generated, options: {family: orientations, style: gratings}}
  stripes: {group: orientations, loader: generated, options: {family: orientations, style: stripes}}
"""


def tiny_values(folder: Path, **values: Any) -> dict[str, Any]:
    """Run-config values of a run that takes seconds; keys with _ for - and __ for a section's dot.

    The decoded images lie where all tests of a session find them; name another `cache_dir` to look into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    suite = folder / "tiny.yaml"
    suite.write_text(TINY_SUITE)
    base = {
        "suite": str(suite),
        "cache-dir": os.environ.get("MATU_TEST_CACHE", str(folder / "cache")),
        "state-dir": str(folder / "state"),
        "rounds": 2,
        "train.steps": 2,
        "train.batch-size": 8,
        "partition.min-examples": 4,
    }
    return base | {key.replace("__", ".").replace("_", "-"): value for key, value in values.items()}


class Federation:
    """Strategy, grid and the events of one run."""

    def __init__(
        self,
        folder: Path,
        *,
        num_clients: int = 4,
        grid: dict[str, Any] | None = None,
        after_round: Callable[[ManyTaskStrategy], None] | None = None,
        **values: Any,
    ) -> None:
        logging.getLogger("flwr").setLevel(logging.ERROR)
        self.settings = prepared(Settings.from_run_config(tiny_values(folder, **values)))
        self.backbone = create_backbone(**backbone_arguments(self.settings))
        self.events: list[dict[str, Any]] = []
        nodes = [{"partition-id": i, "num-partitions": num_clients} for i in range(num_clients)]
        self.grid = LocalGrid(client_app.app, nodes, **(grid or {}))
        self.strategy: ManyTaskStrategy = create(
            self.settings.strategy,
            self.settings,
            self.backbone,
            observer=self.events.append,
            after_round=after_round,
        )

    def run(self) -> "Federation":
        self.strategy.start(self.grid)
        return self

    def by_hand(self, partition: int, folder: Path) -> ClientRound:
        """The first round of a client of four, without Flower."""
        node = node_of(self.settings, {"partition-id": partition, "num-partitions": 4}, self.backbone.image_size)
        return ClientRound(
            node,
            self.backbone,
            self.settings,
            1,
            rule=self.strategy.rule,
            received=None,
            heads={},
            state=ClientState(folder, "by-hand", node.client),
            kept_from=1,
        )

    def of(self, kind: str, where: Callable[[dict[str, Any]], bool] = lambda event: True) -> list[dict[str, Any]]:
        """Events of a kind."""
        return [event for event in self.events if event["event"] == kind and where(event)]


@functools.lru_cache(maxsize=64)
def finished(**values: Any) -> Federation:
    """A federation that has run with these values: one for all tests that only read it.

    Never compare it with `finished` of the same values: that is itself.
    """
    folder = Path(os.environ["MATU_TEST_CACHE"]).with_name("finished") / uuid4().hex
    return Federation(folder, **values).run()
