"""`matu status` reads, says how a run stands, and changes nothing."""

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from matu_flwr.cli import app
from matu_flwr.deployment import status as status_command
from matu_flwr.run.checkpoint import Checkpoint, write_checkpoint
from matu_flwr.run.history import HistoryWriter
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
        for event in EVENTS:
            writer.write(event)
        mark = writer.mark()
        for event in more:
            writer.write(event)
    for round_ in (1, 2):
        time, kept = f"2026-11-26T00:0{round_}:00+00:00", {"mean": {"tensor": "a"}}
        state = Checkpoint(round_, 5, 0, time, "run-1", "f", {}, {}, mark, 1.0, kept)
        write_checkpoint(path, state, {"a": torch.zeros(250_000)}, 2)
    (path / "launch.json").write_text("{}")
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


# --- what is advised works, and nothing else is advised ---

FAILED = {"event": "end", "status": "failed", "seconds": 3.0, "error": "no nodes"}


def advice(folder: Path, name: str = "state") -> str:
    (line,) = [line for line in said(str(folder)).splitlines() if line.startswith(name)]
    return line.removeprefix(name).strip()


@pytest.mark.parametrize("name", ["plain", "with space", "it's", "$(touch x) & ;", 'both "quotes"', "-x", "[red]"])
@pytest.mark.parametrize("launched", [True, False], ids=["matu run", "flwr run"])
def test_the_command_that_is_advised_names_the_folder(tmp_path, monkeypatch, name, launched):
    from flwr.common.config import parse_config_args

    monkeypatch.chdir(tmp_path)
    folder = folder_of(Path(name))
    if not launched:
        (folder / "launch.json").unlink()
    words = shlex.split(advice(folder.absolute()).partition("in the folder of the app: ")[2])
    if launched:
        assert words == ["matu", "run", "--resume", str(tmp_path / name)]
    else:
        assert words[:-1] == ["flwr", "run", ".", "SUPERLINK", "--run-config"]
        assert parse_config_args(words[-1:]) == {"resume-from": str(tmp_path / name)}


def test_a_path_that_flower_cannot_take(tmp_path):
    folder = folder_of(tmp_path / """it's "both\"""")
    (folder / "launch.json").unlink()
    assert advice(folder) == (
        "cut off; it can be resumed, but Flower cannot take its path, which has quotes: rename the folder"
    )


def test_a_run_that_failed_can_be_resumed(tmp_path):
    assert advice(folder_of(tmp_path, FAILED), "resume ").startswith("go on with it: matu run --resume ")


def test_a_run_that_completed_is_not_resumed(tmp_path):
    text = said(str(folder_of(tmp_path, FAILED | {"status": "completed"})))
    assert "resume " not in text.replace("resumed ", "")


def test_a_broken_checkpoint_is_shown(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "checkpoints" / "round-000002.json").write_text("{")
    text = said(str(tmp_path))
    assert "checkpoint  BROKEN: checkpoint" in text
    assert "cut off; go on with it: matu run --resume" in text  # from round 1


@pytest.mark.parametrize("event", [(), (FAILED,)], ids=["cut off", "failed"])
def test_without_a_checkpoint_that_can_be_read_nothing_is_advised(tmp_path, event):
    folder = folder_of(tmp_path, *event)
    row = "resume " if event else "state"
    for path in folder.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"\1")  # only reading the tensors tells
    assert "it cannot be resumed: no checkpoint can be used: checkpoint" in advice(folder, row)
    assert said(str(folder)).count("checkpoint  BROKEN: checkpoint") == 2
    shutil.rmtree(folder / "checkpoints")
    assert "it cannot be resumed: " in advice(folder, row)
    assert "has no checkpoint: the run ended before its first round" in advice(folder, row)


def test_a_history_that_is_not_that_of_the_checkpoints(tmp_path):
    folder = folder_of(tmp_path)
    path = folder / "history.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"seed": 3', b'"seed": 4'))
    assert "it cannot be resumed: " in advice(folder)
    assert "is not the history that belongs to the checkpoint" in advice(folder)


@pytest.mark.parametrize("garbage", [b"\0\n\0\n", b"17\n{}\n", b"[" * 10**5 + b"\n\n"])
def test_a_history_with_garbage_at_its_end_can_be_shown(tmp_path, garbage):
    folder = folder_of(tmp_path)
    with (folder / "history.jsonl").open("ab") as file:
        file.write(garbage)
    text = said(str(folder))
    assert "cut off; go on with it: matu run --resume" in text
    assert "history     BROKEN: " in text
    assert "history.jsonl, line 9: expected a JSON object" in text


@pytest.mark.parametrize("line", ['{"event": "round"}', '{"event": "plan"}', '{"event": "end", "status": 3}'])
def test_a_history_of_something_else(tmp_path, line):
    (tmp_path / "history.jsonl").write_text(line + "\n")
    text = said(str(tmp_path), status=1)
    assert "history.jsonl has events that no run writes (KeyError: " in text


def test_a_folder_of_no_run(tmp_path):
    (tmp_path / "history.jsonl").mkdir()
    assert "does not exist: expected the output folder of a run" in said(str(tmp_path), status=1)


def test_a_configuration_of_flower_that_is_broken(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    for content in (b"[superlink", b"\xff\xfe"):
        (tmp_path / "config.toml").write_bytes(content)
        assert "config.toml, Flower's configuration, cannot be read" in said("--superlink", "ward", status=1)
    (tmp_path / "config.toml").write_bytes(b"superlink = 3")
    assert "has no SuperLink 'ward' with an address" in said("--superlink", "ward", status=1)


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
