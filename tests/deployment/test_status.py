"""`matu status` reads, says how a run stands, and changes nothing."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from matu_flwr.cli import app
from matu_flwr.deployment import status as status_command
from matu_flwr.run.checkpoint import Checkpoint, write_checkpoint
from matu_flwr.run.history import HistoryMark, HistoryWriter
from matu_flwr.run.recorder import LOCK

PLAN = {
    "event": "plan",
    "strategy": "matu",
    "suite": "offline",
    "seed": 3,
    "rounds": 5,
    "clients": [{"client": "north", "tasks": {"dots": 40, "bars": 9}}, {"client": "south", "tasks": {"dots": 30}}],
}


def client(name, round_, status="ok", error=None):
    seconds = {"train": 1.25, "unify": 0.25} if status == "ok" else {}
    return {"event": "client", "client": name, "round": round_, "status": status, "error": error, "seconds": seconds}


EVENTS = [
    PLAN,
    client("north", 1),
    client("south", 1),
    {"event": "round", "round": 1},
    client("north", 2),
    client("south", 2, "failed", "ClientApp stopped responding. (code 8)"),
    {"event": "round", "round": 2},
    {"event": "resume", "round": 2, "time": "2026-11-26T01:00:00+00:00"},
]


def folder_of(path: Path, *more: dict) -> Path:
    with HistoryWriter(path / "history.jsonl") as writer:
        for event in (*EVENTS, *more):
            writer.write(event)
    for round_ in (1, 2):
        state = Checkpoint(
            round_, 5, 0, f"2026-11-26T00:0{round_}:00+00:00", "run-1", "f", {}, {}, HistoryMark(0, ""), 1.0, {}
        )
        write_checkpoint(path, state, {"a": torch.zeros(250_000)}, 2)
    return path


def said(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["status", *arguments])
    assert result.exit_code == status, result.output
    return result.output


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
    }


def test_a_run_that_was_cut_off(tmp_path):
    folder = folder_of(tmp_path / "out")
    (folder / LOCK).touch()
    before = everything(folder)
    text = said(str(folder))
    assert everything(folder) == before
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[:3] == [
        f"run         {folder}",
        f"state       cut off; go on with it: matu run --resume {folder}",
        "method      matu on suite offline, seed 3",
    ]
    assert lines[3].startswith("rounds      2 of 5 done, last event ")
    assert lines[4:7] == [
        "resumed     after round 2, 2026-11-26T01:00:00+00:00",
        "checkpoint  round 2 of 5, 2026-11-26T00:02:00+00:00, 1.0 MB",
        "checkpoint  round 1 of 5, 2026-11-26T00:01:00+00:00, 1.0 MB",
    ]
    north, south = (" ".join(line.split()) for line in lines if line.startswith(("north", "south")))
    assert north == "north dots, bars ok in round 2, 1.5 s of work 0"
    assert south.startswith("south dots failed in round 2: ClientApp stopped")


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ({"status": "completed", "seconds": 61.2, "error": None}, "completed in 61 s"),
        ({"status": "failed", "seconds": 3.0, "error": "no nodes"}, "failed after 3 s: no nodes"),
    ],
)
def test_a_run_that_has_ended(tmp_path, end, state):
    assert f"state       {state}\n" in said(str(folder_of(tmp_path, {"event": "end", **end})))


def test_a_run_that_goes_on(tmp_path):
    from filelock import FileLock

    with FileLock(folder_of(tmp_path) / LOCK):
        assert "state       going on\n" in said(str(tmp_path))


def test_a_broken_checkpoint_is_shown(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "checkpoints" / "round-000002.json").write_text("{")
    assert "checkpoint  BROKEN: checkpoint" in said(str(tmp_path))


def test_nothing_to_ask_about(tmp_path):
    assert "error: name the output folder of a run, or a SuperLink: --superlink NAME" in said(status=1)
    assert "does not exist: expected the output folder of a run" in said(str(tmp_path / "none"), status=1)


@pytest.fixture
def flower(tmp_path, monkeypatch):
    """A configuration of Flower with a remote SuperLink and a local one."""
    (tmp_path / "config.toml").write_text(
        '[superlink]\ndefault = "local"\n[superlink.local]\naddress = ":local:"\n'
        '[superlink.ward]\naddress = "127.0.0.1:1"\ninsecure = true\n'
    )
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))


@pytest.mark.usefixtures("flower")
@pytest.mark.parametrize("name", ["local", "other"])
def test_asking_starts_no_superlink(name):
    text = said("--superlink", name, status=1)
    assert f"has no SuperLink {name!r} with an address (a local one cannot be asked without starting it)" in text
    assert "those with an address are ['ward']" in text


@pytest.mark.usefixtures("flower")
def test_what_flower_answers(monkeypatch):
    answers = {
        "supernode": {"nodes": [{"node-id": "11", "owner-name": "-", "status": "online", "status-changed-at": "now"}]},
        "list": {"runs": [{"run-id": "7", "status": "running", "status-details": "", "elapsed": "00:01:00"}]},
    }
    monkeypatch.setattr(status_command, "ask_flower", lambda *arguments: answers[arguments[0]])
    text = said("--superlink", "ward")
    assert text.index("nodes of ward") < text.index("online") < text.index("runs of ward") < text.index("running")


@pytest.mark.usefixtures("flower")
def test_a_superlink_that_is_not_there():
    assert "error: `flwr supernode list ward` failed with exit status" in said("--superlink", "ward", status=1)
