"""Look-ups in the events of a history (accuracies, plan, end), and the content of `summary.json`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from matu_flwr.events import ClientEvent, EndEvent, Event, PlanEvent, Privacy


def accuracies(events: Iterable[Event], source: str = "clients") -> dict[int, Mapping[str, float]]:
    """Return accuracy in [0, 1] by round and task, as tested by the "clients" or by the "server"."""
    return {e["round"]: e["accuracy"] for e in events if e["event"] == "accuracy" and e["source"] == source}


def plan_of(events: Iterable[Event]) -> PlanEvent | None:
    """Return the plan event, or None if the run stopped before it."""
    return next((event for event in events if event["event"] == "plan"), None)


def end_of(events: Iterable[Event]) -> EndEvent | None:
    """Return the end event, or None. There is one at most: resuming a run removes that of the attempt before."""
    return next((event for event in events if event["event"] == "end"), None)


def last_privacy(events: Sequence[Event]) -> Privacy | None:
    """Return the privacy spent by the last finished round; None if the run has no differential privacy."""
    return next((e["privacy"] for e in reversed(events) if e["event"] == "round" and "privacy" in e), None)


def clipped_rounds(events: Sequence[Event]) -> dict[str, int]:
    """Count by client the rounds in which something that it sent was clipped."""
    counts: dict[str, int] = {}
    for event in events:
        if event["event"] == "round":
            for client in {name for found in event.get("clipped", {}).values() for name in found}:
                counts[client] = counts.get(client, 0) + 1
    return dict(sorted(counts.items()))


def summarise(events: Sequence[Event]) -> dict[str, Any]:
    """Build the content of `summary.json`.

    Two runs with the same seed and settings give the same summary, except for the parts "run" and "timing". All times,
    paths, run ids and memory readings are in those two parts.
    """
    plan, end = plan_of(events), end_of(events)
    if plan is None:
        return {"run": {"status": end["status"] if end else "unfinished", "error": end["error"] if end else None}}
    by_round = accuracies(events)
    on_server = accuracies(events, "server")
    last = max(by_round, default=0)
    rounds = [e for e in events if e["event"] == "round"]
    clients = [e for e in events if e["event"] == "client"]
    # These settings name places on one machine, so they go into the part "run".
    private = ("experiment", "out-dir", "data-dir", "cache-dir", "state-dir")
    settings = {key: value for key, value in plan["settings"].items() if key not in private}
    related = end["related"] if end else {}
    undone = [
        {"round": e["round"], "task": task, "reason": reason}
        for e in rounds
        for task, reason in e.get("rolled_back", {}).items()
    ]
    return {
        "strategy": plan["strategy"],
        "suite": plan["suite"],
        "seed": plan["seed"],
        "rounds": len(rounds),
        "settings": settings,
        "backbone": plan["backbone"],
        "mean_accuracy": mean(by_round.get(last, {})),
        "mean_accuracy_by_round": {str(r): mean(accuracy) for r, accuracy in sorted(by_round.items())},
        "worst_accuracy_by_round": {str(r): min(accuracy.values()) for r, accuracy in sorted(by_round.items())},
        "server_mean_accuracy": mean(on_server[max(on_server)]) if on_server else None,
        "tasks": {
            task["name"]: {
                "group": task["group"],
                "holders": task["holders"],
                "train": task["train"],
                "test": task["test"],
                "initial_accuracy": by_round.get(0, {}).get(task["name"]),
                "final_accuracy": by_round.get(last, {}).get(task["name"]),
                "best_accuracy": max((a[task["name"]] for a in by_round.values() if task["name"] in a), default=None),
                "server_accuracy": on_server[max(on_server)].get(task["name"]) if on_server else None,
                "related": related.get(task["name"], []),
            }
            for task in plan["tasks"]
        },
        "similarity": end["similarity"] if end else None,
        "nearest_in_group": nearest_in_group(events),
        "bytes": {
            "up": sum(e["bytes_up"] for e in rounds),
            "down": sum(e["bytes_down"] for e in rounds),
            "up_per_client_and_round": _per_client(clients, "bytes_up"),
            "down_per_client_and_round": _per_client(clients, "bytes_down"),
        },
        "clipped_rounds": clipped_rounds(events),
        # Only where something was: the summary of an earlier release's history stays as it was.
        **({"rolled_back": undone} if undone else {}),
        "privacy": last_privacy(events),
        "failures": [
            {"round": e["round"], "client": e["client"], "status": e["status"], "error": e["error"]}
            for e in sorted(clients, key=lambda e: (e["round"], e["partition"], e["client"]))
            if e["status"] != "ok"
        ],
        "timing": {
            "seconds": end["seconds"] if end else None,
            "rounds": [e["seconds"] for e in rounds],
            "peak_memory_bytes": end["peak_memory_bytes"] if end else None,
        },
        "run": {
            "id": plan["run_id"],
            "time": plan["time"],
            "status": end["status"] if end else "unfinished",
            "error": end["error"] if end else None,
            "resumed": [{"round": e["round"], "time": e["time"]} for e in events if e["event"] == "resume"],
            "artefacts": end["artefacts"] if end else {},
            "paths": {key: plan["settings"].get(key) for key in private},
            "versions": plan["versions"],
        },
    }


def nearest_in_group(events: Sequence[Event]) -> float | None:
    """Return how often the task graph finds a known relation, as a share in [0, 1].

    It looks at the tasks that have at least one other task in their group, and counts those whose most similar task is
    in the same group. None if there is no task graph, or no such task.
    """
    plan, end = plan_of(events), end_of(events)
    graph = end.get("similarity") if end else None
    if plan is None or not graph:
        return None
    groups = {task["name"]: task["group"] for task in plan["tasks"]}
    mine = [groups.get(name) or name for name in graph["order"]]
    right = []
    for i, row in enumerate(graph["values"]):
        if mine.count(mine[i]) > 1:
            nearest = max((j for j in range(len(row)) if j != i), key=lambda j: row[j])
            right.append(mine[nearest] == mine[i])
    return sum(right) / len(right) if right else None


def mean(accuracy: Mapping[str, float]) -> float | None:
    """Return the mean over tasks; None if there are no tasks."""
    return statistics.fmean(accuracy.values()) if accuracy else None


def float_of(value: float | None) -> float:
    """Return a number of the history as a float. The history stores NaN and infinity as null; both become NaN."""
    return float("nan") if value is None else float(value)


def _per_client(clients: Sequence[ClientEvent], key: Literal["bytes_up", "bytes_down"]) -> dict[str, float]:
    """Return the mean bytes of a client's messages per training round after the first, by client."""
    found: dict[tuple[int, str], list[int]] = {}
    for event in clients:
        counts = event[key]
        # Round 1 is left out: there are no task vectors before it, so the message to the client carries none.
        if event["phase"] == "train" and counts is not None and event["round"] > 1:
            found.setdefault((event["partition"], event["client"]), []).append(counts["total"])
    return {name: sum(values) / len(values) for (_, name), values in sorted(found.items())}
