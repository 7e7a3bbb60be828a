"""Run small federations with bad clients, and say what became of each run, of its honest clients, and of the blame.

Four clients in this process hold four generated tasks, two each; client-000 is the bad one if nothing else is said. It
does what it does to every reply to training, to its vectors and its heads, unless the row says otherwise. Everything
else is a default setting. A row is compared with the same run in which the bad clients' replies are all refused.

    python benchmarks/hostile_federations.py --json hostile_federations.json
    PYTHONPATH=OTHER_CHECKOUT python benchmarks/hostile_federations.py        # the same on other code

Needs Flower and torch. It uses the in-process grid of tests/support.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Another checkout that PYTHONPATH names comes first: this file then measures that one.
sys.path.insert(0, os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] or str(Path(__file__).resolve().parents[1]))

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message

from matu_flwr.run.history import HISTORY, read_history
from matu_flwr.run.recorder import Recorder
from matu_flwr.strategies.matu import merge_options
from tests.run import histories as made
from tests.support.federation import Federation
from tests.support.hostile import AS_FLOATS

Act = Callable[[Message, int], Message | None]
"""What a bad client makes of its reply in a round; None: it sends nothing."""


@dataclass(frozen=True)
class Case:
    """One federation: what it is called, what the bad clients do, who they are and how many clients there are."""

    name: str
    act: Act
    bad: tuple[int, ...] = (0,)
    clients: int = 4


def is_training(reply: Message) -> bool:
    return not reply.has_error() and "unified" in reply.content


def values(change: Callable[[np.ndarray, int], np.ndarray], kinds: Sequence[str] = ("unified", "heads")) -> Act:
    """Change the numbers of vectors and heads in replies to training."""

    def act(reply: Message, round_: int) -> Message:
        for kind in kinds if is_training(reply) else ():
            record = reply.content[kind]
            with np.errstate(over="ignore"):
                reply.content[kind] = ArrayRecord({k: Array(change(a.numpy(), round_)) for k, a in record.items()})
        return reply

    return act


def scalars(record: str, change: Callable[[dict[str, Any]], dict[str, Any]], *, training: bool = True) -> Act:
    """Change entries of the record `scalars` or `metrics`."""

    def act(reply: Message, round_: int) -> Message:
        if not reply.has_error() and record in reply.content and (is_training(reply) or not training):
            for key, value in change(dict(reply.content[record])).items():
                reply.content[record][key] = value
        return reply

    return act


def times(factor: float) -> Act:
    return values(lambda x, _: (x * np.float32(factor)).astype(np.float32))


def one_nan(x: np.ndarray, _: int) -> np.ndarray:
    changed = x.copy()
    changed.flat[0] = np.nan
    return changed


def chained(*acts: Act) -> Act:
    def act(reply: Message, round_: int) -> Message | None:
        for one in acts:
            reply = one(reply, round_) or reply
        return reply

    return act


def silent(reply: Message, round_: int) -> Message:
    """Send a reply to training that has nothing in it, and is refused by everybody."""
    if is_training(reply):
        for kind in list(reply.content):
            del reply.content[kind]
    return reply


def steering_error(reply: Message, round_: int) -> Message:
    if is_training(reply):
        text = "RuntimeError: \x1b[2J\x1b[31m\u202egnihtyreve si llew" + "x" * 5000
        reply.__dict__["_error"] = Error(2, text)
        reply.__dict__["_content"] = None
    return reply


TESTED = {"test-examples": 10**9, "test-correct": 10**9}
CASES = [
    Case("nobody is bad", lambda reply, _: reply, bad=()),
    Case("× 10³", times(1e3)),
    Case("× 10⁶", times(1e6)),
    Case("× 10²⁰", times(1e20)),
    Case("× −1", times(-1)),
    Case("× −5", times(-5)),
    Case("× 6 more in each round", values(lambda x, r: (x * np.float32(6.0) ** np.float32(r)).astype(np.float32))),
    Case("× 10⁶ in the last round only", values(lambda x, r: x * np.float32(1e6 if r >= LAST else 1))),
    Case("one value is NaN", values(one_nan)),
    Case(
        "every value is 9e30, rescalers 10⁶",
        chained(
            values(lambda x, _: np.full_like(x, 9e30), ["unified"]),
            scalars("scalars", lambda found: {"rescalers": [1e6] * len(found["rescalers"])}),
        ),
    ),
    Case(
        "rescalers 10⁵ times as large",
        scalars("scalars", lambda found: {"rescalers": [min(x * 1e5, 1e6) for x in found["rescalers"]]}),
    ),
    Case(
        "rescalers of cleared bits 10⁶",
        scalars(
            "scalars", lambda found: {"opposites": [1e6] * len(found["opposites"])} if "opposites" in found else {}
        ),
    ),
    Case("heads × 10³", values(lambda x, _: x * np.float32(1e3), ["heads"])),
    Case("heads of 3.4e38", values(lambda x, _: np.full_like(x, 3.4e38), ["heads"])),
    Case(
        "10⁹ of 10⁹ test images right",
        scalars("metrics", lambda found: {key: [n] * len(found[key]) for key, n in TESTED.items()}, training=False),
    ),
    Case(
        "losses of 1.7e308",
        scalars(
            "metrics", lambda found: {k: [1.7e308] * len(found[k]) for k in ("train-loss", "test-loss")}, training=False
        ),
    ),
    Case(
        "losses of −10⁶",
        scalars(
            "metrics", lambda found: {k: [-1e6] * len(found[k]) for k in ("train-loss", "test-loss")}, training=False
        ),
    ),
    Case("two say 1.7e308 seconds", scalars("metrics", lambda _: {"seconds.train": 1.7e308}), bad=(0, 1)),
    Case("an error text that clears the screen", steering_error),
    Case("two of four × 10³", times(1e3), bad=(0, 1)),
    Case("three of four × 10³", times(1e3), bad=(0, 1, 2)),
    Case("one of two × 10³", times(1e3), clients=2),
    Case("one of two sends zeros", times(0), clients=2),
]
LAST = 3


def run(case: Case, act: Act, arguments: argparse.Namespace) -> dict[str, Any]:
    """One federation, and what is left of it."""

    def tamper(reply: Message, node_config: dict[str, Any]) -> Message | None:
        if node_config["partition-id"] not in case.bad or reply.has_error() or "scalars" not in reply.content:
            return reply
        return act(reply, int(reply.content["scalars"]["round"]))

    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(
            Path(folder) / "run",
            num_clients=case.clients,
            grid={"tamper": tamper},
            rounds=arguments.rounds,
            train__steps=arguments.steps,
            train__batch_size=8,
            evaluate_every=arguments.rounds,
            partition__max_tasks=2,
            **AS_FLOATS,
        )
        stopped = ""
        try:
            federation.run()
        except Exception as error:  # what stops a run is what this program is about
            stopped = f"{type(error).__name__}: {error}"
        strategy = federation.strategy
        held = {task for client in strategy.clients if client.partition in case.bad for task in client.tasks}
        return {
            "stopped": stopped,
            "rounds": strategy.completed,
            "accuracy": accuracy(federation.events, case.bad, arguments.rounds),
            "vectors": {task: vector.double().clone() for task, vector in strategy.task_vectors.items()},
            "clean": sorted(set(strategy.classes) - held),
            "failed": failures(federation.events),
            "told": [e["error"] for e in federation.events if e["event"] == "client" and e["error"]],
            "unreadable": unreadable(federation, Path(folder) / "again"),
        }


def accuracy(events: list[dict[str, Any]], bad: Sequence[int], rounds: int) -> dict[str, float]:
    """By task after the last round, as honest clients report it; empty if it never came."""
    counts: dict[str, list[int]] = {}
    for event in events:
        if event["event"] == "client" and event["phase"] == "evaluate" and event["partition"] not in bad:
            for task, told in event["tasks"].items():
                if told.get("evaluated_round") == rounds:
                    sums = counts.setdefault(task, [0, 0])
                    sums[0] += told["test_correct"]
                    sums[1] += told["test_examples"]
    return {task: correct / examples for task, (correct, examples) in sorted(counts.items())}


def failures(events: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Rounds in which a client failed or was refused, by client."""
    found: dict[str, list[int]] = {}
    for event in events:
        if event["event"] == "client" and event["status"] != "ok":
            found.setdefault(event["client"], []).append(event["round"])
    return found


def unreadable(federation: Federation, folder: Path) -> str:
    """Record the events as a run does, and read them as a resumed one does: what goes wrong, "" if nothing does."""
    try:
        with Recorder(folder, merge_options(federation.settings.matu)) as recorder:
            for event in [made.plan(), *federation.events]:
                recorder.observe(event)
            mark = recorder.mark()
        with Recorder(folder, merge_options(federation.settings.matu), after=mark):
            pass
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    texts = [event["error"] for event in read_history(folder / HISTORY) if event.get("error")]
    return "" if all(text.replace("\n", " ").isprintable() for text in texts) else "control characters"


def row(case: Case, found: dict[str, Any], without: dict[str, Any]) -> dict[str, Any]:
    """What the table says of a case."""
    names = {f"client-{i:03d}" for i in case.bad}
    innocent = sorted(set(found["failed"]) - names)
    told = " ".join([found["stopped"], *found["told"]])
    shared = [task for task in found["accuracy"] if task in without["accuracy"]]
    lost = [without["accuracy"][task] - found["accuracy"][task] for task in shared]
    moved = [distance(found["vectors"].get(t), without["vectors"].get(t)) for t in found["clean"]]
    return {
        "case": case.name,
        "run": outcome(found),
        "accuracy": sum(found["accuracy"].values()) / len(found["accuracy"]) if found["accuracy"] else None,
        "lost": sum(lost) / len(lost) if lost else None,
        "moved": max(moved) if moved else None,
        "bad named": sorted(set(found["failed"]) & names),
        "innocent named": innocent,
        "lower train.lr": "lower train.lr" in told,
        "unreadable": found["unreadable"],
    }


def outcome(found: dict[str, Any]) -> str:
    if not found["stopped"]:
        return "completed"
    return f"stopped in round {found['rounds'] + 1}: {' '.join(found['stopped'].split())[:110]}"


def distance(one: Any, other: Any) -> float:
    """‖τ − τ'‖ / ‖τ'‖, where τ' is that of the run without the bad clients; 0 if they are equal."""
    if one is None or other is None:
        return math.nan
    apart = float((one - other).norm())
    return apart and apart / float(other.norm())


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| bad client | run | accuracy | lost | clean tasks moved | named |",
        "|---|---|---|---|---|---|",
    ]
    for found in rows:
        named = ", ".join(name.removeprefix("client-") for name in found["bad named"])
        blamed = ", ".join(name.removeprefix("client-") for name in found["innocent named"])
        blame = "; ".join(
            text
            for text in (
                f"bad: {named}" if named else "",
                f"**innocent: {blamed}**" if blamed else "",
                "**“lower train.lr”**" if found["lower train.lr"] else "",
                f"**history: {found['unreadable'][:60]}**" if found["unreadable"] else "",
            )
            if text
        )
        cells = [
            found["case"],
            found["run"].replace("|", "/"),
            "–" if found["accuracy"] is None else f"{found['accuracy']:.3f}",
            "–" if found["lost"] is None else f"{found['lost']:+.3f}",
            "–" if found["moved"] is None else f"{found['moved']:.2g}",
            blame or "nobody",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=LAST)
    parser.add_argument("--steps", type=int, default=4, help="per task and round")
    parser.add_argument("--only", nargs="*", help="names of cases; by default all")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    references: dict[tuple[tuple[int, ...], int], dict[str, Any]] = {}
    rows, began = [], time.perf_counter()
    for case in CASES:
        if arguments.only is not None and case.name not in arguments.only:
            continue
        key = (case.bad, case.clients)
        if key not in references:
            references[key] = run(Case("without", silent, *key), silent, arguments)
        rows.append(row(case, run(case, case.act, arguments), references[key]))
        print(json.dumps(rows[-1], ensure_ascii=False), file=sys.stderr, flush=True)
    print(shown(rows))
    seconds = time.perf_counter() - began
    print(
        f"\n{len(rows)} federations, {arguments.rounds} rounds of {arguments.steps} steps, {seconds:.0f} s, "
        f"{os.cpu_count()} CPUs {platform.machine()}, {datetime.now(UTC).date()}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
