"""The results of a comparison: the numbers of each run, and of each method over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matu_flwr.compare.cells import Cell, end_of
from matu_flwr.run.history import HISTORY, read_history
from matu_flwr.run.summary import accuracies, nearest_in_group, plan_of

UPPER_BOUND = "central-individual"


@dataclass(frozen=True)
class CellResult:
    """The result of one run.

    Attributes
    ----------
    name, seed : str, int
        Name and seed of the cell.
    error : str
        Why there is no result; empty if there is one.
    accuracy : dict of str to float
        Test accuracy in [0, 1] by task, of the model that a client with the task receives after the last round.
    bytes_up, bytes_down : float
        Bytes per client and round that clients send (up) and receive (down). The messages of the closing test count,
        those of the registration do not.
    bits : float
        Bits of the vectors and masks that clients send, per parameter of a task vector, task of a client, and round.
    seconds : float
        Duration of the run on this machine.
    nearest : float, optional
        Share of the tasks whose most similar task is in their group; see `nearest_in_group`.
    """

    name: str
    seed: int
    error: str = ""
    accuracy: Mapping[str, float] = field(default_factory=dict)
    bytes_up: float = 0.0
    bytes_down: float = 0.0
    bits: float = 0.0
    seconds: float = 0.0
    nearest: float | None = None

    @property
    def mean(self) -> float:
        """Mean accuracy over the tasks."""
        return statistics.fmean(self.accuracy.values())


def read_cell(cell: Cell, out_dir: Path, error: str = "") -> CellResult:
    """Read the result of one cell from its history. A run that failed or has not ended gives a result with `error`."""
    folder = cell.folder(out_dir)
    end = end_of(folder)
    if error or end is None or end["status"] != "completed":
        return CellResult(cell.name, cell.seed, error or (end["error"] if end else None) or "the run has not ended")
    events = read_history(folder / HISTORY)
    plan, by_round = plan_of(events), accuracies(events)
    assert plan is not None, "a completed run has a plan"
    replies = [event for event in events if event["event"] == "client" and event["status"] == "ok"]
    rounds = max(by_round)
    # Methods without training have no rounds; what they send is then counted as that of one round.
    shares = len(plan["clients"]) * max(rounds, 1)
    pairs = sum(len(client["tasks"]) for client in plan["clients"]) * max(rounds, 1)
    sent = [event["bytes_up"] for event in replies if event["bytes_up"] is not None]
    vectors = sum(counts["vector"] + counts["masks"] for counts in sent)
    return CellResult(
        cell.name,
        cell.seed,
        "",
        by_round[rounds],
        sum(counts["total"] for counts in sent) / shares,
        sum(event["bytes_down"]["total"] for event in replies) / shares,
        8 * vectors / (plan["backbone"]["d"] * pairs),
        end["seconds"],
        nearest_in_group(events),
    )


@dataclass(frozen=True)
class Row:
    """The result of one method over its seeds. A number is None if it cannot be computed.

    Attributes
    ----------
    name : str
        The method.
    seeds, failed : int
        Number of runs with a result, and of runs without one.
    mean, spread : float
        Mean and standard deviation over seeds of the accuracy, which is averaged over tasks first. The standard
        deviation is None for one seed.
    normalised : float
        Accuracy divided by that of `central-individual` with the same seed and task, mean over tasks and seeds.
    difference, difference_spread : float
        Mean and standard deviation of the difference to the first method with the same seed. The standard deviation is
        None for one seed.
    p_value : float
        p-value of Wilcoxon's signed-rank test over tasks, on the differences to the first method (mean over seeds).
    worst_task, worst : str, float
        The task with the lowest accuracy (mean over seeds), and that accuracy.
    mb_up, mb_down, bits, seconds : float
        Means over seeds, as in `CellResult`, with MB = 10⁶ bytes.
    nearest : float
        Mean over seeds of `CellResult.nearest`.
    tasks : dict of str to float
        Accuracy by task, mean over seeds.
    """

    name: str
    seeds: int
    failed: int
    mean: float | None = None
    spread: float | None = None
    normalised: float | None = None
    difference: float | None = None
    difference_spread: float | None = None
    p_value: float | None = None
    worst_task: str = ""
    worst: float | None = None
    mb_up: float | None = None
    mb_down: float | None = None
    bits: float | None = None
    seconds: float | None = None
    nearest: float | None = None
    tasks: dict[str, float] = field(default_factory=dict)


def rows_of(results: Sequence[CellResult]) -> list[Row]:
    """Summarise the results of each method. Differences are taken to the method of `results[0]`.

    Returns
    -------
    list of Row
        Sorted by mean accuracy, best first. Methods without a result come last.
    """
    first = {r.seed: r.accuracy for r in results if r.name == results[0].name and not r.error}
    bounds = {r.seed: r.accuracy for r in results if r.name == UPPER_BOUND and not r.error}
    rows = []
    for name in dict.fromkeys(result.name for result in results):
        mine = [result for result in results if result.name == name]
        good = [result for result in mine if not result.error]
        if not good:
            rows.append(Row(name, 0, len(mine)))
            continue
        tasks = {task: statistics.fmean(result.accuracy[task] for result in good) for task in sorted(good[0].accuracy)}
        worst = min(tasks, key=lambda task: (tasks[task], task))
        means = [result.mean for result in good]
        graphs = [result.nearest for result in good if result.nearest is not None]
        rows.append(
            Row(
                name,
                len(good),
                len(mine) - len(good),
                statistics.fmean(means),
                statistics.stdev(means) if len(means) > 1 else None,
                _normalised(good, bounds),
                *(_against(good, first) if name != results[0].name else (None, None, None)),
                worst,
                tasks[worst],
                statistics.fmean(result.bytes_up for result in good) / 1e6,
                statistics.fmean(result.bytes_down for result in good) / 1e6,
                statistics.fmean(result.bits for result in good),
                statistics.fmean(result.seconds for result in good),
                statistics.fmean(graphs) if graphs else None,
                tasks,
            )
        )
    return sorted(rows, key=lambda row: (row.mean is None, -(row.mean or 0), row.name))


def _against(
    results: Sequence[CellResult], first: Mapping[int, Mapping[str, float]]
) -> tuple[float | None, float | None, float | None]:
    """Compare with another method, over the seeds that both have.

    Returns
    -------
    tuple
        Mean and standard deviation of the difference, and the p-value over tasks; None where it cannot be computed.
    """
    # Imported here, because scipy.stats is slow to import.
    from scipy.stats import wilcoxon

    by_seed = [
        {task: value - first[result.seed][task] for task, value in result.accuracy.items()}
        for result in results
        if result.seed in first
    ]
    if not by_seed:
        return None, None, None
    means = [statistics.fmean(differences.values()) for differences in by_seed]
    by_task = [statistics.fmean(differences[task] for differences in by_seed) for task in by_seed[0]]
    # The test is not defined if all differences are zero, which says that the methods are alike.
    p_value = float(wilcoxon(by_task).pvalue) if any(by_task) else 1.0
    return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else None, p_value


def _normalised(results: Sequence[CellResult], bounds: Mapping[int, Mapping[str, float]]) -> float | None:
    ratios = [
        value / bound
        for result in results
        for task, value in result.accuracy.items()
        if (bound := bounds.get(result.seed, {}).get(task, 0.0)) > 0
    ]
    return statistics.fmean(ratios) if ratios else None


def as_dict(rows: Sequence[Row], results: Sequence[CellResult]) -> dict[str, Any]:
    """Turn rows and cell results into dictionaries that can be written as JSON."""
    return {"methods": [asdict(row) for row in rows], "cells": [asdict(result) for result in results]}
