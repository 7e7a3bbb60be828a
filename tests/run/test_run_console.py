from __future__ import annotations

import io
from typing import Any

import pytest
import run_histories as runs
from rich.console import Console

from matu_flwr.run.console import ConsoleFollower, Narrator, accuracy, megabytes, render_lines, round_line


def shown(events: list[dict[str, Any]], terminal: bool, width: int = 160) -> str:
    out = io.StringIO()
    with ConsoleFollower(Console(file=out, force_terminal=terminal, width=width, highlight=False)) as follower:
        for event in events:
            follower.show(event)
    return out.getvalue()


@pytest.mark.parametrize(("count", "text"), [(15_440, "15.4 kB"), (33_100_000, "33.1 MB"), (1_100_000_000, "1.10 GB")])
def test_bytes(count: int, text: str) -> None:
    assert megabytes(count) == text


@pytest.mark.parametrize(("value", "text"), [(0.6123, ".612"), (0.0, ".000"), (1.0, "1.00"), (None, "–")])
def test_accuracy(value: float | None, text: str) -> None:
    assert accuracy(value) == text


def test_round_line() -> None:
    tested = runs.accuracy(3, {"digits": 0.914, "kmnist": 0.31})
    line = round_line(30, 3, tested, runs.round_(3, failed=1, tasks_without_holder=["flowers"]))
    assert " ".join(line.split()) == (
        "round 3/30 accuracy .612 worst .310 kmnist up 31.5 MB down 35.0 MB 4.1 s "
        "1 of 10 clients failed unchanged: flowers"
    )
    assert round_line(30, 0, tested, None) == "round  0/30  accuracy .612  worst .310 kmnist"


def test_pipe_gets_plain_lines() -> None:
    events = runs.history(3)
    text = shown(events, terminal=False)
    assert "\x1b" not in text
    assert "\r" not in text
    assert max(map(len, text.splitlines())) <= 120
    rounds = [line for line in text.splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in rounds] == ["0/3", "1/3", "2/3", "3/3"]
    assert "d = 819,200 trainable parameters" in text
    assert "3.5 MB up per client and round" in text
    assert "digits-printed (" in text  # related to digits-hand, with its z
    assert text.splitlines()[-1].split() == ["task", "vectors", "/runs/a/task_vectors.safetensors"]


def test_every_accuracy_stands_in_the_line_of_its_own_round() -> None:
    events = runs.history(3)
    by_round = {event["round"]: event["mean_accuracy"] for event in events if event["event"] == "accuracy"}
    for line in shown(events, terminal=False).splitlines():
        if line.startswith("round "):
            number = int(line.split()[1].split("/")[0])
            assert f"accuracy {accuracy(by_round[number])} " in line


def test_terminal_gets_a_live_display_and_the_same_lines() -> None:
    events = runs.history(3)
    text = shown(events, terminal=True)
    assert "\x1b[" in text
    assert "clients" in text
    for line in plain_rounds(events):
        assert line in text


def plain_rounds(events: list[dict[str, Any]]) -> list[str]:
    return [line for line in shown(events, terminal=False).splitlines() if line.startswith("round ")]


@pytest.mark.parametrize("terminal", [False, True])
def test_lost_clients_are_shown_with_their_reasons(terminal: bool) -> None:
    events = runs.history(3)
    events[2] = runs.client(1, "client-001", "another θ_p [12ab], expected [9f9f]", "refused")
    text = shown(events, terminal)
    assert "client-001 refused in round 1: another θ_p [12ab], expected [9f9f]" in text


def test_a_failed_run_says_so_and_shows_the_rounds_it_had() -> None:
    events = [*runs.history(3)[:25], runs.end(status="failed", error="too many failed clients", similarity=None)]
    lines = shown(events, terminal=False).splitlines()
    assert any(line.startswith("round 2/3") and "accuracy" not in line for line in lines)
    assert "FAILED after 360 s: too many failed clients" in lines


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_that_failed_before_its_plan(terminal: bool) -> None:
    end = runs.end(status="failed", error="no nodes", similarity=None, related={}, artefacts={})
    text = shown([runs.client(0, "client-003", "speaks version 2", "refused"), end], terminal)
    assert "client-003 refused in round 0: speaks version 2" in text
    assert "FAILED after 360 s: no nodes" in text


def test_log_lines_are_those_of_the_pipe() -> None:
    events, narrator = runs.history(2), Narrator()
    logged = [line for event in events for line in render_lines(narrator.tell(event))]
    assert logged == shown(events, terminal=False).splitlines()
