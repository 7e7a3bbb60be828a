"""`history.jsonl`: one JSON object a line, the truth of a run. Console lines, summary, pictures are drawn from it.

Events:

    plan       what was decided before the first round: tasks, holders, backbone, predictions
    client     one client's reply in one round (or why there is none): examples, losses, bytes, seconds
    accuracy   accuracy of every tested task after a round; round 0 is before any training
    round      a finished round: bytes, seconds, task graph
    resume     a run that was cut off goes on after a checkpoint; what came after that was taken out
    end        how the run ended, and where its artefacts lie

Clients test what they receive before they train, so the accuracy of round r arrives during round r + 1, or in the
closing evaluation.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from matu_flwr import digests
from matu_flwr.files import write_bytes

Event = dict[str, Any]
KINDS = ("plan", "client", "accuracy", "round", "resume", "end")


class HistoryError(ValueError):
    """A history that cannot be read or written."""


@dataclass(frozen=True)
class HistoryMark:
    """A place in a history: bytes of the file up to there, and their SHA-256."""

    bytes: int
    sha256: str


class HistoryWriter:
    """Appends events to a file, one line each: a killed run leaves all but its last line whole.

    Parameters
    ----------
    path : Path
        The file; must not exist.
    after : HistoryMark, optional
        Go on after this place of a file that is there. What follows it is taken out, atomically.

    Raises
    ------
    HistoryError
        The file exists (a run never overwrites another); or it is not the one of the mark.
    """

    def __init__(self, path: Path, after: HistoryMark | None = None) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = b"" if after is None else kept_part(path, after)
        if after is not None:
            cut_off(path, kept)
        try:
            self._file = path.open("xb" if after is None else "r+b", buffering=0)
        except FileExistsError:
            raise HistoryError(f"{path} exists: give every run an out-dir of its own") from None
        self._length = self._file.seek(0, os.SEEK_END)
        self._digest = hashlib.sha256(kept)

    def write(self, event: Event) -> None:
        """Append one event; NaN and infinity become null.

        Raises
        ------
        HistoryError
            It cannot be written, on a full disk for instance; no part of its line stays.
        """
        if event.get("event") not in KINDS:
            raise HistoryError(f"event {event.get('event')!r} is none of {list(KINDS)}")
        line = (json.dumps(_finite(event), ensure_ascii=False, allow_nan=False) + "\n").encode()
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(self._length)
            self._file.seek(self._length)
            raise HistoryError(f"{self._path} cannot be written: {error}") from error
        self._length += len(line)
        self._digest.update(line)

    def mark(self) -> HistoryMark:
        """Where it is now; what was written until here is on the disk."""
        os.fsync(self._file.fileno())
        return HistoryMark(self._length, self._digest.hexdigest())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def kept_part(path: Path, after: HistoryMark) -> bytes:
    """The bytes of a history up to a mark.

    Raises
    ------
    HistoryError
        There is no such file, or it is another one.
    """
    try:
        with path.open("rb") as file:
            kept = file.read(after.bytes)
    except OSError as error:
        raise HistoryError(f"{path} cannot be read ({error}); a resumed run continues its history") from error
    if len(kept) < after.bytes or digests.of_bytes(kept) != after.sha256:
        raise HistoryError(
            f"{path} is not the history of the checkpoint: its first {after.bytes} bytes are others, or fewer"
        )
    return kept


def cut_off(path: Path, kept: bytes) -> None:
    """Replace a history by its first part, whole or not at all; it is another file then, which `follow` waits for."""
    write_bytes(path, kept)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def read_history(path: Path) -> list[Event]:
    """All events of a file; a torn last line, as a killed run leaves it, is passed over.

    Raises
    ------
    HistoryError
        No such file, or a broken line before the last.
    """
    if not path.is_file():
        raise HistoryError(f"{path} does not exist: expected the output folder of a run")
    # Bytes: a torn line may end within a character, and a JSON string may hold what str.splitlines() splits at.
    *lines, last = path.read_bytes().split(b"\n")
    events = [_parse(line, path, number) for number, line in enumerate(lines, start=1)]
    with contextlib.suppress(HistoryError):
        events.append(_parse(last, path, len(lines) + 1))
    return events


def _parse(line: bytes, path: Path, number: int) -> Event:
    try:
        event = json.loads(line)
    except ValueError as error:
        raise HistoryError(f"{path}, line {number}: not a JSON object ({error})") from None
    if not isinstance(event, dict):
        raise HistoryError(f"{path}, line {number}: not a JSON object but {line.decode()}")
    return event


def follow(path: Path, stop: Callable[[], bool], interval: float = 0.1, replaces: int | None = None) -> Iterator[Event]:
    """Yield events as they are appended, until the end event or until `stop()` is true and nothing is left.

    The file need not exist yet; a line is read only once it is complete. `replaces` is the inode of a file of an
    earlier attempt: it is not read, but the one that a resumed run puts in its place.
    """

    def there() -> bool:
        return path.exists() and path.stat().st_ino != replaces

    while not there():
        if stop() and not there():  # it may have come since
            return
        time.sleep(interval)
    rest, number = b"", 0
    with path.open("rb") as file:
        while True:
            stopping = stop()
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                number += 1
                event = _parse(line, path, number)
                yield event
                if event["event"] == "end":
                    return
            if stopping and not lines:
                return
            if not lines:
                time.sleep(interval)


def accuracies(events: list[Event], source: str = "clients") -> dict[int, dict[str, float]]:
    """Accuracy by round and task, as tested by the clients or by the server."""
    return {e["round"]: e["accuracy"] for e in events if e["event"] == "accuracy" and e["source"] == source}


def first(events: list[Event], kind: str) -> Event | None:
    """First event of a kind, if there is one."""
    return next((event for event in events if event["event"] == kind), None)


def last_privacy(events: list[Event]) -> dict[str, Any] | None:
    """What the last finished round says of differential privacy; None without it."""
    return next((e["privacy"] for e in reversed(events) if e["event"] == "round" and "privacy" in e), None)


def clipped_rounds(events: list[Event]) -> dict[str, int]:
    """Rounds in which something of a client was shortened, by client."""
    counts: dict[str, int] = {}
    for event in events:
        if event["event"] == "round":
            for client in {name for found in event.get("clipped", {}).values() for name in found}:
                counts[client] = counts.get(client, 0) + 1
    return dict(sorted(counts.items()))


def summarise(events: list[Event]) -> dict[str, Any]:
    """Content of `summary.json`.

    Two runs of the same seed and settings give the same summary but for the parts "run" and "timing": no time, path,
    run id or memory reading stands anywhere else.
    """
    plan, end = first(events, "plan"), first(events, "end")
    if plan is None:
        return {"run": {"status": end["status"] if end else "unfinished", "error": end["error"] if end else None}}
    by_round = accuracies(events)
    on_server = accuracies(events, "server")
    last = max(by_round, default=0)
    rounds = [e for e in events if e["event"] == "round"]
    clients = [e for e in events if e["event"] == "client"]
    private = ("experiment", "out-dir", "data-dir", "cache-dir", "state-dir")
    settings = {key: value for key, value in plan["settings"].items() if key not in private}
    related = end["related"] if end else {}
    return {
        "strategy": plan["strategy"],
        "suite": plan["suite"],
        "seed": plan["seed"],
        "rounds": len(rounds),
        "settings": settings,
        "backbone": plan["backbone"],
        "mean_accuracy": _mean(by_round.get(last, {})),
        "mean_accuracy_by_round": {str(r): _mean(accuracy) for r, accuracy in sorted(by_round.items())},
        "worst_accuracy_by_round": {str(r): min(accuracy.values()) for r, accuracy in sorted(by_round.items())},
        "server_mean_accuracy": _mean(on_server[max(on_server)]) if on_server else None,
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


def nearest_in_group(events: list[Event]) -> float | None:
    """Share of the tasks with a known partner whose most similar task is of their group; None without a task graph."""
    plan, end = first(events, "plan"), first(events, "end")
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


def _mean(accuracy: dict[str, float]) -> float | None:
    return math.fsum(accuracy.values()) / len(accuracy) if accuracy else None


def _per_client(clients: list[Event], key: str) -> dict[str, float]:
    """Mean bytes of a client's messages in training rounds that moved a vector, by client."""
    found: dict[tuple[int, str], list[int]] = {}
    for event in clients:
        if event["phase"] == "train" and event[key] is not None and event["round"] > 1:
            found.setdefault((event["partition"], event["client"]), []).append(event[key]["total"])
    return {name: sum(values) / len(values) for (_, name), values in sorted(found.items())}
