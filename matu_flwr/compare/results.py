"""What the runs of a comparison say: numbers per cell, and per method over its seeds."""

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
    """One run.

    Attributes
    ----------
    name, seed
        Of the cell.
    error : str
        Why there is no result; empty if there is one.
    accuracy : dict of str to float
        Of every task after the last round, with the model that a holder receives.
    bytes_up, bytes_down : float
        Per client and round, over all messages of the run: closing test included, registration not.
    bits : float
        Of vectors and masks up, per parameter of the backbone's task vector, per task of a client, and round.
    seconds : float
        Of the run, as long as it took here.
    nearest : float, optional
        Share of the tasks whose most similar task is of their known group; see `nearest_in_group`.
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
    """The numbers of one cell, from its history."""
    folder = cell.folder(out_dir)
    end = end_of(folder)
    if error or end is None or end["status"] != "completed":
        return CellResult(cell.name, cell.seed, error or (end["error"] if end else None) or "it has not run to its end")
    events = read_history(folder / HISTORY)
    plan, by_round = plan_of(events), accuracies(events)
    assert plan is not None  # a completed run has one
    replies = [event for event in events if event["event"] == "client" and event["status"] == "ok"]
    rounds = max(by_round)
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
    """One method over its seeds; None where there is nothing to say.

    Attributes
    ----------
    name : str
        The method.
    seeds, failed : int
        Runs with a result, and without.
    mean, spread : float
        Mean accuracy over tasks: mean over seeds, and standard deviation over seeds (None for one).
    normalised : float
        Mean over tasks and seeds of accuracy over that of `central-individual` with the same seed.
    difference, difference_spread : float
        To the first method, seed by seed: mean, and standard deviation (None for one seed).
    p_value : float
        Wilcoxon's signed-rank test of the differences of the tasks, each the mean over seeds.
    worst_task, worst : str, float
        The task with the lowest accuracy over seeds.
    mb_up, mb_down, bits, seconds : float
        See `CellResult`; MB are 10⁶ bytes.
    nearest : float
        Mean over seeds of `CellResult.nearest`.
    tasks : dict of str to float
        Accuracy over seeds by task.
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
    """One row per method, best mean accuracy first, methods without a result last; differences are to `results[0]`."""
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
    """Difference to another method over the seeds that both have, its spread, and the p-value over tasks."""
    from scipy.stats import wilcoxon  # slow to import

    by_seed = [
        {task: value - first[result.seed][task] for task, value in result.accuracy.items()}
        for result in results
        if result.seed in first
    ]
    if not by_seed:
        return None, None, None
    means = [statistics.fmean(differences.values()) for differences in by_seed]
    by_task = [statistics.fmean(differences[task] for differences in by_seed) for task in by_seed[0]]
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
    """Rows and cells for JSON."""
    return {"methods": [asdict(row) for row in rows], "cells": [asdict(result) for result in results]}
