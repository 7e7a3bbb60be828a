"""Measure what the bounds on a client's influence are worth, and what they and privacy cost when no client is hostile.

Ten clients in this process hold four generated tasks, with 240 training and 200 test images each. Three or four holders
of each task reply. There is one seed. Accuracies are those that the seven honest clients report on their test images.

- "attacked": client 0 sends −5 times what it learned, client 1 sends a thousand times as much, and client 4 sends
  a NaN. All three do this to their heads as well.
- "without them": all replies of these three clients are refused.

    python benchmarks/hostile_clients.py --json hostile_clients.json

Needs Flower and torch. It uses the in-process grid of tests/support.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from matu_flwr.run.summary import last_privacy
from matu_flwr.strategies import FederationError
from tests.support.federation import TINY_SUITE, Federation
from tests.support.hostile import AS_FLOATS, flip, hostile, nan, scale

HOSTILE = {0: flip, 1: scale, 4: nan}
BOUNDS: dict[str, dict[str, Any]] = {
    "none": {},
    "clip-factor = 1.5": {"robust__clip_factor": 1.5},
    "median": {"robust__mean": "median"},
    "median, clip-factor = 1.5": {"robust__mean": "median", "robust__clip_factor": 1.5},
}
PRIVACY: dict[str, dict[str, Any]] = {
    f"σ = {sigma:g}": {"privacy__noise_multiplier": sigma, "privacy__clip_norm": 1.0} for sigma in (1e-3, 1.0)
}


def run(what: str, settings: dict[str, Any], arguments: argparse.Namespace, tamper: Any = None) -> dict[str, Any]:
    """One federation; its accuracies after the last round as the honest clients report them."""
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "suite.yaml"
        suite.write_text(
            TINY_SUITE.replace("max_train: 96", f"max_train: {arguments.images}").replace(
                "max_test: 24", f"max_test: {arguments.tests}"
            )
        )
        federation = Federation(
            Path(folder) / "run",
            num_clients=10,
            grid={"tamper": tamper},
            suite=str(suite),
            rounds=arguments.rounds,
            evaluate_every=arguments.rounds,
            train__steps=arguments.steps,
            train__batch_size=32,
            partition__max_tasks=2,
            **AS_FLOATS,
            **settings,
        )
        began, failed = time.perf_counter(), ""
        try:
            federation.run()
        except FederationError as error:
            failed = str(error).splitlines()[0]
    events, privacy = federation.events, last_privacy(federation.events)
    accuracy = final(events, arguments.rounds)
    found = {
        "what": what,
        "mean": sum(accuracy.values()) / len(accuracy) if accuracy else None,
        "accuracy": accuracy,
        "failed": failed,
        "server_seconds": sum(e["seconds"]["server"] for e in events if e["event"] == "round"),
        "seconds": time.perf_counter() - began,
        "epsilon": max(e for tasks in privacy["epsilon"].values() for e in tasks.values()) if privacy else None,
        "d": federation.backbone.d,
    }
    print(json.dumps(found), flush=True)
    return found


def final(events: list[dict[str, Any]], rounds: int) -> dict[str, float]:
    """Accuracy by task after the last round, without what hostile clients say; empty if it never came."""
    counts: dict[str, list[int]] = {}
    for event in events:
        if event["event"] == "client" and event["phase"] == "evaluate" and event["partition"] not in HOSTILE:
            for task, told in event["tasks"].items():
                if told.get("evaluated_round") == rounds:
                    sums = counts.setdefault(task, [0, 0])
                    sums[0] += told["test_correct"]
                    sums[1] += told["test_examples"]
    return {task: correct / examples for task, (correct, examples) in sorted(counts.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="per task and round")
    parser.add_argument("--images", type=int, default=240, help="training images of a task")
    parser.add_argument("--tests", type=int, default=200, help="test images of a task")
    parser.add_argument("--only", nargs="*", default=["honest", "without", "attacked", "privacy"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {}
    if "without" in arguments.only:
        rows["without them"] = [run("none", {}, arguments, hostile(HOSTILE, silent=True))]
    if "attacked" in arguments.only:
        rows["attacked"] = [run(what, bound, arguments, hostile(HOSTILE)) for what, bound in BOUNDS.items()]
    if "honest" in arguments.only:
        rows["nobody hostile"] = [run(what, bound, arguments) for what, bound in BOUNDS.items()]
    if "privacy" in arguments.only:
        rows["private"] = [run(what, noise, arguments) for what, noise in PRIVACY.items()]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
