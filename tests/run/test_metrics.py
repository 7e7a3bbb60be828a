"""A run's numbers as Prometheus reads them."""

import math
import socket
import urllib.request

import pytest
from flwr.common.logger import FLOWER_LOGGER
from prometheus_client.parser import text_string_to_metric_families

from matu_flwr.merging import MergeOptions
from matu_flwr.run.history import read_history
from matu_flwr.run.metrics import RunMetrics
from matu_flwr.run.recorder import Recorder
from tests.run import histories as made


def read(text):
    """Values by name and labels, those in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.fixture
def recorded(tmp_path):
    with Recorder(tmp_path, MergeOptions()) as recorder:
        for event in made.history(rounds=3)[:-1]:
            recorder.observe(event)
        during = read((tmp_path / "metrics.prom").read_text())
    return read_history(tmp_path / "history.jsonl"), during, read((tmp_path / "metrics.prom").read_text())


def test_they_say_what_the_history_says(recorded):
    events, during, after = recorded
    rounds = [event for event in events if event["event"] == "round"]
    clients = [event for event in events if event["event"] == "client"]
    tested = [event for event in events if event["event"] == "accuracy" and event["source"] == "clients"]
    assert after["matu_run_info", "123456789", "0", "matu", "offline"] == 1
    assert (after["matu_round",], after["matu_rounds_planned",], after["matu_clients",]) == (3, 3, 10)
    assert after["matu_bytes_total", "up"] == sum(event["bytes_up"] for event in rounds)
    assert after["matu_bytes_total", "down"] == sum(event["bytes_down"] for event in rounds)
    assert after["matu_round_seconds", "total"] == rounds[-1]["seconds"]["total"]
    for task, accuracy in tested[-1]["accuracy"].items():
        assert after["matu_accuracy", "clients", task] == accuracy
    for name in made.CLIENTS:
        for status in ("ok", "failed"):
            count = sum(event["client"] == name and event["status"] == status for event in clients)
            assert after.get(("matu_replies_total", name, status), 0) == count
    assert (during["matu_ended",], after["matu_ended",], after["matu_failed",]) == (0, 1, 0)


def test_a_resumed_run_goes_on_counting(tmp_path):
    events = made.history(rounds=2)[:-1]
    recorder = Recorder(tmp_path, MergeOptions())
    for event in events:
        recorder.observe(event)
    mark = recorder.mark()
    recorder._history.close()
    recorder._lock.release()  # as the system does for a process that is killed
    before = read((tmp_path / "metrics.prom").read_text())
    with Recorder(tmp_path, MergeOptions(), after=mark) as resumed:
        resumed.observe({"event": "resume", "round": 2, "time": "", "attempt": 1, "run_id": "5"})
        after = read((tmp_path / "metrics.prom").read_text())
    changing = ("matu_last_event_timestamp_seconds",)
    assert {key: value for key, value in after.items() if key[0] not in changing} == {
        key: value for key, value in before.items() if key[0] not in changing
    }


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What Flower's logger is given, whatever level other tests have left."""
    monkeypatch.setattr(FLOWER_LOGGER, "propagate", True)
    caplog.set_level("WARNING", logger=FLOWER_LOGGER.name)
    return caplog


def free_port():
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]


def test_they_are_served_where_the_environment_asks_for_it(tmp_path, monkeypatch):
    port = free_port()
    monkeypatch.setenv("MATU_METRICS_ADDRESS", f"127.0.0.1:{port}")
    metrics = RunMetrics(tmp_path / "metrics.prom")
    stop = metrics.serve()
    metrics.observe(made.plan(rounds=5))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert read(answer.read().decode())["matu_rounds_planned",] == 5
    stop()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)


@pytest.mark.parametrize("address", ["here", "127.0.0.1:", "127.0.0.1:123456", "127.0.0.1:taken"])
def test_an_address_that_cannot_be_had_is_said_and_does_not_stop_the_run(tmp_path, monkeypatch, warnings, address):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = address.replace("taken", str(other.getsockname()[1]))
        monkeypatch.setenv("MATU_METRICS_ADDRESS", address)
        RunMetrics(tmp_path / "metrics.prom").serve()
    assert f"not served: MATU_METRICS_ADDRESS = {address!r}, expected HOST:PORT with a free port" in warnings.text


def test_a_file_that_cannot_be_written_is_said_and_does_not_stop_the_run(tmp_path, warnings):
    RunMetrics(tmp_path / "no" / "such" / "folder").write()
    assert "cannot write the metrics" in warnings.text


def test_a_history_with_numbers_that_are_none_is_read_again(tmp_path):
    """Earlier releases took any seconds from a client, and wrote their sum as null where it left float64."""
    client = made.client(1, "client-000") | {"seconds": {"train": None}}
    events = [made.plan(), client, made.round_(1, seconds=None), made.accuracy(1, {"a": 0.5}) | {"loss": {"a": None}}]
    with Recorder(tmp_path, MergeOptions()) as recorder:
        for event in events:
            recorder.observe(event)
        mark = recorder.mark()
    with Recorder(tmp_path, MergeOptions(), after=mark):
        pass
    found = read((tmp_path / "metrics.prom").read_text())
    assert math.isnan(found["matu_client_seconds", "train", "client-000"])


def test_rounds_that_were_rolled_back_are_counted(tmp_path):
    metrics = RunMetrics(tmp_path / "m")
    for number in (1, 2):
        metrics.observe(made.round_(number, rolled_back={"a": "it jumped"}))
    metrics.write()
    assert read((tmp_path / "m").read_text())["matu_rolled_back_rounds_total", "a"] == 2
