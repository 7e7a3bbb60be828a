"""Records a run: every event as it happens, and the results when the run ends, whether it completed or failed."""

from __future__ import annotations

import fcntl
import math
import time
from collections.abc import Callable, Mapping, Sequence
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
from matu_flwr.texts import shortened

LOCK = ".lock"
# Share of the rounds, counted from the first, whose task graphs make up the graph of the run; see `run_graph`.
GRAPH_SHARE = 1 / 3


class RunGraph(TypedDict, total=False):
    """Task graph of a whole run, and the related tasks of each task; both missing if the method has no graph."""

    similarity: Graph
    related: dict[str, list[str]]


class Recorder:
    """Records the events of a run: in `history.jsonl`, as metrics, and in the log.

    Use it as a context manager around the run. When the block ends, even with an exception, it calls `keep` to write
    the tensors, writes the end event and draws the report. An exception is then raised again.

    Parameters
    ----------
    out_dir : Path
        Absolute path of the output folder; it is created if it does not exist.
    options : MergeOptions
        Their κ (how many related tasks at most) and ε (least similarity) choose the related tasks of the whole run.
    after : HistoryMark, optional
        Continue the history from this position.
    earlier : float
        Seconds that the earlier attempts of the run took.
    keep : callable
        Writes the tensors at the end of the run and returns their paths by artefact name. By default there are none.

    Raises
    ------
    HistoryError
        The folder holds a run already, or a run in it is still going on.
    """

    def __init__(
        self,
        out_dir: Path,
        options: MergeOptions,
        *,
        after: HistoryMark | None = None,
        earlier: float = 0.0,
        keep: Callable[[], dict[str, str]] = dict,
    ) -> None:
        self.out_dir = out_dir
        self.options = options
        self._keep = keep
        self._artefacts: dict[str, str] = {}
        self._began = time.monotonic() - earlier
        self._narrator = Narrator()
        out_dir.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(out_dir / LOCK)
        try:
            # Wait a second, because `is_going_on` holds the lock for a moment when somebody asks for the status.
            self._lock.acquire(timeout=1)
        except Timeout:
            raise HistoryError(
                f"a run in {out_dir} is still going on: stop it first, or name another out-dir"
            ) from None
        self._metrics = RunMetrics(out_dir / METRICS)
        try:
            self._history = HistoryWriter(out_dir / HISTORY, after)
            # Count what the earlier attempts did: the numbers of a resumed run are those of the whole run.
            for event in read_history(out_dir / HISTORY):
                self._metrics.observe(event)
        except BaseException:
            self._lock.release()
            raise
        self._stop_serving = self._metrics.serve()

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken so far, without the time between being cut off and being resumed."""
        return time.monotonic() - self._began

    def mark(self) -> HistoryMark:
        """Return the current end of the history, which has been flushed to the disk."""
        return self._history.mark()

    def note(self, files: Mapping[str, str]) -> None:
        """Add files that were written on the way to the artefacts of the run: paths by artefact name."""
        self._artefacts.update(files)

    def observe(self, event: Event) -> None:
        """Write one event into the history, update the metrics, and log the event in words."""
        self._history.write(event)
        self._metrics.observe(event)
        # Not after every client: a round with a thousand clients would replace the file a thousand times.
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
            # One failure, such as a full disk, must not keep the other results from being written.
            try:
                return act()
            except Exception as failure:
                log(ERROR, "%s could not be written: %s", what, failure)
                failures.append(failure)
                return None

        tensors = tried("the tensors", self._keep) or {}
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
            "artefacts": {name: str(self.out_dir / file) for name, file in files.items()} | self._artefacts | tensors,
            "similarity": graph.get("similarity"),
            "related": graph.get("related", {}),
            "peak_memory_bytes": resident_bytes(),
        }


def explain(reason: BaseException) -> str:
    """Say why a run has failed."""
    # `flwr stop` and signals arrive as SystemExit and KeyboardInterrupt, which carry no text.
    if not isinstance(reason, Exception):
        return f"stopped from outside ({type(reason).__name__})"
    # An exception of another library can have a text as long as the file that it could not read.
    return shortened(str(reason)) or type(reason).__name__


def is_going_on(out_dir: Path) -> bool:
    """Tell whether a process on this machine is still working on the run in a folder."""
    try:
        # The kernel drops the lock when its process dies, however it dies. FileLock is not used here, because it needs
        # to write and a status must not.
        with (out_dir / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def run_graph(events: Sequence[Event], options: MergeOptions) -> RunGraph:
    """Combine the task graphs of single rounds into the task graph of the whole run.

    The similarity S of two tasks is the mean over the rounds in which both were trained. Their standard score z is
    Σ z / √rounds: if parameters were independent, it would again be standard normal for unrelated tasks.

    Only the first third of the rounds counts. During those rounds all tasks still start from nearly the same point.
    Later, an update says more about noise, and about what tasks of one client have in common.

    Returns
    -------
    RunGraph
        Empty if no round had a task graph.
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
    # Two tasks that were never trained in the same round count as unrelated: S = ½.
    similarity = torch.where(count > 0, total / met, 0.5)
    z = z_total / met.sqrt()
    return {
        "similarity": {"order": tasks, "values": similarity.tolist(), "z": z.tolist()},
        "related": related_tasks(tasks, similarity, z, options),
    }
