"""What a person sees: plain lines in a pipe, a live display in a terminal, the same facts in both."""

import io
import re

import pytest
from rich.console import Console

from matu_flwr.run.console import WIDTH, ConsoleFollower, Narrator, accuracy, megabytes, render_lines
from tests.run import histories as made


def piped(events, monkeypatch=None):
    out = io.StringIO()
    with ConsoleFollower(Console(file=out, highlight=False, force_terminal=False)) as shown:
        for event in events:
            shown.show(event)
    return out.getvalue()


def told(events):
    """Lines after the events."""
    narrator = Narrator()
    return [line for event in events for line in render_lines(narrator.tell(event))]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0.0 kB"), (1500, "1.5 kB"), (999_900, "999.9 kB"), (3_497_136, "3.5 MB"), (2e9, "2.00 GB")]
)
def test_bytes(count, text):
    assert megabytes(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, ".000"), (0.5, ".500"), (0.9994, ".999"), (1.0, "1.00")]
)
def test_accuracy(value, text):
    assert accuracy(value) == text


def test_an_accuracy_just_below_one_is_as_wide_as_the_others():
    assert len(accuracy(0.9996)) == 4


def test_the_plan():
    lines = told([made.plan(preset="paper", notes=["more tasks than asked for"])])
    text = "\n".join(lines)
    assert "strategy   matu, preset paper, 30 rounds, seed 0" in lines
    assert "suite      offline: 12 tasks, 10 clients" in lines
    assert "vit_mini_patch8_32 at 32 px, pre-trained, average heads, θ_p 9f9f9f9f9f9f…" in text
    assert "all parameters: d = 819,200 parameters in 40 tensors" in text
    assert "patch_embed 19,200, blocks.0–1 2 × 200,000, blocks.2 400,000" in text
    assert "predicted  3.5 MB up per client and round, as much down" in lines
    assert "note       more tasks than asked for" in lines
    assert any(
        re.match(r"digits-hand +digits +10 +450 +200 +client-000 \(225\), client-001 \(225\)$", x) for x in lines
    )


def test_the_plan_lists_what_is_not_at_its_default():
    changed = {
        "train.lr": 1e-5,
        "data-dir": "/my data",
        "matu.preset": "paper",
        "matu.modulators": False,
        "seed": 1,
    }
    lines = told([{**made.plan(), "changed": changed}])
    (line,) = (line for line in lines if line.startswith("settings "))
    assert line == (
        'settings   data-dir = "/my data", matu.modulators = false, matu.preset = paper, seed = 1, train.lr = 1e-05'
    )
    assert not any(line.startswith("settings") for line in told([{**made.plan(), "changed": {}}]))
    assert not any(line.startswith("settings") for line in told([made.plan()]))  # of an earlier release


def test_the_plan_of_clients_that_differ_and_of_a_method_that_shares_nothing():
    plan = made.plan()
    plan["predicted"]["bytes_up_per_client"]["client-002"] = 1_000_000
    assert "predicted  1.0 MB to 3.5 MB up per client and round, as much down" in told([plan])
    plan["predicted"]["bytes_up_per_client"] = dict.fromkeys(made.CLIENTS, 0)
    assert "predicted  clients and server exchange nothing but test results" in told([plan])


def test_a_round_is_one_line_once_its_accuracy_is_known():
    narrator = Narrator()
    narrator.tell(made.plan())
    assert narrator.tell(made.accuracy(0, {"a": 0.1, "b": 0.3})) == ["round  0/30  accuracy .200  worst .100 a"]
    assert narrator.tell(made.round_(1)) == []
    (line,) = narrator.tell(made.accuracy(1, {"a": 0.2, "b": 0.3}))
    assert line.split() == [
        "round",
        "1/30",
        "accuracy",
        ".250",
        "worst",
        ".200",
        "a",
        "up",
        "35.0",
        "MB",
        "down",
        "35.0",
        "MB",
        "4.1",
        "s",
    ]


def test_a_round_says_what_went_wrong():
    narrator = Narrator()
    narrator.tell(made.plan())
    (line,) = narrator.tell(made.client(2, "client-004", "no reply", status="failed"))
    assert line == "  client-004 failed in round 2: no reply"
    assert narrator.tell(made.client(2, "client-005")) == []
    narrator.tell(made.round_(2, failed=1, tasks_without_holder=["count-dots", "digits-hand"]))
    (line,) = narrator.tell(made.accuracy(2, {"a": 0.5}))
    assert line.endswith("1 of 10 clients failed  unchanged: count-dots, digits-hand")


def test_the_server_s_own_test_is_not_a_round():
    narrator = Narrator()
    narrator.tell(made.plan())
    assert narrator.tell(made.accuracy(30, {"a": 0.5}, source="server")) == []


def test_the_end_of_a_completed_run():
    events = made.history(rounds=3)
    lines = told(events)
    assert "completed in 360 s, peak memory of the server process 1.10 GB" in lines
    assert "  summary         /runs/a/summary.json" in lines
    assert sum(bool(re.match(r"round +\d/3 ", line)) for line in lines) == 4
    (row,) = (line for line in lines if re.match(r"digits-hand +\.\d", line))
    assert re.search(r"2 +digits-printed \(\d+\)$", row)
    assert any(re.match(r"mean +\.100 +\.\d\d\d", line) for line in lines)


def test_the_end_of_a_failed_run():
    events = [*made.history(rounds=3)[:25], made.end(status="failed", error="round 3: all failed", similarity=None)]
    lines = told(events)
    assert "FAILED after 360 s: round 3: all failed" in lines
    assert "the work so far is kept:" in lines


def test_a_round_whose_accuracy_never_came_is_told_at_the_end():
    lines = told([made.plan(), made.round_(1), made.round_(2), made.end(status="failed", error="stopped")])
    assert [line.split()[1] for line in lines if line.startswith("round ")] == ["1/30", "2/30"]


def test_a_round_that_nobody_tests_is_told_at_once():
    narrator = Narrator()
    narrator.tell(made.plan())
    (line,) = narrator.tell(made.round_(3, tested=False))
    assert line.startswith("round  3/30")
    assert narrator.tell(made.round_(4)) == []


def test_a_run_that_ends_before_its_plan():
    lines = told([made.end(status="failed", error="none of 3 nodes can take part", similarity=None, related={})])
    assert "FAILED after 360 s: none of 3 nodes can take part" in lines


def test_a_pipe_gets_plain_lines(monkeypatch):
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("COLORTERM", "truecolor")):
        monkeypatch.setenv(name, value)
    events = made.history(rounds=3)
    text = piped(events)
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.splitlines() == told(events)


def test_lines_fit_the_width():
    assert max(map(len, told(made.history(rounds=3)))) <= WIDTH


def test_a_long_line_of_a_pipe_is_not_broken():
    long = "x" * 300
    assert f"  client-001 failed in round 1: {long}" in piped(
        [made.plan(), made.client(1, "client-001", long, status="failed")]
    )


def named(name):
    """A plan whose first client has this name."""
    plan = made.plan()
    plan["clients"][0]["client"] = name
    for task in plan["tasks"]:
        task["holders"] = [name if holder == "client-000" else holder for holder in task["holders"]]
    return plan


@pytest.mark.parametrize("text", ["site[a]", "[red]", "node:100:"])
def test_names_and_reasons_are_shown_as_they_are(text):
    """rich reads [red] as a style and :100: as an emoji."""
    lines = told([named(text), made.client(1, "client-001", text, status="failed")])
    assert any(f"{text} (225), client-001 (225)" in line for line in lines)
    assert lines[-1] == f"  client-001 failed in round 1: {text}"
    out = io.StringIO()
    with ConsoleFollower() as shown:
        shown.console.file = out
        shown.show(named(text))
        shown.show(made.client(1, "client-001", text, status="failed"))
    assert f"{text} (225)" in out.getvalue()
    assert f"round 1: {text}\n" in out.getvalue()


def test_a_terminal_gets_a_live_display():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140, highlight=False, color_system="truecolor")
    events = made.history(rounds=2)
    with ConsoleFollower(console) as shown:
        for event in events:
            shown.show(event)
            if event["event"] == "round":
                assert shown._progress.tasks[0].completed == event["round"]
                assert shown._progress.tasks[1].completed == 0
        assert shown._progress.tasks[1].completed == len(made.CLIENTS)  # those of the closing test
    text = out.getvalue()
    assert "\x1b[?25l" in text  # the cursor is hidden while the display is live, and shown again
    assert text.rstrip().endswith("task_graph.png") or "\x1b[?25h" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    for line in ("completed in 360 s", "round 2/2", "digits-hand"):
        assert line in plain


def test_the_display_is_taken_down_whatever_happens():
    out = io.StringIO()
    shown = ConsoleFollower(Console(file=out, force_terminal=True, width=100))

    def interrupted():
        with shown:
            shown.show(made.plan())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert shown._progress.finished is False
    assert not shown._progress.live.is_started
    assert "\x1b[?25h" in out.getvalue()


def test_every_accuracy_stands_in_the_line_of_its_own_round():
    events = made.history(rounds=3)
    means = {event["round"]: event["mean_accuracy"] for event in events if event["event"] == "accuracy"}
    lines = [line for line in told(events) if line.startswith("round ")]
    assert [line.split()[1] for line in lines] == ["0/3", "1/3", "2/3", "3/3"]
    assert all(f"accuracy {accuracy(means[number])} " in line for number, line in enumerate(lines))


def test_what_a_client_says_steers_no_terminal():
    event = made.client(1, "client-000", error="\x1b[2Jgone\n\u202eback" + "x" * 10**5, status="failed")
    narrator = Narrator()
    narrator.tell(made.plan())
    (line,) = narrator.tell(event)
    assert line.startswith(r"  client-000 failed in round 1: \x1b[2Jgone \u202ebackxxx")
    assert line.isprintable()
    assert len(line) < 1300
