from __future__ import annotations

import copy
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import run_histories as runs

from matu_flwr.run.history import HistoryError, HistoryWriter, follow, read_history, summarise


def write(path: Path, events: list[dict[str, Any]]) -> Path:
    with HistoryWriter(path) as history:
        for event in events:
            history.write(event)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    events = runs.history(2)
    assert read_history(write(tmp_path / "new" / "history.jsonl", events)) == events


def test_every_line_is_there_before_the_file_is_closed(tmp_path: Path) -> None:
    with HistoryWriter(tmp_path / "h") as history:
        history.write({"event": "end"})
        assert (tmp_path / "h").read_text() == '{"event": "end"}\n'


def test_not_finite_numbers_become_null(tmp_path: Path) -> None:
    write(tmp_path / "h", [{"event": "round", "a": [float("nan"), {"b": float("-inf")}], "c": 0.5}])
    assert read_history(tmp_path / "h") == [{"event": "round", "a": [None, {"b": None}], "c": 0.5}]


def test_unknown_event_is_refused(tmp_path: Path) -> None:
    with HistoryWriter(tmp_path / "h") as history, pytest.raises(HistoryError, match=r"'rond' is none of \['plan', "):
        history.write({"event": "rond"})


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    write(tmp_path / "h", [{"event": "end"}])
    with pytest.raises(HistoryError, match="exists: give every run an out-dir of its own"):
        HistoryWriter(tmp_path / "h")


def test_missing_history_is_named(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match=r"history\.jsonl does not exist: expected the output folder of a run"):
        read_history(tmp_path / "history.jsonl")


@pytest.mark.parametrize(
    "torn", [b'{"event": "ro', '{"event": "plan", "notes": ["½'.encode()[:-1], b""], ids=["line", "character", "none"]
)
def test_torn_last_line_is_passed_over(tmp_path: Path, torn: bytes) -> None:
    path = write(tmp_path / "h", [{"event": "plan"}])
    path.write_bytes(path.read_bytes() + torn)
    assert read_history(path) == [{"event": "plan"}]


@pytest.mark.parametrize(("line", "what"), [('{"event": "ro', "Unterminated string"), ("7", "but 7")])
def test_broken_line_in_the_middle_is_named(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "h"
    path.write_text(f'{{"event": "plan"}}\n{line}\n{{"event": "end"}}\n')
    with pytest.raises(HistoryError, match=rf"h, line 2: not a JSON object .*{what}"):
        read_history(path)
    with pytest.raises(HistoryError, match="line 2"):
        list(follow(path, lambda: True))


def test_line_separators_within_a_text_do_not_break_a_line(tmp_path: Path) -> None:
    events = [{"event": "end", "error": "first\u2028second\x85third\nfourth"}]
    assert read_history(write(tmp_path / "h", events)) == events


def test_follow_waits_for_the_file_and_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "h"
    pieces = ['{"event": "plan"}\n{"eve', 'nt": "round", "note": "½', '"}\n', '{"event": "end"}\n{"event": "plan"}\n']

    def produce() -> None:
        for piece in pieces:
            time.sleep(0.03)
            with path.open("ab") as file:
                for byte in piece.encode():  # also between the bytes of a character
                    file.write(bytes([byte]))
                    file.flush()

    writer = threading.Thread(target=produce)
    writer.start()
    events = list(follow(path, lambda: False, interval=0.001))
    writer.join()
    assert events == [{"event": "plan"}, {"event": "round", "note": "½"}, {"event": "end"}]


def test_follow_stops_when_told_but_not_before_it_has_read_all(tmp_path: Path) -> None:
    assert list(follow(tmp_path / "none", lambda: True)) == []
    path = write(tmp_path / "h", [{"event": "plan"}, {"event": "round"}])
    assert [event["event"] for event in follow(path, lambda: True)] == ["plan", "round"]


# --- summary -------------------------------------------------------------------------------------------------------


def test_summary_of_a_run() -> None:
    events = runs.history(3)
    summary = summarise(events)
    digits = summary["tasks"]["digits-hand"]
    tested = [event["accuracy"]["digits-hand"] for event in events if event["event"] == "accuracy"]
    assert len(tested) == 4  # before training, and after each of 3 rounds
    assert (digits["initial_accuracy"], digits["final_accuracy"]) == (tested[0], tested[-1])
    assert digits["best_accuracy"] == max(tested)
    assert digits["holders"] == ["client-000", "client-001"]
    assert digits["related"] == ["digits-printed"]
    assert list(summary["mean_accuracy_by_round"]) == ["0", "1", "2", "3"]
    assert summary["worst_accuracy_by_round"]["3"] == min(task["final_accuracy"] for task in summary["tasks"].values())
    assert summary["bytes"]["up"] == 3 * 10 * runs.BYTES["total"]
    assert summary["bytes"]["up_per_client_and_round"] == dict.fromkeys(runs.CLIENTS, runs.BYTES["total"])
    assert summary["failures"] == []
    assert summary["run"]["status"] == "completed"
    json.dumps(summary, allow_nan=False)


def test_two_runs_of_one_seed_differ_only_in_run_and_timing() -> None:
    one = runs.history(3)
    other = runs.history(3, out_dir="/elsewhere/b", seconds=9.9)
    other[0] |= {"time": "2030-01-01T00:00:00+00:00", "run_id": "42"}
    other[0]["settings"] = copy.deepcopy(other[0]["settings"]) | {"experiment": "/elsewhere/e.yaml"}
    other[-1] |= {"time": "2030-01-01T01:00:00+00:00", "seconds": 1.0, "peak_memory_bytes": 5}
    for event in other:
        if event["event"] == "client":
            event["seconds"] = {"train": 99.0}
    other[1:11] = reversed(other[1:11])  # replies arrive in any order
    a, b = summarise(one), summarise(other)
    assert a["run"] != b["run"]
    assert a["timing"] != b["timing"]
    for summary in (a, b):
        del summary["run"], summary["timing"]
    assert json.dumps(a) == json.dumps(b)


def test_summary_names_failures_in_the_order_of_clients() -> None:
    events = runs.history(2)
    events[3] = runs.client(1, "client-002", "no reply within 300 s", "failed")
    events[2] = runs.client(1, "client-001", "another backbone", "refused")
    events[2:4] = reversed(events[2:4])
    assert summarise(events)["failures"] == [
        {"round": 1, "client": "client-001", "status": "refused", "error": "another backbone"},
        {"round": 1, "client": "client-002", "status": "failed", "error": "no reply within 300 s"},
    ]


def test_summary_of_a_run_that_was_cut_short() -> None:
    assert summarise([])["run"]["status"] == "unfinished"
    assert summarise(runs.history(3)[:20])["run"]["status"] == "unfinished"
    failed = summarise([{"event": "end", "status": "failed", "error": "no nodes"}])
    assert failed == {"run": {"status": "failed", "error": "no nodes"}}
