"""Measure a deployment on this machine: seconds per round and their parts, and the memory of each process.

A real SuperLink and real SuperNodes run here. As in any deployment of Flower, each message to a client gets a process
of its own. For comparison, a second app runs on the same processes and gives the least time that Flower itself needs:
it sends as many numbers down and back as one client's vector has, and does nothing else.

    python benchmarks/deployment.py --json deployment.json
    python benchmarks/deployment.py --model vit_small_patch32_224 --rounds 3 --steps 1 --batch-size 4
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measuring

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.deployment import Deployment, ended, events  # noqa: E402  # the processes that the tests start, too

TASKS = ("dots", "squares", "gratings", "stripes")
SUITE = """
name: measured
description: four generated tasks
tasks:
  dots: {group: counts, loader: generated, options: {family: counts, style: dots, train: 64, test: 16}}
  squares: {group: counts, loader: generated, options: {family: counts, style: squares, train: 64, test: 16}}
  gratings:
    {group: orientations, loader: generated, options: {family: orientations, style: gratings, train: 64, test: 16}}
  stripes:
    {group: orientations, loader: generated, options: {family: orientations, style: stripes, train: 64, test: 16}}
"""

FLOOR_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "floor"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "floor"

[tool.flwr.app.components]
serverapp = "floor_server:app"
clientapp = "floor_client:app"

[tool.flwr.app.config]
numbers = 1
rounds = 1
nodes = 1
out = ""
"""
FLOOR_CLIENT = """
from flwr.app import Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    return Message(message.content, reply_to=message)
"""
FLOOR_SERVER = """
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    while len(nodes := list(grid.get_node_ids())) < config["nodes"]:
        time.sleep(0.1)
    sent = np.random.default_rng(0).standard_normal(config["numbers"], dtype=np.float32)
    seconds = []
    for round_ in range(config["rounds"]):
        began = time.monotonic()
        record = RecordDict({"arrays": ArrayRecord({"vector": Array(sent)})})
        replies = grid.send_and_receive([Message(record, node, "train", group_id=str(round_)) for node in nodes])
        for reply in replies:
            assert np.array_equal(reply.content["arrays"]["vector"].numpy(), sent)
        seconds.append(time.monotonic() - began)
    Path(config["out"]).write_text(json.dumps(seconds))
"""


class Memory:
    """The largest resident memory of each kind of process of a deployment, sampled while it runs."""

    KINDS = ("flower-superlink", "flower-supernode", "flwr-serverapp", "flwr-clientapp", "flower-superexec")

    def __init__(self, home: Path) -> None:
        self.home = str(home)
        self.most: dict[str, int] = {}

    def sample(self) -> None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_text().split("\0")
                if f"FLWR_HOME={self.home}" not in (folder / "environ").read_text().split("\0"):
                    continue
                found = re.search(r"VmHWM:\s+(\d+) kB", (folder / "status").read_text())
            except (OSError, UnicodeDecodeError):  # ended meanwhile
                continue
            kind = next((kind for kind in self.KINDS for word in command[:3] if Path(word).name == kind), None)
            if kind and found:
                self.most[kind] = max(self.most.get(kind, 0), int(found[1]) * 1024)

    @contextmanager
    def watched(self) -> Iterator[None]:
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.1):
                self.sample()

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def parts(history: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Seconds of each round after the first, as median and spread: what clients do at the same time counts once."""
    found: dict[str, list[float]] = {}
    history = list(history)
    for finished in history:
        if finished["event"] != "round" or finished["round"] == 1:
            continue
        clients = [
            event["seconds"]
            for event in history
            if event["event"] == "client" and event["round"] == finished["round"] and event["phase"] == "train"
        ]
        slowest = max(clients, key=lambda seconds: sum(seconds.values()))
        spent = {"round": finished["seconds"]["total"], "server": finished["seconds"]["server"]}
        spent |= {f"client: {activity}": seconds for activity, seconds in slowest.items()}
        spent["everything else"] = 2 * spent["round"] - sum(spent.values())
        for name, seconds in spent.items():
            found.setdefault(name, []).append(seconds)
    return {name: measuring.summary(values) for name, values in found.items()}


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=3, help="of each node, at most 4")
    parser.add_argument("--model", default="vit_mini_clip_32")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    chosen = parser.parse_args()
    weights = "pretrained" if chosen.model == "vit_mini_clip_32" else "random"

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "suite.yaml").write_text(SUITE)
        values: dict[str, Any] = {
            "suite": str(folder / "suite.yaml"),
            "out-dir": str(folder / "run"),
            "cache-dir": str(folder / "cache"),
            "state-dir": str(folder / "state"),
            "rounds": chosen.rounds,
            "min-nodes": chosen.nodes,
            "evaluate-every": chosen.rounds,
            "server-evaluate": False,
            "partition.min-tasks": chosen.tasks,
            "partition.max-tasks": chosen.tasks,
            "partition.min-examples": 4,
            "train.steps": chosen.steps,
            "train.batch-size": chosen.batch_size,
            "backbone.name": chosen.model,
            "backbone.weights": weights,
        }
        floor = folder / "floor"
        floor.mkdir()
        (floor / "pyproject.toml").write_text(FLOOR_PROJECT)
        (floor / "floor_server.py").write_text(FLOOR_SERVER)
        (floor / "floor_client.py").write_text(FLOOR_CLIENT)
        with Deployment(folder / "deployment", chosen.nodes) as deployment:
            memory = Memory(folder / "deployment" / "flower")
            with memory.watched():
                deployment.submit(values)
                deployment.wait_for(lambda: ended(folder / "run"), "the end of the run", 3000)
            history = events(folder / "run")
            if history[-1]["status"] != "completed":
                raise SystemExit(f"the run failed: {history[-1]['error']}")
            d = history[0]["backbone"]["d"]
            deployment.app = floor
            out = folder / "floor.json"
            told = {"numbers": d, "rounds": chosen.rounds, "nodes": chosen.nodes, "out": str(out)}
            deployment.submit(told)
            deployment.wait_for(out.exists, "the end of the floor's run", 3000)
            bare = json.loads(out.read_text())[1:]

    seconds = {**parts(history), "Flower alone": measuring.summary(bare)}
    up = [e["bytes_up"] for e in history if e["event"] == "round"]
    measuring.table(
        f"{chosen.nodes} nodes, {chosen.tasks} tasks each, {chosen.model}, d = {d:,}; rounds 2 to {chosen.rounds}",
        {"part": "part", "seconds": "seconds"},
        [{"part": part, "seconds": spent} for part, spent in seconds.items()],
    )
    measuring.table(
        "peak resident memory",
        {"process": "process", "mib": "MiB"},
        [{"process": kind, "mib": most / measuring.MIB} for kind, most in sorted(memory.most.items())],
    )
    found = {"d": d, "seconds": seconds, "peak_bytes": memory.most, "bytes_up_per_round": statistics.median(up)}
    options = {name: value for name, value in vars(chosen).items() if name != "json"}
    measuring.write(chosen.json, {"machine": measuring.machine("cpu"), "options": options, **found})


if __name__ == "__main__":
    main()
