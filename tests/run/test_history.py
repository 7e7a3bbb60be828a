"""The history: what is written comes back, whatever became of the process that wrote it."""

import json
import math
import threading
import time

import pytest

from matu_flwr.run.history import HistoryError, HistoryWriter, follow, read_history
from matu_flwr.run.summary import accuracies, end_of, nearest_in_group, plan_of, summarise
from tests.run import histories as made


def write(path, events):
    with HistoryWriter(path) as writer:
        for event in events:
            writer.write(event)
    return path


def test_round_trip(tmp_path):
    events = made.history(rounds=2)
    path = write(tmp_path / "new" / "history.jsonl", events)
    assert read_history(path) == events
    assert len(path.read_bytes().splitlines()) == len(events)


def test_text_of_any_kind_comes_back(tmp_path):
    event = made.end(error='θ_p\u2028 line\nbreak \x85 "quote" 🌱', status="failed")
    assert read_history(write(tmp_path / "h", [event, event])) == [event, event]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_becomes_null(tmp_path, value):
    event = made.accuracy(1, {"a": 0.5}) | {"loss": {"a": value, "b": [1.0, value, (value,)]}}
    path = write(tmp_path / "h", [event])
    assert read_history(path)[0]["loss"] == {"a": None, "b": [1.0, None, [None]]}
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_run_never_overwrites_another(tmp_path):
    path = write(tmp_path / "h", [made.plan()])
    with pytest.raises(HistoryError, match=r"h exists already: give every run an out-dir of its own"):
        HistoryWriter(path)
    assert len(read_history(path)) == 1


@pytest.mark.parametrize("event", [{"event": "note"}, {}])
def test_an_unknown_kind_is_refused(tmp_path, event):
    known = r"expected one of \['plan', 'client', 'accuracy', 'round', 'resume', 'end'\]"
    with HistoryWriter(tmp_path / "h") as writer, pytest.raises(HistoryError, match=known):
        writer.write(event)
    assert read_history(tmp_path / "h") == []


def looped():
    found = {}
    found["again"] = found
    return found


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), looped(), {(1, 2): 3}])
def test_what_json_cannot_hold_is_refused_and_leaves_no_trace(tmp_path, value):
    with HistoryWriter(tmp_path / "h") as writer:
        with pytest.raises(HistoryError, match=r"^'end' event: .*; expected what JSON can hold$"):
            writer.write(made.end(artefacts=value))
        writer.write(made.end())
    assert read_history(tmp_path / "h") == [made.end()]


def test_half_a_character_cannot_stop_a_run(tmp_path):
    path = write(tmp_path / "h", [made.end(error="half \ud800 of it")])
    assert read_history(path) == [made.end(error="half ? of it")]


def test_an_event_is_there_as_soon_as_it_is_written(tmp_path):
    with HistoryWriter(tmp_path / "h") as writer:
        writer.write(made.plan())
        assert len(read_history(tmp_path / "h")) == 1


def test_a_torn_last_line_is_passed_over(tmp_path):
    events = made.history(rounds=1)
    path = write(tmp_path / "h", events)
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for keep in (last, last + 1, last + 30, len(whole) - 3):
        path.write_bytes(whole[:keep])
        assert read_history(path) == events[:-1]
    path.write_bytes(whole[:-1])  # only the line's end is missing
    assert read_history(path) == events


def test_a_line_torn_within_a_character(tmp_path):
    path = write(tmp_path / "h", [made.plan()])
    with path.open("ab") as file:
        file.write('{"event": "end", "error": "θ'.encode()[:-1])
    assert len(read_history(path)) == 1


@pytest.mark.parametrize("broken", [b'{"event": "rou', b"17", b"[]", b"\xff\xfe", b""])
def test_a_broken_line_in_the_middle_is_named(tmp_path, broken):
    path = write(tmp_path / "h", [made.plan()])
    with path.open("ab") as file:
        file.write(broken + b"\n" + json.dumps(made.end()).encode() + b"\n")
    with pytest.raises(HistoryError, match=r"h, line 2: expected a JSON object"):
        read_history(path)


def test_no_history(tmp_path):
    with pytest.raises(HistoryError, match=r"history\.jsonl does not exist: expected the output folder of a run"):
        read_history(tmp_path / "history.jsonl")


# --- follow ---


class Follower(threading.Thread):
    """Follows a file; `found` grows."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.found, self.stopped, self.error = path, [], False, None

    def run(self):
        try:
            for event in follow(self.path, lambda: self.stopped, interval=0.005):
                self.found.append(event)
        except HistoryError as error:
            self.error = error

    def wait(self, count):
        end = time.monotonic() + 10
        while len(self.found) < count and time.monotonic() < end:
            time.sleep(0.002)
        assert len(self.found) == count

    def finish(self):
        self.join(10)
        assert not self.is_alive()
        return self.found


@pytest.fixture
def follower(tmp_path):
    thread = Follower(tmp_path / "history.jsonl")
    thread.start()
    yield thread
    thread.stopped = True
    thread.join(10)


def test_follow_a_file_that_appears_late_and_ends(follower):
    time.sleep(0.02)
    events = made.history(rounds=2)
    with HistoryWriter(follower.path) as writer:
        for count, event in enumerate(events, start=1):
            writer.write(event)
            if count in (1, 5):
                follower.wait(count)
    assert follower.finish() == events  # by itself, after the end event


def test_a_line_is_followed_once_it_is_complete(follower):
    line = json.dumps(made.end(error="θ"), ensure_ascii=False).encode() + b"\n"
    middle = line.index("θ".encode()) + 1
    with follower.path.open("ab", buffering=0) as file:
        for part in (line[:10], line[10:middle], line[middle:-1]):
            file.write(part)
            time.sleep(0.03)
            assert follower.found == []
        file.write(b"\n")
    assert follower.finish() == [made.end(error="θ")]


def test_follow_stops_when_told_and_nothing_is_left(follower):
    write(follower.path, [made.plan(), made.client(1, "client-000")])
    follower.wait(2)
    follower.stopped = True
    assert len(follower.finish()) == 2


def test_follow_stops_though_the_file_never_came(follower):
    follower.stopped = True
    assert follower.finish() == []


def test_a_file_that_comes_as_the_writer_stops_is_read(tmp_path):
    def stop():  # the run wrote everything and ended between two looks
        if not (tmp_path / "h").exists():
            write(tmp_path / "h", [made.plan(), made.client(1, "client-000")])
        return True

    assert len(list(follow(tmp_path / "h", stop))) == 2


def test_follow_names_a_broken_line(follower):
    write(follower.path, [made.plan()])
    with follower.path.open("ab") as file:
        file.write(b"{broken\n")
    follower.finish()
    assert "line 2: expected a JSON object" in str(follower.error)


# --- summary ---


def moved(event):
    """The same event of a run elsewhere, at another time, on a slower machine."""
    event = json.loads(json.dumps(event).replace("/runs/a", "/elsewhere/b"))
    if event["event"] in ("plan", "end"):
        event["time"] = "2031-05-05T05:05:05+00:00"
    if event["event"] == "plan":
        event["run_id"] = "987"
        event["versions"] = {"flwr": "9"}
        event["settings"] |= {"data-dir": "/d", "cache-dir": "/c", "state-dir": "/s", "experiment": "/e.yaml"}
        event["predicted"] |= {"server_memory_bytes": 5}
    if event["event"] in ("client", "round"):
        event["seconds"] = {key: 3 * value for key, value in event["seconds"].items()}
    if event["event"] == "end":
        event |= {"seconds": 999.9, "peak_memory_bytes": 7}
    return event


def test_two_runs_of_the_same_seed_give_the_same_summary():
    events = made.history(rounds=3)
    events.insert(2, made.client(1, "client-003", "no reply", status="failed"))
    one, other = summarise(events), summarise([moved(event) for event in events])
    assert one != other
    for summary in (one, other):
        for private in ("run", "timing"):
            del summary[private]
    assert one == other
    assert "/runs/a" not in json.dumps(one)


def test_the_order_in_which_replies_came_leaves_no_mark():
    events = made.history(rounds=3)
    events += [made.client(2, name, "no reply", status="failed") for name in ("client-004", "client-001")]
    shuffled = [e for e in events if e["event"] != "client"] + [e for e in reversed(events) if e["event"] == "client"]
    shuffled = [shuffled[0], *sorted(shuffled[1:], key=lambda e: e.get("round", 99))]
    assert json.dumps(summarise(events)) == json.dumps(summarise(shuffled))


def test_what_a_summary_says():
    events = made.history(rounds=3)
    summary = summarise(events)
    found = accuracies(events)
    assert sorted(found) == [0, 1, 2, 3]
    assert summary["rounds"] == 3
    assert summary["mean_accuracy"] == pytest.approx(sum(found[3].values()) / 12)
    assert summary["worst_accuracy_by_round"]["2"] == min(found[2].values())
    assert summary["tasks"]["digits-hand"]["initial_accuracy"] == found[0]["digits-hand"]
    assert summary["tasks"]["digits-hand"]["best_accuracy"] == max(a["digits-hand"] for a in found.values())
    assert summary["bytes"]["up"] == 3 * 10 * made.BYTES["total"]
    assert summary["bytes"]["up_per_client_and_round"]["client-000"] == made.BYTES["total"]
    assert summary["failures"] == []
    assert summary["server_mean_accuracy"] is None
    json.dumps(summary, allow_nan=False)


def test_tests_of_the_server_stand_apart():
    events = made.history(rounds=1)
    events.insert(-1, made.accuracy(1, {"digits-hand": 0.25}, source="server"))
    summary = summarise(events)
    assert summary["server_mean_accuracy"] == 0.25
    assert summary["tasks"]["digits-hand"]["server_accuracy"] == 0.25
    assert summary["tasks"]["count-dots"]["server_accuracy"] is None
    assert summary["mean_accuracy"] == summarise(made.history(rounds=1))["mean_accuracy"]


@pytest.mark.parametrize("kept", [0, 1, 2, 15])
def test_a_run_that_was_cut_short_has_a_summary_too(kept):
    summary = summarise(made.history(rounds=2)[:kept])
    assert summary["run"]["status"] == "unfinished"
    assert summary["run"]["error"] is None


def test_a_run_that_failed_before_its_plan():
    summary = summarise([made.end(status="failed", error="no nodes", similarity=None, related={})])
    assert summary["run"] == {"status": "failed", "error": "no nodes"}


def test_plan_and_end():
    events = made.history(rounds=1)
    assert plan_of(events) is events[0]
    assert plan_of(events[1:]) is None
    assert end_of(events) is events[-1]
    assert end_of(events[:-1]) is None


def test_nearest_in_group_by_hand():
    tasks = [{"name": n, "group": g} for n, g in (("a", "one"), ("b", "one"), ("c", "two"), ("d", "two"), ("e", ""))]
    values = [
        [1.0, 0.6, 0.5, 0.5, 0.5],  # a: b, right
        [0.6, 1.0, 0.7, 0.5, 0.5],  # b: c, wrong
        [0.5, 0.7, 1.0, 0.5, 0.5],  # c: b, wrong
        [0.5, 0.5, 0.6, 1.0, 0.9],  # d: e, wrong
        [0.5, 0.5, 0.5, 0.9, 1.0],  # e has no partner and does not count
    ]
    graph = {"order": ["a", "b", "c", "d", "e"], "values": values}
    plan, end = {"event": "plan", "tasks": tasks}, {"event": "end", "similarity": graph}
    assert nearest_in_group([plan, end]) == 1 / 4
    assert nearest_in_group([plan, end | {"similarity": None}]) is None
    assert nearest_in_group([plan]) is None
    alone = [{"name": n, "group": ""} for n in "abcde"]
    assert nearest_in_group([plan | {"tasks": alone}, end]) is None


def test_the_pairs_of_a_run_are_each_other_s_nearest():
    assert nearest_in_group(made.history()) == 1.0
    assert summarise(made.history())["nearest_in_group"] == 1.0


def test_the_summary_counts_who_was_clipped_and_has_the_last_epsilon():
    told = [{"vectors": {"b": {"t": 0.5}}, "heads": {"a": {"t": 0.1}}}, {}, {"heads": {"b": {"t": 0.9}}}]
    rounds = [
        made.round_(n, clipped=found, privacy={"delta": 1e-5, "epsilon": {"a": {"t": float(n)}}})
        for n, found in enumerate(told, start=1)
    ]
    summary = summarise([made.plan(3), *rounds, made.end()])
    assert summary["clipped_rounds"] == {"a": 1, "b": 2}
    assert summary["privacy"] == {"delta": 1e-5, "epsilon": {"a": {"t": 3.0}}}
    bare = summarise(made.history(rounds=1))
    assert (bare["clipped_rounds"], bare["privacy"]) == ({}, None)


# --- figures of a summary, by hand ---


def sized(event, up, down):
    """A client's event with these bytes in all."""
    return event | {"bytes_up": None if up is None else {"total": up}, "bytes_down": {"total": down}}


def test_the_server_s_figures_are_those_of_its_last_test():
    events = made.history(rounds=2)
    for round_, hand, dots in ((1, 0.9, 0.7), (2, 0.5, 0.25), (0, 0.1, 0.1)):
        events.insert(-1, made.accuracy(round_, {"digits-hand": hand, "count-dots": dots}, source="server"))
    summary = summarise(events)
    assert summary["server_mean_accuracy"] == 0.375
    assert summary["tasks"]["digits-hand"]["server_accuracy"] == 0.5
    assert summary["tasks"]["count-dots"]["server_accuracy"] == 0.25
    assert summary["tasks"]["letters-sans"]["server_accuracy"] is None


def test_bytes_of_a_client_are_the_mean_over_training_rounds_that_moved_a_vector():
    """Round 1 sends no vector down; tests, and replies that never came, are left out."""
    one, other = "client-001", "client-000"
    events = [
        made.plan(3),
        sized(made.client(1, one), 1000, 7),
        sized(made.client(2, one), 200, 30),
        sized(made.client(3, one), 400, 50),
        sized(made.client(3, one, phase="evaluate"), 5, 5),
        sized(made.client(2, other, "no reply", status="failed"), None, 70),
        sized(made.client(3, other), 600, 90),
        *(made.round_(n, bytes_up=10 * n, bytes_down=100 * n) for n in (1, 2, 3)),
    ]
    found = summarise(events)["bytes"]
    assert found == {
        "up": 60,
        "down": 600,
        "up_per_client_and_round": {other: 600, one: 300},
        "down_per_client_and_round": {other: 80, one: 40},
    }
    assert list(found["up_per_client_and_round"]) == [other, one]  # in the order of partitions


def test_the_last_round_and_the_best_one_by_hand():
    """Accuracy rises and falls: what is final, best, first and worst are four things."""
    name = "digits-hand"
    by_round = {0: (0.1, 0.2), 1: (0.9, 0.3), 2: (0.5, 0.7)}
    tests = [made.accuracy(n, {name: a, "count-dots": b}) for n, (a, b) in by_round.items()]
    summary = summarise([made.plan(2), *tests, made.round_(1), made.round_(2)])
    assert summary["mean_accuracy"] == pytest.approx(0.6)
    assert summary["mean_accuracy_by_round"] == {"0": pytest.approx(0.15), "1": 0.6, "2": 0.6}
    assert summary["worst_accuracy_by_round"] == {"0": 0.1, "1": 0.3, "2": 0.5}
    told = summary["tasks"][name]
    assert (told["initial_accuracy"], told["final_accuracy"], told["best_accuracy"]) == (0.1, 0.5, 0.9)
    assert summary["tasks"]["letters-sans"]["best_accuracy"] is None
    assert summary["rounds"] == 2
