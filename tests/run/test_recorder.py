"""A run is kept however it ends."""

import json

import pytest

from matu_flwr import digests
from matu_flwr.merging import MergeOptions
from matu_flwr.run.history import HistoryError, HistoryMark, read_history
from matu_flwr.run.recorder import Recorder, is_going_on, run_graph
from tests.run import histories as made

OPTIONS = MergeOptions(epsilon=3.0, epsilon_unit="z", kappa=1)


def record(folder, events, error=None, keep=dict):
    """Record the events, then raise the error."""
    with Recorder(folder, OPTIONS, keep=keep) as recorder:
        for event in events:
            recorder.observe(event)
        if error is not None:
            raise error


def test_a_completed_run(tmp_path):
    events = made.history(rounds=2)[:-1]
    record(tmp_path, events, keep=lambda: {"task vectors": "/somewhere/t.safetensors"})
    *before, end = read_history(tmp_path / "history.jsonl")
    assert before == events
    assert (end["status"], end["error"]) == ("completed", None)
    assert end["artefacts"].pop("task vectors") == "/somewhere/t.safetensors"
    assert dict(end["artefacts"].items()) == {
        "history": str(tmp_path / "history.jsonl"),
        "summary": str(tmp_path / "summary.json"),
        "metrics": str(tmp_path / "metrics.prom"),
        "curves": str(tmp_path / "curves.png"),
        "task graph": str(tmp_path / "task_graph.png"),
    }
    assert all((tmp_path / path).is_file() for path in end["artefacts"].values())
    assert end["related"]["digits-hand"] == ["digits-printed"]
    assert end["seconds"] >= 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("round 2: all clients failed"), "round 2: all clients failed"),
        (KeyboardInterrupt(), "stopped from outside (KeyboardInterrupt)"),
        (SystemExit(0), "stopped from outside (SystemExit)"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_run_that_fails_keeps_what_it_has_and_the_exception_goes_on(tmp_path, error, reason):
    kept = []
    with pytest.raises(type(error)) as raised:
        record(tmp_path, made.history(rounds=2)[:14], error, keep=lambda: kept.append(1) or {"task vectors": "/t"})
    assert raised.value is error
    assert kept == [1]
    end = read_history(tmp_path / "history.jsonl")[-1]
    assert (end["event"], end["status"], end["error"]) == ("end", "failed", reason)
    assert end["artefacts"]["task vectors"] == "/t"
    assert json.loads((tmp_path / "summary.json").read_text())["run"]["status"] == "failed"


def test_a_run_that_fails_before_anything(tmp_path):
    with pytest.raises(RuntimeError, match="no nodes"):
        record(tmp_path, [], RuntimeError("no nodes"))
    (end,) = read_history(tmp_path / "history.jsonl")
    assert end["similarity"] is None
    assert sorted(end["artefacts"]) == ["history", "metrics", "summary"]
    assert all((tmp_path / path).is_file() for path in end["artefacts"].values())


def full_disk():
    raise OSError("no space left on device")


def test_tensors_that_cannot_be_kept_do_not_hide_why_the_run_failed(tmp_path):
    with pytest.raises(RuntimeError, match="all clients failed"):
        record(tmp_path, made.history(rounds=1)[:13], RuntimeError("all clients failed"), keep=full_disk)
    end = read_history(tmp_path / "history.jsonl")[-1]
    assert (end["event"], end["status"], end["error"]) == ("end", "failed", "all clients failed")
    assert (tmp_path / "summary.json").is_file()


def test_a_run_whose_tensors_cannot_be_kept_has_failed(tmp_path):
    with pytest.raises(OSError, match="no space left"):
        record(tmp_path, made.history(rounds=1)[:-1], keep=full_disk)
    end = read_history(tmp_path / "history.jsonl")[-1]
    assert (end["event"], end["status"]) == ("end", "failed")
    assert "no space left" in end["error"]


def test_a_disk_that_is_full_to_the_last_byte(tmp_path, monkeypatch):
    """Nothing can be written, not even how the run ended: it still ends with its own reason."""

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            self.file.write(data[:7])
            raise OSError(28, "No space left on device")

    lines = []
    monkeypatch.setattr("matu_flwr.run.recorder.log", lambda level, text, *values: lines.append(text % values))
    events = made.history(rounds=1)[:-1]

    def fill_up():
        with Recorder(tmp_path, OPTIONS) as recorder:
            recorder.observe(events[0])
            recorder._history._file = Full(recorder._history._file)
            recorder.observe(events[1])

    with pytest.raises(HistoryError, match=r"history\.jsonl cannot be written: \[Errno 28\] No space left on device"):
        fill_up()
    assert read_history(tmp_path / "history.jsonl") == events[:1]  # no torn line
    assert any(line.startswith("the end of the history could not be written:") for line in lines)


def test_a_folder_where_a_run_still_goes_on_is_refused(tmp_path):
    with Recorder(tmp_path, OPTIONS) as recorder:
        assert is_going_on(tmp_path)
        recorder.observe(made.plan())
        with pytest.raises(HistoryError, match="is still going on: stop it first, or name another out-dir"):
            Recorder(tmp_path, OPTIONS, after=recorder.mark())
    assert not is_going_on(tmp_path)


def test_a_run_goes_on_after_a_mark(tmp_path):
    events = made.history(rounds=2)[:-1]
    marks = []

    def cut_off():
        with Recorder(tmp_path, OPTIONS) as recorder:
            for event in events[:8]:
                recorder.observe(event)
            marks.append(recorder.mark())
            recorder.observe(events[8])
            raise KeyError("cut off")

    with pytest.raises(KeyError):
        cut_off()
    assert read_history(tmp_path / "history.jsonl")[-1]["status"] == "failed"
    with Recorder(tmp_path, OPTIONS, after=marks[0], earlier=100.0) as recorder:
        assert read_history(tmp_path / "history.jsonl") == events[:8]
        for event in events[8:]:
            recorder.observe(event)
        assert recorder.mark() == HistoryMark(
            (tmp_path / "history.jsonl").stat().st_size, digests.of_file(tmp_path / "history.jsonl")
        )
    *before, end = read_history(tmp_path / "history.jsonl")
    assert before == events
    assert (end["status"], end["seconds"] >= 100) == ("completed", True)


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    record(tmp_path, [])
    with pytest.raises(HistoryError, match="exists already: give every run an out-dir of its own") as refused:
        Recorder(tmp_path, OPTIONS)
    assert not is_going_on(tmp_path), refused  # which holds on to the recorder that was not made


def test_events_are_logged_in_words(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("matu_flwr.run.recorder.log", lambda level, text, *values: lines.append(text % values))
    record(tmp_path, made.history(rounds=1)[:-1])
    assert "suite      offline: 12 tasks, 10 clients" in lines
    assert any(line.startswith("round 1/1  accuracy") for line in lines)
    assert any(line.startswith("completed in") for line in lines)


# --- the graph of a run ---


def round_of(tasks, s, z):
    return {"event": "round", "order": tasks, "similarity": s, "z": z}


def test_no_round_had_a_graph():
    assert run_graph([], OPTIONS) == {}
    assert run_graph([made.plan(), round_of([], None, None)], OPTIONS) == {}


def test_only_the_first_third_of_the_rounds_counts():
    early, late = (
        round_of(["a", "b"], [[1, 0.6], [0.6, 1]], [[9, 2], [2, 9]]),
        round_of(["a", "b"], [[1, 0], [0, 1]], [[9, 0], [0, 9]]),
    )
    assert run_graph([early, early, late, late, late, late], OPTIONS)["similarity"]["values"][0][1] == pytest.approx(
        0.6
    )
    assert run_graph([early], OPTIONS)["similarity"]["values"][0][1] == pytest.approx(0.6)


def test_the_mean_over_the_rounds_in_which_both_were_trained(monkeypatch):
    monkeypatch.setattr("matu_flwr.run.recorder.GRAPH_SHARE", 1)
    # a and b meet in both rounds, c meets a in the second only; b and c never meet
    events = [
        round_of(["a", "b"], [[1, 0.6], [0.6, 1]], [[9, 2], [2, 9]]),
        round_of(["b", "a"], [[1, 0.7], [0.7, 1]], [[9, 4], [4, 9]]),
        round_of(["a", "c"], [[1, 0.4], [0.4, 1]], [[9, -1], [-1, 9]]),
    ]
    found = run_graph(events, OPTIONS)
    assert found["similarity"]["order"] == ["a", "b", "c"]
    s, z = found["similarity"]["values"], found["similarity"]["z"]
    assert s[0][1] == s[1][0] == pytest.approx(0.65)  # (.6 + .7) / 2
    assert z[0][1] == pytest.approx(6 / 2**0.5)  # (2 + 4) / √2
    assert s[0][2] == pytest.approx(0.4)
    assert z[0][2] == -1
    assert (s[1][2], z[1][2]) == (0.5, 0)
    assert [s[i][i] for i in range(3)] == [1, 1, 1]
    assert found["related"] == {"a": ["b"], "b": ["a"], "c": []}  # z = 4.2 reaches 3, −1 does not


def test_related_tasks_follow_the_options():
    events = [round_of(["a", "b"], [[1, 0.6], [0.6, 1]], [[9, 2], [2, 9]])]
    assert run_graph(events, OPTIONS)["related"] == {"a": [], "b": []}
    weaker = MergeOptions(epsilon=0.55, epsilon_unit="similarity", kappa=3)
    assert run_graph(events, weaker)["related"] == {"a": ["b"], "b": ["a"]}
    assert run_graph(events, MergeOptions(epsilon=0.0, kappa=0))["related"] == {"a": [], "b": []}
