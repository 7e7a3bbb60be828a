"""Simulate a thousand clients, a hundred a round: what a round costs beside training, and beside Flower's FedAvg.

Two apps run on Flower's simulation engine, with one client per core, and with the same images, model and steps. The
other app is the smallest one that does the work: Flower's FedAvg strategy, and clients that train each of their tasks
with the same function and send the last vector back. It sends no heads and checks nothing.

    python benchmarks/simulation.py --json simulation.json
    python benchmarks/simulation.py --nodes 100 --sampled 20 --rounds 4
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import measuring
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
STYLES = {
    "digits": ["printed"],
    "letters": ["serif", "sans"],
    "orientations": ["gratings", "stripes"],
    "colours": ["patches", "objects"],
    "counts": ["dots", "squares"],
}


def suite(tasks: int, images: int) -> str:
    """A suite file of generated tasks; after nine of them the styles come again with other images."""
    kinds = [(family, style) for family, styles in STYLES.items() for style in styles]
    lines = ["name: crowd", f"description: {tasks} generated tasks for many clients", "tasks:"]
    for number in range(tasks):
        family, style = kinds[number % len(kinds)]
        options = f"{{family: {family}, style: {style}, train: {images}, test: {images // 4}}}"
        lines.append(f"  {style}-{number // len(kinds)}: {{group: {family}, loader: generated, options: {options}}}")
    return "\n".join(lines) + "\n"


# --- ours ---


class Memory(threading.Thread):
    """Resident memory of the process with the server, in MiB, at the end of every round."""

    def __init__(self, history: Path, home: Path) -> None:
        super().__init__(daemon=True)
        # The launcher gives each run a folder of its own in this one.
        self.history, self.home = history, f"FLWR_HOME={home}/".encode()
        self.by_round: list[float] = []

    def run(self) -> None:
        while True:
            lines = self.history.read_text().splitlines() if self.history.exists() else []
            events = [json.loads(line)["event"] for line in lines if line.endswith("}")]
            if events.count("round") > len(self.by_round):
                self.by_round.append(self.resident())
            if "end" in events:
                return
            time.sleep(0.2)

    def resident(self) -> float:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = any(entry.startswith(self.home) for entry in (folder / "environ").read_bytes().split(b"\0"))
                if ours and b"flwr-simulation" in (folder / "cmdline").read_bytes():
                    found = re.search(r"VmRSS:\s+(\d+) kB", (folder / "status").read_text())
                    return round(int(found[1]) / 1024, 1) if found else 0.0
            except OSError:  # ended meanwhile
                continue
        return 0.0


def ours(values: dict[str, Any], nodes: int, folder: Path) -> dict[str, Any]:
    """Run the app in a simulation, and take its history apart."""
    from matu_flwr.launch.launcher import run_app

    out, home = folder / "run", folder / "flower"
    memory = Memory(out / "history.jsonl", home)
    memory.start()
    with (folder / "screen.txt").open("w") as screen:
        run_app(ROOT, out, run_config=values, num_nodes=nodes, home=home, console=Console(file=screen))
    memory.join()
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    rounds = [event for event in history if event["event"] == "round"]
    by_round: dict[int, dict[str, float]] = {}
    for event in history:
        if event["event"] == "client" and event["phase"] == "train":
            spent = by_round.setdefault(event["round"], {})
            for activity, seconds in event["seconds"].items():
                spent[activity] = spent.get(activity, 0.0) + seconds
    failed = sum(event["event"] == "client" and event["status"] != "ok" for event in history)
    return {
        "d": history[0]["backbone"]["d"],
        "rounds": [event["seconds"]["total"] for event in rounds],
        "server": [event["seconds"]["server"] for event in rounds],
        "clients": [by_round[event["round"]] for event in rounds],
        "failed": failed,
        "memory_mib": memory.by_round,
        "accuracy": [event["mean_accuracy"] for event in history if event["event"] == "accuracy"],
    }


# --- Flower's FedAvg ---


def flowers(told: dict[str, Any]) -> dict[str, Any]:
    """In this process: the same clients under Flower's FedAvg strategy; seconds of rounds, and of training in them."""
    import numpy as np
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from matu_flwr.backbones import backbone_arguments, create_backbone
    from matu_flwr.config.settings import Settings

    values, rounds, sampled = told["values"], told["rounds"], told["sampled"]
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        import torch  # here: the function is sent to the actors, and torch cannot be

        from matu_flwr.backbones import zero_head
        from matu_flwr.client.fit import fit
        from matu_flwr.client.node import node_of

        settings = Settings.from_flat(values)
        torch.set_num_threads(settings.train.threads)
        backbone = create_backbone(**backbone_arguments(settings), device="cpu")
        node = node_of(settings, context.node_config, backbone.image_size)
        start = torch.from_numpy(message.content["arrays"]["vector"].numpy().copy())
        vector, began = start, time.perf_counter()
        for name, task in node.tasks.items():
            head = zero_head(len(task.classes), backbone.num_features)
            vector = fit(backbone, start, head, task.train, settings.train, seed=1, task=name).task_vector
        metrics = {"num-examples": sum(len(t.train) for t in node.tasks.values()), "train": time.perf_counter() - began}
        arrays = ArrayRecord({"vector": Array(vector.numpy())})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message)

    ends: list[float] = []
    training: list[float] = []

    class Timed(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            if lost := [reply.error.reason for reply in replies if reply.has_error()]:
                raise RuntimeError(f"{len(lost)} clients of Flower's FedAvg failed, the first: {lost[0]}")
            found = super().aggregate_train(server_round, replies)
            training.append(sum(float(reply.content["metrics"]["train"]) for reply in replies))
            ends.append(time.perf_counter())
            return found

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        d = create_backbone(**backbone_arguments(Settings.from_flat(values)), device="cpu").d
        strategy = Timed(
            fraction_train=sampled / told["nodes"], fraction_evaluate=0.0, min_available_nodes=told["nodes"]
        )
        start = ArrayRecord({"vector": Array(np.zeros(d, np.float32))})
        strategy.start(grid, start, num_rounds=rounds, train_config=ConfigRecord({}))

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, num_supernodes=told["nodes"], backend_config=resources)
    return {"rounds": [later - earlier for earlier, later in itertools.pairwise(ends)], "training": training[1:]}


# --- both ---


def outside(rounds: list[float], training: list[float], cores: int) -> dict[str, float]:
    """Share of all cores' time in which no client trains."""
    return measuring.summary([1 - t / (cores * r) for t, r in zip(training, rounds, strict=True)])


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--sampled", type=int, default=100, help="clients of a round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--flower-rounds", type=int, default=4, help="rounds of Flower's FedAvg")
    parser.add_argument("--tasks", type=int, default=12)
    parser.add_argument("--images", type=int, default=4000, help="training images of each task")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--told", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.told:
        Path(json.loads(chosen.told)["out"]).write_text(json.dumps(flowers(json.loads(chosen.told))))
        return
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "crowd.yaml").write_text(suite(chosen.tasks, chosen.images))
        values: dict[str, Any] = {
            "suite": str(folder / "crowd.yaml"),
            "cache-dir": str(folder / "cache"),
            "rounds": chosen.rounds,
            "min-nodes": chosen.nodes,
            "fraction-train": chosen.sampled / chosen.nodes,
            "evaluate-every": chosen.rounds,
            "server-evaluate": False,
            "partition.split": "iid",
            "train.steps": chosen.steps,
            "train.batch-size": chosen.batch_size,
        }
        mine = ours(values | {"state-dir": str(folder / "state")}, chosen.nodes, folder)
        told = {"values": values, "rounds": chosen.flower_rounds, "sampled": chosen.sampled, "nodes": chosen.nodes}
        out = folder / "flower.json"
        command = [sys.executable, __file__, "--told", json.dumps(told | {"out": str(out)})]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"Flower's FedAvg failed:\n{done.stderr[-4000:]}")
        theirs = json.loads(out.read_text())

    inner = slice(1, -1)  # the first round loads everything, the last one tests
    trained = [spent["train"] for spent in mine["clients"][inner]]
    ratio = statistics.median(mine["rounds"][inner]) / statistics.median(theirs["rounds"])
    per_client = {
        who: statistics.median(
            [cores * (r - t / cores) / chosen.sampled for r, t in zip(rounds, training, strict=True)]
        )
        for who, rounds, training in (
            ("matu", mine["rounds"][inner], trained),
            ("Flower's FedAvg", theirs["rounds"], theirs["training"]),
        )
    }
    rows = [
        {
            "who": "matu",
            "round": measuring.summary(mine["rounds"][inner]),
            "outside": outside(mine["rounds"][inner], trained, cores),
            "client": per_client["matu"],
        },
        {
            "who": "Flower's FedAvg",
            "round": measuring.summary(theirs["rounds"]),
            "outside": outside(theirs["rounds"], theirs["training"], cores),
            "client": per_client["Flower's FedAvg"],
        },
    ]
    title = f"{chosen.nodes} clients, {chosen.sampled} a round, {chosen.tasks} tasks, d = {mine['d']:,}, {cores} cores"
    columns = {
        "who": "",
        "round": "seconds per round",
        "outside": "share outside training",
        "client": "core s per client",
    }
    measuring.table(title, columns, rows)
    spent = {name: statistics.median([c[name] for c in mine["clients"][inner]]) for name in mine["clients"][1]}
    spent["server"] = statistics.median(mine["server"][inner])
    measuring.table(
        "seconds of a round, all clients together",
        {"part": "part", "seconds": "seconds"},
        [{"part": part, "seconds": seconds} for part, seconds in spent.items()],
    )
    memory = [{"round": n, "mib": mib} for n, mib in enumerate(mine["memory_mib"], 1)]
    measuring.table("memory of the server's process", {"round": "round", "mib": "MiB"}, memory)
    print(f"a round takes {ratio:.3f} times as long as with Flower's FedAvg; {mine['failed']} clients failed")
    options = {key: value for key, value in vars(chosen).items() if key not in ("json", "told")}
    found = {"ours": mine, "flower": theirs, "ratio": ratio, "rows": rows, "spent": spent}
    measuring.write(chosen.json, {"machine": measuring.machine("cpu"), "options": options, **found})


if __name__ == "__main__":
    main()
