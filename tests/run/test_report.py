"""Summary and pictures from a history alone."""

import itertools
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from matu_flwr.run.history import HistoryError, HistoryWriter
from matu_flwr.run.pictures import draw_curves, draw_task_graph, group_colours, similar_neighbours, spaced
from matu_flwr.run.report import scalars, write_report, write_tensorboard
from tests.run import histories as made


def folder_of(path, events):
    with HistoryWriter(path / "history.jsonl") as writer:
        for event in events:
            writer.write(event)
    return path


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_everything_is_written_and_can_be_written_again(tmp_path):
    folder = folder_of(tmp_path, made.history(rounds=5))
    written = write_report(folder)
    assert {name: path.name for name, path in written.items()} == {
        "summary": "summary.json",
        "curves": "curves.png",
        "task graph": "task_graph.png",
    }
    assert png_size(written["curves"]) == (1100, 616)
    width, height = png_size(written["task graph"])
    assert width > height > 500
    first = {name: path.read_bytes() for name, path in written.items()}
    again = write_report(folder)
    assert {name: path.read_bytes() for name, path in again.items()} == first
    assert sorted(path.name for path in folder.iterdir()) == [
        "curves.png",
        "history.jsonl",
        "summary.json",
        "task_graph.png",
    ]
    assert json.loads(written["summary"].read_text())["strategy"] == "matu"


def test_a_run_without_accuracy_or_graph_has_no_pictures(tmp_path):
    events = [made.plan(), made.end(status="failed", error="x", similarity=None, related={})]
    assert list(write_report(folder_of(tmp_path, events))) == ["summary"]


@pytest.mark.parametrize("kept", [0, 1, 12, 13])
def test_an_unfinished_run(tmp_path, kept):
    written = write_report(folder_of(tmp_path, made.history(rounds=2)[:kept]))
    assert "summary" in written
    assert "task graph" not in written


def test_a_history_without_a_plan(tmp_path):
    events = [event for event in made.history(rounds=2) if event["event"] != "plan"]
    assert set(write_report(folder_of(tmp_path, events))) == {"summary", "curves", "task graph"}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_graph_of_few_tasks(tmp_path, size):
    order, s, z = made.graph(0.02)
    similarity = {
        "order": order[:size],
        "values": [row[:size] for row in s[:size]],
        "z": [row[:size] for row in z[:size]],
    }
    folder_of(tmp_path, [made.plan(), made.end(similarity=similarity)])
    assert write_report(tmp_path)["task graph"].is_file()


@pytest.mark.parametrize("name", [r"$\mathds{R}$", "$"])
def test_names_are_text_and_no_formulas(tmp_path, name):
    text = json.dumps(made.history(rounds=2)).replace("digits-hand", json.dumps(name)[1:-1]).replace("offline", "$$")
    folder = folder_of(tmp_path, json.loads(text))
    assert {"curves", "task graph"} <= write_report(folder).keys()


def test_no_folder_and_no_graph(tmp_path):
    with pytest.raises(HistoryError, match="does not exist"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no task graph"):
        draw_task_graph([made.plan()], tmp_path / "graph.png")


# --- where labels stand ---


def pooled_slowly(values, gap):
    """The same problem by brute force: the nearest non-falling sequence, by many small projections."""
    target = np.array(values) - gap * np.arange(len(values))
    level = target.copy()
    for _ in range(2000):
        moved = False
        for i in range(len(level) - 1):
            if level[i] > level[i + 1] + 1e-12:
                start, stop = i, i + 1
                while start > 0 and abs(level[start - 1] - level[i]) < 1e-12:
                    start -= 1
                while stop < len(level) - 1 and abs(level[stop + 1] - level[i + 1]) < 1e-12:
                    stop += 1
                level[start : stop + 1] = target[start : stop + 1].mean()
                moved = True
        if not moved:
            break
    return level + gap * np.arange(len(values))


@given(some.lists(some.floats(0, 1), min_size=1, max_size=25), some.floats(0.001, 0.2))
def test_labels_keep_their_order_their_distance_and_the_frame(values, gap):
    names = {f"{i:02}": value for i, value in enumerate(values)}
    at = spaced(names, gap)
    assert set(at) == set(names)
    room = min(gap, 1 / max(len(values) - 1, 1))
    placed = [at[name] for name in sorted(names, key=lambda name: (names[name], name))]
    assert min(placed) >= -1e-9
    assert max(placed) <= 1 + 1e-9
    assert all(b - a >= room - 1e-9 for a, b in itertools.pairwise(placed))


@given(some.lists(some.integers(4, 16), min_size=1, max_size=6, unique=True))
def test_labels_with_room_stay_where_they_are(tenths):
    names = {str(i): tenth / 20 for i, tenth in enumerate(tenths)}
    assert spaced(names, 0.05) == pytest.approx(names)


def test_labels_that_overlap_stand_around_their_mean():
    # three at .5, a tenth apart: .4 .5 .6; the one at .9 is not touched
    assert spaced({"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.9}, 0.1) == pytest.approx(
        {"a": 0.4, "b": 0.5, "c": 0.6, "d": 0.9}
    )


@given(some.lists(some.integers(30, 70), min_size=1, max_size=6))
def test_the_same_as_by_brute_force(hundredths):
    values = sorted(h / 100 for h in hundredths)
    found = list(spaced({f"{i:02}": value for i, value in enumerate(values)}, 0.03).values())
    assert found == pytest.approx(pooled_slowly(values, 0.03), abs=1e-6)


# --- order and colours of the task graph ---


def test_similar_tasks_become_neighbours():
    chance = np.random.default_rng(0)
    order = chance.permutation(12)
    group = order // 2
    noise = chance.normal(0, 0.002, (12, 12))
    similarity = 0.5 + (noise + noise.T) / 2 + 0.03 * (group[:, None] == group[None, :])
    np.fill_diagonal(similarity, 1)
    before = similarity.copy()
    found = similar_neighbours(similarity)
    assert sorted(found) == list(range(12))
    pairs = group[found].reshape(6, 2)
    assert (pairs[:, 0] == pairs[:, 1]).all()
    assert np.array_equal(similarity, before)


@given(some.integers(0, 9), some.integers(0, 2**20))
def test_any_symmetric_matrix_gives_a_permutation(size, seed):
    noise = np.random.default_rng(seed).random((size, size)).round(1)
    assert sorted(similar_neighbours((noise + noise.T) / 2)) == list(range(size))


def test_colours_tell_groups_apart():
    colours = group_colours(list(made.GROUPS), made.GROUPS)
    by_group = {}
    for task, colour in colours.items():
        by_group.setdefault(made.GROUPS[task], set()).add(colour)
    assert all(len(found) == 1 for found in by_group.values())
    assert len(set.union(*by_group.values())) == 6


def test_tasks_without_a_group_have_colours_of_their_own():
    assert len(set(group_colours([f"t{i}" for i in range(18)], {}).values())) == 18
    assert len(group_colours([f"t{i:02}" for i in range(40)], {})) == 40


# --- TensorBoard ---


def test_scalars_of_an_event():
    event = made.accuracy(3, {"a": 0.25, "b": 0.75}) | {"loss": {"a": 1.5, "b": None}}
    assert scalars(event) == {"accuracy/a": 0.25, "accuracy/b": 0.75, "loss/a": 1.5, "accuracy/mean": 0.5}
    assert set(scalars(event | {"source": "server"})) == {
        "accuracy_on_server/a",
        "accuracy_on_server/b",
        "loss_on_server/a",
        "accuracy_on_server/mean",
    }
    found = scalars(made.round_(1, failed=2))
    assert found["clients/failed"] == 2
    assert found["seconds/total"] == 4.1
    assert scalars(made.plan()) == {}


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = made.history(3)
    write_tensorboard(events, tmp_path)
    read = EventAccumulator(str(tmp_path)).Reload()
    means = [(event.step, event.value) for event in read.Scalars("accuracy/mean")]
    tested = [(event["round"], event["mean_accuracy"]) for event in events if event["event"] == "accuracy"]
    assert means == [(step, pytest.approx(value)) for step, value in tested]
    assert [event.value for event in read.Scalars("seconds/total")] == [pytest.approx(4.1)] * 3


# --- pictures of unusual runs ---


@pytest.mark.parametrize("reach", [0.0, 0.002, 0.3])
def test_a_graph_of_any_range(tmp_path, reach):
    draw_task_graph([made.plan(), made.end(reach=reach)], tmp_path / "graph.png")
    assert (tmp_path / "graph.png").stat().st_size > 10_000


def test_curves_of_a_task_that_joined_late(tmp_path):
    events = [made.accuracy(0, {"a": 0.1}), made.accuracy(1, {"a": 0.2, "b": 0.3}), made.accuracy(2, {"a": 0.4})]
    draw_curves(events, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
