from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from matu_flwr.config.settings import Settings
from matu_flwr.launch import launcher
from matu_flwr.launch.launcher import LaunchError
from matu_flwr.run.checkpoint import Checkpoint, write_checkpoint
from matu_flwr.run.history import HistoryWriter
from tests.support.command import matu

Calls = list[dict[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """What `matu run` asks of the launcher, which here does nothing."""
    found: Calls = []

    def run_app(app_dir: Path, out_dir: Path, **arguments: Any) -> None:
        found.append({"app_dir": app_dir, "out_dir": out_dir, **arguments})

    monkeypatch.setattr(launcher, "run_app", run_app)
    monkeypatch.delenv("MATU_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    return found


def test_run_without_options(calls: Calls, tmp_path: Path) -> None:
    text = matu("run")
    (call,) = calls
    assert re.fullmatch(r"runs/\d{8}-\d{6}-offline-matu", str(call["out_dir"].relative_to(tmp_path)))
    assert call["run_config"] == {"state-dir": str(call["out_dir"] / "client-state")}
    assert (call["num_nodes"], call["num_cpus"]) == (10, 1)
    assert (
        f"starting matu on suite offline with 10 simulated SuperNodes; everything it writes goes to {tmp_path}" in text
    )


def test_run_with_options(calls: Calls, tmp_path: Path) -> None:
    options = (
        "--suite real-20 --strategy matu --rounds 3 --seed 7 --nodes 4 --out-dir out -c matu.kappa=0 -c train.lr=1e-4"
    )
    matu("run", *options.split(), "-c", "data-dir=my data")
    (call,) = calls
    assert call["out_dir"] == tmp_path / "out"
    assert call["num_nodes"] == 4
    assert call["run_config"] == {
        "suite": "real-20",
        "strategy": "matu",
        "rounds": 3,
        "seed": 7,
        "matu.kappa": 0,
        "train.lr": 1e-4,
        "data-dir": str(tmp_path / "my data"),  # Flower runs elsewhere
        "state-dir": str(tmp_path / "out" / "client-state"),
    }


def test_what_is_typed_is_passed_on_also_where_it_is_a_default(calls: Calls) -> None:
    matu("run", "-c", "matu.preset=paper", "-c", "matu.payload=update", "--rounds", "30")
    chosen = {key: value for key, value in calls[0]["run_config"].items() if key != "state-dir"}
    assert chosen == {"matu.preset": "paper", "matu.payload": "update", "rounds": 30}


def test_a_folder_that_the_experiment_names_stays(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("state-dir: /of/the/experiment\n")
    matu("run", "--experiment", "e.yaml")
    assert calls[0]["run_config"] == {"experiment": str(tmp_path / "e.yaml")}


def test_data_choose_the_suite_unless_it_is_named(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATU_DATA_DIR", "/data")
    assert "MATU_DATA_DIR is set: using suite real-12 with the files in /data" in matu("run")
    assert "real-12" not in matu("run", "--suite", "offline")
    assert "real-12" not in matu("run", "-c", "suite='offline'")
    assert [call["run_config"]["suite"] for call in calls] == ["real-12", "offline", "offline"]


def test_experiment_and_suite_files_are_found_from_anywhere(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("rounds: 2\n")
    (tmp_path / "mine.yaml").write_text("tasks: {}\n")
    matu("run", "--experiment", "e.yaml", "--suite", "mine.yaml")
    (call,) = calls
    assert call["run_config"]["experiment"] == str(tmp_path / "e.yaml")
    assert call["run_config"]["suite"] == str(tmp_path / "mine.yaml")
    assert call["out_dir"].name.endswith("-mine-matu")


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("rounds", "error: run config 'rounds': expected KEY=VALUE"),
        ("matu.kapa=1", "error: unknown setting 'matu.kapa'"),
        ("rounds=0", "error: "),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(calls: Calls, setting: str, text: str) -> None:
    assert text in matu("run", "-c", setting, status=1)
    assert calls == []


def test_a_failed_run_fails_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run_app(*_: Any, **__: Any) -> None:
        raise LaunchError("the run failed: [no] nodes")

    monkeypatch.setattr(launcher, "run_app", run_app)
    monkeypatch.delenv("MATU_DATA_DIR", raising=False)
    assert "error: the run failed: [no] nodes" in matu("run", "--out-dir", str(tmp_path / "out"), status=1)


def cut_off_run(folder: Path, settings: dict[str, Any]) -> Path:
    """A run folder with a history and one checkpoint, of round 3."""
    with HistoryWriter(folder / "history.jsonl") as writer:
        writer.write({"event": "round", "round": 3})
        mark = writer.mark()
    values = Settings.from_flat(settings).flat()
    kept = {"mean": {"tensor": "a"}}
    state = Checkpoint(3, 9, 0, "2026-11-26T00:00:00+00:00", "run-1", "f", values, {}, mark, 1.0, kept)
    write_checkpoint(folder, state, {"a": torch.zeros(3)}, 2)
    return folder


def test_a_run_is_resumed_as_it_was(calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATU_DATA_DIR", "/data")
    folder = cut_off_run(tmp_path / "old", {"strategy": "ties", "rounds": 9, "state-dir": "/elsewhere"})
    (folder / "launch.json").write_text('{"nodes": 4, "cpus": 2, "gpus": 0.5}')
    text = matu("run", "--resume", "old")
    (call,) = calls
    assert "resuming after round 3: ties on suite offline with 4 simulated SuperNodes; everything" in text
    assert call["out_dir"] == folder
    assert call["run_config"] == {"resume-from": str(folder)}  # the rest stands in the checkpoint
    assert (call["num_nodes"], call["num_cpus"], call["num_gpus"]) == (4, 2, 0.5)


def test_a_resumed_run_whose_folder_was_moved(calls: Calls, tmp_path: Path) -> None:
    folder = cut_off_run(tmp_path / "new", {"out-dir": "/old", "state-dir": "/old/client-state"})
    (folder / "client-state").mkdir()
    matu("run", "--resume", str(folder / "checkpoints" / "round-000003.json"))
    (call,) = calls
    assert call["out_dir"] == folder
    assert call["run_config"]["state-dir"] == str(folder / "client-state")


def test_a_resumed_run_has_no_other_settings(calls: Calls, tmp_path: Path) -> None:
    cut_off_run(tmp_path / "old", {"rounds": 9})
    text = matu("run", "--resume", "old", "--seed", "7", status=1)
    assert "has other settings: seed = 0, you gave 7; leave them out" in text
    assert "but a resumed run goes on in its own folder" in matu("run", "--resume", "old", "--out-dir", "x", status=1)
    assert "none does not exist: expected the output folder" in matu("run", "--resume", "none", status=1)
    assert calls == []
