"""Keeps a run: every event as it happens, and at the end, however it comes, what there is to keep."""

from __future__ import annotations

import fcntl
import math
import time
from collections.abc import Callable, Sequence
from logging import ERROR, INFO
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

import torch
from filelock import FileLock, Timeout
from flwr.common.logger import log

from matu_flwr.events import EndEvent, Event, Graph
from matu_flwr.merging import MergeOptions
from matu_flwr.merging.task_graph import related_tasks
from matu_flwr.run.console import Narrator, render_lines
from matu_flwr.run.history import HISTORY, HistoryError, HistoryMark, HistoryWriter, read_history
from matu_flwr.run.metrics import METRICS, RunMetrics
from matu_flwr.run.plan import now, resident_bytes
from matu_flwr.run.report import CURVES, GRAPH, SUMMARY, write_report
from matu_flwr.run.summary import accuracies

LOCK = ".lock"
GRAPH_SHARE = 1 / 3  # of the rounds, from the first


class RunGraph(TypedDict, total=False):
    """Task graph of a whole run, and the related tasks of each; empty without one."""

    similarity: Graph
    related: dict[str, list[str]]


class Recorder:
    """Writes `history.jsonl` line by line, counts and logs the same, and closes the run with its artefacts.

    Use it as a context manager around the run. On the way out, also after an exception, it calls `keep` for the
    tensors, writes the end event and draws the report; the exception goes on.

    Parameters
    ----------
    out_dir : Path
        Absolute; made if it does not exist.
    options : MergeOptions
        Their κ and ε choose the related tasks of the whole run.
    after : HistoryMark, optional
        Continue the history from there.
    earlier : float
        Seconds that the run took before.

    Raises
    ------
    HistoryError
        The folder holds a run already, or a run that still goes on.
    """

    def __init__(
        self, out_dir: Path, options: MergeOptions, *, after: HistoryMark | None = None, earlier: float = 0.0
    ) -> None:
        self.out_dir = out_dir
        self.options = options
        self.keep: Callable[[], dict[str, str]] = dict
        self.artefacts: dict[str, str] = {}  # files written before the first round, by name
        self._began = time.monotonic() - earlier
        self._narrator = Narrator()
        out_dir.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(out_dir / LOCK)
        try:
            self._lock.acquire(timeout=1)  # `is_going_on` holds it for a moment
        except Timeout:
            raise HistoryError(f"a run in {out_dir} still goes on: stop it first, or name another out-dir") from None
        self._metrics = RunMetrics(out_dir / METRICS)
        try:
            self._history = HistoryWriter(out_dir / HISTORY, after)
            for event in read_history(out_dir / HISTORY):  # of the run before it was cut off
                self._metrics.observe(event)
        except BaseException:
            self._lock.release()
            raise
        self._stop_serving = self._metrics.serve()

    @property
    def seconds(self) -> float:
        """That the run has taken, without the time between being cut off and being resumed."""
        return time.monotonic() - self._began

    def mark(self) -> HistoryMark:
        """How far the history has come; it is on the disk."""
        return self._history.mark()

    def observe(self, event: Event) -> None:
        """Write one event, and log it in words."""
        self._history.write(event)
        self._metrics.observe(event)
        if event["event"] != "client":
            self._metrics.write()
        for line in render_lines(self._narrator.tell(event)):
            log(INFO, "%s", line)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            log(ERROR, "the run failed; the work so far is kept in %s", self.out_dir)
        failures: list[Exception] = []

        def tried(what: str, act: Callable[[], Any]) -> Any:
            """On a full disk the other things have to be tried all the same."""
            try:
                return act()
            except Exception as failure:
                log(ERROR, "%s could not be kept: %s", what, failure)
                failures.append(failure)
                return None

        tensors = tried("the tensors", self.keep) or {}
        reason = error if error is not None else next(iter(failures), None)
        tried("the end of the history", lambda: self.observe(self._end_event(reason, tensors)))
        self._history.close()
        tried("summary and pictures", lambda: write_report(self.out_dir))
        self._stop_serving()
        self._lock.release()
        if error is None and failures:
            raise failures[0]

    def _end_event(self, reason: BaseException | None, tensors: dict[str, str]) -> EndEvent:
        events = read_history(self.out_dir / HISTORY)
        graph = run_graph(events, self.options)
        files = {"history": HISTORY, "summary": SUMMARY, "metrics": METRICS}
        files |= {"curves": CURVES} if accuracies(events) else {}
        files |= {"task graph": GRAPH} if graph else {}
        return {
            "event": "end",
            "time": now(),
            "status": "completed" if reason is None else "failed",
            "error": None if reason is None else explain(reason),
            "seconds": self.seconds,
            "artefacts": {name: str(self.out_dir / file) for name, file in files.items()} | self.artefacts | tensors,
            "similarity": graph.get("similarity"),
            "related": graph.get("related", {}),
            "peak_memory_bytes": resident_bytes(),
        }


def explain(reason: BaseException) -> str:
    """Why a run has failed. `flwr stop` and signals come as SystemExit and KeyboardInterrupt, which say nothing."""
    if not isinstance(reason, Exception):
        return f"stopped from outside ({type(reason).__name__})"
    return str(reason) or type(reason).__name__


def is_going_on(out_dir: Path) -> bool:
    """Whether a process of this machine is at the run in a folder; a killed one is not."""
    try:
        with (out_dir / LOCK).open("rb") as file:  # not by FileLock, which writes
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def run_graph(events: Sequence[Event], options: MergeOptions) -> RunGraph:
    """Task graph of the whole run from the graphs of its rounds; empty if no round had one.

    S of a pair is its mean over the rounds in which both tasks were trained; z is Σ z / √rounds, again standard normal
    for unrelated tasks if parameters were independent. Only the first third of the rounds counts: then all tasks still
    learn from nearly the same point, later an update says more about noise and about what tasks of one client share.
    """
    rounds = [event for event in events if event["event"] == "round" and event["similarity"]]
    rounds = rounds[: max(1, math.ceil(len(rounds) * GRAPH_SHARE))]
    tasks = sorted({task for event in rounds for task in event["order"]})
    if not tasks:
        return {}
    size = len(tasks)
    total, z_total, count = (torch.zeros(size, size, dtype=torch.float64) for _ in range(3))
    for event in rounds:
        at = torch.tensor([tasks.index(task) for task in event["order"]])
        rows, columns = at[:, None], at[None, :]
        total[rows, columns] += torch.tensor(event["similarity"], dtype=torch.float64)
        z_total[rows, columns] += torch.tensor(event["z"], dtype=torch.float64)
        count[rows, columns] += 1
    met = count.clamp(min=1)
    similarity = torch.where(count > 0, total / met, 0.5)
    z = z_total / met.sqrt()
    return {
        "similarity": {"order": tasks, "values": similarity.tolist(), "z": z.tolist()},
        "related": related_tasks(tasks, similarity, z, options),
    }
