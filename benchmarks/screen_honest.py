"""Run honest federations with the default screen, and say how near they came to being refused, and what it cost.

Every run is a whole one in this process, over a shipped suite: real clients, real training. A row is a suite, a
strategy and a seed. "Times R" is the largest update of the run in units of the round's reference, which the screen
compares with `screen.factor`; "of the limit" is the same in units of the limit that held for it, which is above
factor · R where training steps can do more. 1 or more would be refused.

    python benchmarks/screen_honest.py --suites offline --seeds 1 --rounds 3
    MATU_DATA_DIR=... python benchmarks/screen_honest.py --suites offline real-4 real-12 real-20 real-digits

Needs Flower and torch. It uses the in-process grid of tests/support.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import client_app
from matu_flwr.backbones import backbone_arguments, create_backbone
from matu_flwr.config.settings import Settings, parse_run_config
from matu_flwr.strategies import create, prepared
from tests.support.local_grid import LocalGrid

# The default, one of each kind of payload, and the variants of the default that change the size of an update most.
RUNS: dict[str, dict[str, Any]] = {
    "matu": {},
    "matu, error feedback, int4": {"matu.error-feedback": True, "wire.vector-dtype": "int4"},
    "matu, cosine with warm-up": {"train.schedule": "cosine", "train.warmup": 0.3},
    "matu, fraction-train 0.3": {"fraction-train": 0.3},
    "matu, few labels": {"partition.alpha": 0.1},
    "fedavg": {"strategy": "fedavg"},
    "pertask-fedavg": {"strategy": "pertask-fedavg"},
    "ties": {"strategy": "ties"},
}


def run(suite: str, name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One federation: the largest ratios of its rounds, who was refused, and seconds."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "suite": suite,
            "seed": seed,
            "rounds": arguments.rounds,
            "state-dir": folder,
            "evaluate-every": arguments.rounds,
            **RUNS[name],
            **parse_run_config(arguments.set),
        }
        settings = prepared(Settings.from_run_config(values))
        backbone = create_backbone(**backbone_arguments(settings))
        nodes = [{"partition-id": i, "num-partitions": arguments.clients} for i in range(arguments.clients)]
        events: list[dict[str, Any]] = []
        strategy = create(
            settings.strategy, settings, backbone, run_name=f"honest-{seed}", observer=lambda e: events.append(dict(e))
        )
        strategy.start(LocalGrid(client_app.app, nodes))
    rounds = [event for event in events if event["event"] == "round"]
    total = sum(event["seconds"]["total"] for event in rounds)
    spent = {name: sum(event["seconds"][name] for event in rounds) for name in ("server", "screen")}
    found: dict[str, Any] = {"suite": suite, "run": name, "seed": seed, "rounds": len(rounds), "d": strategy.d}
    for kind in ("vector", "head"):
        seen = [event["screen"][kind] for event in rounds if kind in event.get("screen", {})]
        found[kind] = max((one["largest"] / one["reference"] for one in seen if one["reference"]), default=None)
        found[f"{kind} of the limit"] = max(
            (one["largest"] / one["limit"] for one in seen if one["limit"]), default=None
        )
    return found | {
        "refused": sum(event["event"] == "client" and event["status"] != "ok" for event in events),
        "rolled back": sum(len(event.get("rolled_back", {})) for event in rounds),
        "screen seconds per round": spent["screen"] / max(len(rounds), 1),
        "share of the server": spent["screen"] / spent["server"] if spent["server"] else 0.0,
        "share of the round": spent["screen"] / total if total else 0.0,
    }


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: per suite and run the worst over its seeds."""

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    def worst(group: Sequence[dict[str, Any]], key: str) -> float | None:
        return max((row[key] for row in group if row[key] is not None), default=None)

    head = ["suite", "run", "seeds", "vector: times R", "of the limit", "head: times R", "of the limit", "refused"]
    head += ["rolled back", "screen per round", "of the server's time", "of the round"]
    lines = [f"| {' | '.join(head)} |", "|---|---" + "|---:" * 10 + "|"]
    for suite, name in dict.fromkeys((row["suite"], row["run"]) for row in rows):
        group = [row for row in rows if (row["suite"], row["run"]) == (suite, name)]
        cells = [suite, name, str(len(group))]
        cells += [number(worst(group, k)) for k in ("vector", "vector of the limit", "head", "head of the limit")]
        cells += [str(sum(row[key] for row in group)) for key in ("refused", "rolled back")]
        cells.append(f"{1e3 * (worst(group, 'screen seconds per round') or 0):.1f} ms")
        cells += [f"{worst(group, key) or 0:.2%}" for key in ("share of the server", "share of the round")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=["offline"])
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of every run")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows, began = [], time.perf_counter()
    for suite in arguments.suites:
        for name in arguments.runs:
            for seed in range(arguments.seeds):
                rows.append(run(suite, name, seed, arguments))
                print(json.dumps(rows[-1], ensure_ascii=False), file=sys.stderr, flush=True)
    print(shown(rows))
    print(
        f"\n{len(rows)} runs of {arguments.rounds} rounds, {arguments.clients} clients, "
        f"{time.perf_counter() - began:.0f} s, {os.cpu_count()} CPUs {platform.machine()}, {datetime.now(UTC).date()}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
