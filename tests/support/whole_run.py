"""The ServerApp and its clients in this process, as Flower would run them: `python whole_run.py '<json>'` for a
process that can be killed.

    folder, values   see `federation.tiny_values`
    out_dir          of the run
    run_id           of Flower
    kill             where the process kills itself with SIGKILL: "" or a key of KILLS
    round            in which round
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict

import client_app
import server_app
from matu_flwr.config.settings import DEFAULTS
from matu_flwr.files import temporary_name
from matu_flwr.run import checkpoint
from matu_flwr.strategies import ManyTaskStrategy
from tests.support.local_grid import LocalGrid

NODES = 3


def run(
    out_dir: Path,
    values: dict[str, Any],
    *,
    run_id: int = 1,
    nodes: int = NODES,
    tamper: Callable[[Any, dict[str, Any]], Any] | None = None,
    level: int = logging.ERROR,
) -> None:
    """One run to its end, of settings as run config has them."""
    logging.getLogger("flwr").setLevel(level)
    configs = [{"partition-id": i, "num-partitions": nodes} for i in range(nodes)]
    ids = [1000 * run_id + i for i in range(nodes)]  # Flower's are others in every run
    typed = {**values, "out-dir": str(out_dir)}
    grid = LocalGrid(client_app.app, configs, node_ids=ids, tamper=tamper, run_id=run_id, typed=typed)
    context = Context(run_id, 1, {}, RecordDict(), {**DEFAULTS, **typed})
    server_app.main(grid, context)


# --- where it dies ---


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer:
    """Kills this process at a place of a round."""

    def __init__(self, place: str, round_: int) -> None:
        self.place, self.round, self.now, self.replies = place, round_, 0, 0
        begin, merge_heads = ManyTaskStrategy.begin, ManyTaskStrategy._merge_heads

        def beginning(strategy: ManyTaskStrategy, server_round: int) -> None:
            self.now = server_round
            begin(strategy, server_round)

        def merging(strategy: ManyTaskStrategy) -> None:  # the vectors are merged, the heads are not
            self.at("aggregation")
            merge_heads(strategy)

        ManyTaskStrategy.begin = beginning  # type: ignore[method-assign]
        ManyTaskStrategy._merge_heads = merging  # type: ignore[method-assign]
        for module, name, place in (
            (checkpoint, "save_file", "tensors"),
            (checkpoint, "write_json", "text"),
            (os, "replace", "client"),
        ):
            setattr(module, name, self.torn(getattr(module, name), place))

    def at(self, place: str) -> None:
        if self.place == place and self.now == self.round:
            die()

    def reply(self, reply: Any, config: dict[str, Any]) -> Any:
        """After the first client of a round has trained, kept its own state, and answered."""
        if self.now == self.round:
            self.replies += 1
            if self.replies == 2:
                self.at("training")
        return reply

    def torn(self, write: Callable[..., Any], place: str) -> Callable[..., Any]:
        """Half of what is written; what is half there has its temporary name."""

        def half(*arguments: Any, **options: Any) -> Any:
            if self.place != place or self.now != self.round:
                return write(*arguments, **options)
            if place == "tensors":
                write(*arguments, **options)
                path = Path(arguments[1])
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            if place == "text":
                text = json.dumps(arguments[1])
                temporary_name(arguments[0]).write_text(text[: len(text) // 2])
            die()

        return half


KILLS = ("training", "aggregation", "tensors", "text", "client")


if __name__ == "__main__":
    torch.set_num_threads(1)
    told = json.loads(sys.argv[1])
    killer = Killer(told["kill"], told["round"])
    run(Path(told["out_dir"]), told["values"], run_id=told["run_id"], tamper=killer.reply)
