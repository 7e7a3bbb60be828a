from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import run_histories as runs
from PIL import Image

from matu_flwr.run.history import Event, HistoryWriter, summarise
from matu_flwr.run.report import (
    draw_curves,
    draw_task_graph,
    similar_neighbours,
    spread,
    write_report,
    write_tensorboard,
)


def run_folder(folder: Path, events: list[Event]) -> Path:
    with HistoryWriter(folder / "history.jsonl") as history:
        for event in events:
            history.write(event)
    return folder


def test_report_of_a_run(tmp_path: Path) -> None:
    events = runs.history(30)
    written = write_report(run_folder(tmp_path, events))
    assert json.loads(written["summary"].read_text(encoding="utf-8")) == summarise(events)
    with Image.open(written["curves"]) as curves, Image.open(written["task graph"]) as graph:
        assert curves.size == (1100, 616)
        assert graph.width > graph.height > 800  # 12 rows that can be read
        for picture in (curves, graph):
            assert np.asarray(picture.convert("L")).std() > 10  # not an empty sheet
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "curves.png",
        "history.jsonl",
        "summary.json",
        "task_graph.png",
    ]


def test_report_is_the_same_when_written_again(tmp_path: Path) -> None:
    written = write_report(run_folder(tmp_path, runs.history(3)))
    before = {path: path.read_bytes() for path in written.values()}
    assert {path: path.read_bytes() for path in write_report(tmp_path).values()} == before


def test_run_without_accuracy_and_graph_has_only_a_summary(tmp_path: Path) -> None:
    end = runs.end(status="failed", error="no nodes", similarity=None)
    assert list(write_report(run_folder(tmp_path, [runs.plan(), end]))) == ["summary"]


@pytest.mark.parametrize("reach", [0.0, 0.002, 0.3])
def test_graph_of_any_range(tmp_path: Path, reach: float) -> None:
    draw_task_graph([runs.plan(), runs.end(reach=reach)], tmp_path / "graph.png")
    assert (tmp_path / "graph.png").stat().st_size > 10_000


@pytest.mark.parametrize("size", [1, 2])
def test_graph_of_few_tasks(tmp_path: Path, size: int) -> None:
    values = np.where(np.eye(size) > 0, 1.0, 0.51).tolist()
    similarity = {"order": ["a", "b"][:size], "values": values, "z": values}
    draw_task_graph([runs.end(similarity=similarity)], tmp_path / "graph.png")
    assert (tmp_path / "graph.png").stat().st_size > 1_000


def test_no_graph_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this history has no task graph to draw"):
        draw_task_graph([runs.plan()], tmp_path / "graph.png")


def test_curves_of_a_task_that_joined_late(tmp_path: Path) -> None:
    events = [runs.accuracy(0, {"a": 0.1}), runs.accuracy(1, {"a": 0.2, "b": 0.3}), runs.accuracy(2, {"a": 0.4})]
    draw_curves(events, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_labels_keep_apart_and_stay_near() -> None:
    at = spread({"a": 0.50, "b": 0.50, "c": 0.52, "far": 0.9}, gap=0.04)
    # a, b, c want .50, .50, .52: mean .5067, so a block of .4667, .5067, .5467
    assert at == pytest.approx({"a": 0.46667, "b": 0.50667, "c": 0.54667, "far": 0.9}, abs=1e-4)


@pytest.mark.parametrize("values", [[1.0] * 5, [0.0] * 5, [0.5] * 40, [0.3]])
def test_labels_stay_on_the_picture(values: list[float]) -> None:
    at = sorted(spread({f"task {i:02}": value for i, value in enumerate(values)}, gap=0.05).values())
    assert at[0] >= 0
    assert at[-1] <= 1 + 1e-9
    gap = min(0.05, 1 / max(len(values) - 1, 1))
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(at))


def test_related_tasks_become_neighbours() -> None:
    order, values, _ = runs.graph(0.02)
    groups = [runs.GROUPS[order[i]] for i in similar_neighbours(np.array(values))]
    assert groups[::2] == groups[1::2]


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = runs.history(3)
    write_tensorboard(events, tmp_path)
    read = EventAccumulator(str(tmp_path)).Reload()
    means = [(event.step, event.value) for event in read.Scalars("accuracy/mean")]
    tested = [(event["round"], event["mean_accuracy"]) for event in events if event["event"] == "accuracy"]
    assert means == [(step, pytest.approx(value)) for step, value in tested]
    assert [event.value for event in read.Scalars("seconds/total")] == [pytest.approx(4.1)] * 3
