"""Logs for machines: every line an object, with what it is about."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from matu_flwr import logs
from tests.support.federation import tiny_values

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests" / "support"


def lines_of(code: str, **environment: str) -> list[str]:
    """What a process of its own writes to its log."""
    path = os.pathsep.join([str(ROOT), str(SUPPORT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return done.stderr.splitlines()


SOME = """
import logging
from matu_flwr import logs
from flwr.common.logger import log
logs.set_up()
logs.set_up()
logs.now_about(run="7")
log(logging.INFO, "")
log(logging.INFO, "\\t├── one: %d", 1)
with logs.about(client="north", task="mnist"):
    logs.detail("two")
logs.now_about(round=3)
logging.getLogger("matu_flwr.tasks.cache").warning("three")
logs.now_about(run="8")
log(logging.ERROR, "four")
"""


def test_every_line_is_an_object_that_says_what_it_is_about():
    found = [json.loads(line) for line in lines_of(SOME, MATU_LOG_FORMAT="json")]
    assert all(line.pop("time").endswith("+00:00") for line in found)
    assert found == [
        {"level": "INFO", "logger": "flwr", "message": "├── one: 1", "run": "7"},
        {"level": "INFO", "logger": "flwr", "message": "two", "run": "7", "client": "north", "task": "mnist"},
        {"level": "WARNING", "logger": "matu_flwr.tasks.cache", "message": "three", "run": "7", "round": 3},
        {"level": "ERROR", "logger": "flwr", "message": "four", "run": "8", "round": 3},
    ]


@pytest.mark.parametrize("chosen", ["", "text"])
def test_as_text_it_is_flower_s_own_and_without_details(chosen):
    found = "\n".join(lines_of(SOME, MATU_LOG_FORMAT=chosen))
    assert "├── one: 1" in found
    assert "two" not in found
    assert "{" not in found


def test_flower_s_level_holds_for_json_too():
    found = [json.loads(line) for line in lines_of(SOME, MATU_LOG_FORMAT="json", FLWR_LOG_LEVEL="ERROR")]
    assert [line["message"] for line in found] == ["four"]


def test_an_unknown_format_is_refused(monkeypatch):
    monkeypatch.setenv("MATU_LOG_FORMAT", "xml")
    with pytest.raises(logs.LogError, match=r"^MATU_LOG_FORMAT = 'xml': expected one of text, json$"):
        logs.set_up()


def test_the_lines_of_a_run_say_run_round_partition_and_task(tmp_path):
    out_dir, values = str(tmp_path / "out"), tiny_values(tmp_path)
    code = f"import pathlib, whole_run; whole_run.run(pathlib.Path({out_dir!r}), {values!r}, run_id=42, level=20)"
    found = [json.loads(line) for line in lines_of(code, MATU_LOG_FORMAT="json") if line.startswith("{")]
    assert found
    assert {line["run"] for line in found} == {"42"}
    trained = [line for line in found if line["message"].startswith("trained on")]
    tested = [line for line in found if "test images right" in line["message"]]
    assert {(line["round"], line["phase"]) for line in trained} == {(1, "train"), (2, "train")}
    assert {(line["round"], line["phase"]) for line in tested} == {(1, "train"), (2, "train"), (2, "evaluate")}
    for line in trained + tested:
        assert line["client"] == f"client-{line['partition']:03d}"
    assert {line["task"] for line in trained} == {"dots", "squares", "gratings", "stripes"}
    assert any(line["message"].startswith("round 1/2") and "client" not in line for line in found)


# --- text from elsewhere ---


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("as it is, 🌱 ümläut θ_p", "as it is, 🌱 ümläut θ_p"),
        ("two\r\nlines\tand\u2028more\xa0\x85", "two lines and more"),
        ("\x1b[2J\x1b]0;title\x07red", r"\x1b[2J\x1b]0;title\x07red"),
        ("nothing\u202e wrong\u2066\u200b\ufeff", r"nothing\u202e wrong\u2066\u200b\ufeff"),
        ("half \ud800 a character", r"half \ud800 a character"),
        ("", ""),
        ("x" * 500, "x" * 500),
        ("x" * 501, "x" * 497 + "..."),
        ("\x1b" * 499, (r"\x1b" * 499)[:497] + "..."),
        ("x " * 10**6, ("x " * 250)[:497] + "..."),
    ],
)
def test_text_from_elsewhere_becomes_one_line_that_steers_nothing(text, shown):
    found = logs.printable(text)
    assert found == shown
    assert found.isprintable()
    assert len(found) <= 500
    found.encode()


def test_the_limit_can_be_chosen():
    assert logs.printable("abcdefghij", 5) == "ab..."
