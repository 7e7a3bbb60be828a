from __future__ import annotations

import os
import pwd
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from matu_flwr.config.settings import Settings
from matu_flwr.launch import launcher
from matu_flwr.launch.flower import LaunchError
from matu_flwr.run.checkpoint import Checkpoint, write_checkpoint
from matu_flwr.run.history import HistoryWriter
from tests.support.command import matu
from tests.support.places import data_folder

Calls = list[dict[str, Any]]
SUITE = "tasks:\n  dots: {loader: generated, options: {family: counts, style: dots}}\n"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """What `matu run` asks of the launcher, which here does nothing."""
    found: Calls = []

    def run_app(app_dir: Path, out_dir: Path, **arguments: Any) -> None:
        found.append({"app_dir": app_dir, "out_dir": out_dir, **arguments})

    monkeypatch.setattr(launcher, "run_app", run_app)
    monkeypatch.delenv("MATU_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    return found


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = data_folder(tmp_path / "data")
    monkeypatch.setenv("MATU_DATA_DIR", str(folder))
    return folder


def test_run_without_options(calls: Calls, tmp_path: Path) -> None:
    text = matu("run")
    (call,) = calls
    assert re.fullmatch(r"runs/\d{8}-\d{6}-offline-matu", str(call["out_dir"].relative_to(tmp_path)))
    assert call["run_config"] == {"state-dir": str(call["out_dir"] / "client-state")}
    assert (call["num_nodes"], call["num_cpus"]) == (10, 1)
    assert (
        f"starting matu on suite offline with 10 simulated SuperNodes; everything it writes goes to {tmp_path}" in text
    )


def test_run_with_options(calls: Calls, tmp_path: Path, data: Path) -> None:
    data.rename(tmp_path / "my data")
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
    (tmp_path / "e.yaml").write_text(f"state-dir: {tmp_path}/of/the/experiment\n")
    matu("run", "--experiment", "e.yaml")
    assert calls[0]["run_config"] == {"experiment": str(tmp_path / "e.yaml")}


def test_data_choose_the_suite_unless_it_is_named(calls: Calls, data: Path) -> None:
    assert f"MATU_DATA_DIR is set: using suite real-12 with the files in {data}" in matu("run")
    assert "real-12" not in matu("run", "--suite", "offline")
    assert "real-12" not in matu("run", "-c", "suite='offline'")
    assert [call["run_config"]["suite"] for call in calls] == ["real-12", "offline", "offline"]


def test_experiment_and_suite_files_are_found_from_anywhere(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("rounds: 2\n")
    (tmp_path / "mine.yaml").write_text(SUITE)
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
    (tmp_path / "pyproject.toml").touch()
    options = ("--app", str(tmp_path), "--out-dir", str(tmp_path / "out"))
    assert "error: the run failed: [no] nodes" in matu("run", *options, status=1)


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
    folder = cut_off_run(tmp_path / "old", {"strategy": "ties", "rounds": 9, "state-dir": str(tmp_path / "elsewhere")})
    (folder / "launch.json").write_text('{"nodes": 4, "cpus": 1, "gpus": 0.5}')
    text = matu("run", "--resume", "old")
    (call,) = calls
    assert "resuming after round 3: ties on suite offline with 4 simulated SuperNodes; everything" in text
    assert call["out_dir"] == folder
    assert call["run_config"] == {"resume-from": str(folder)}  # the rest stands in the checkpoint
    assert (call["num_nodes"], call["num_cpus"], call["num_gpus"]) == (4, 1, 0.5)


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


# --- what is wrong is said before anything starts ---


def refused(calls: Calls, tmp_path: Path, *options: str) -> str:
    """What `matu run` says when it refuses, in one line; nothing was started and nothing was made."""
    before = sorted(tmp_path.rglob("*"))
    text = matu("run", *options, status=1)
    assert calls == []
    assert sorted(tmp_path.rglob("*")) == before
    (line,) = (line for line in text.splitlines() if line.startswith("error: "))
    return line


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--suite offlin", "unknown suite 'offlin': did you mean 'offline'?"),
        ("--suite none.yaml", "none.yaml cannot be read: No such file or directory; give the path"),
        ("--suite broken.yaml", "broken.yaml is not valid YAML"),
        ("--suite pipe.yaml", "pipe.yaml is not a file: give the path of a YAML file"),
        ("--suite list.yaml", "list.yaml: found [1, 2], expected a mapping"),
        ("--suite loader.yaml", "task 'dots': unknown loader 'generate'"),
        ("--suite option.yaml", "option.yaml: task 'dots'"),
        ("--suite folder.yaml", "task 'leaves': no data folder is set"),
        ("--suite folder.yaml -c data-dir=.", "leaves does not exist, expected the task's files there"),
        ("-c data-dir=none", "none' is not a folder"),
        ("--strategy mattu", "unknown strategy 'mattu'; did you mean 'matu'?"),
        ("--strategy fedavg -c matu.kappa=1", "'matu.kappa' = 1 is an option of strategy 'matu'"),
        ("--experiment none.yaml", "none.yaml does not exist"),
        ("--experiment broken.yaml", "broken.yaml is not valid YAML"),
        ("--experiment pipe.yaml", "pipe.yaml is not a file"),
        ("--experiment unknown.yaml", "unknown setting 'sweet'; did you mean 'seed'?"),
        (
            "-c backbone.weights=none.pt",
            "none.pt' is not a file: name a file with weights, or one of pretrained, random",
        ),
        ("-c backbone.heads-file=none.pt", "none.pt' is not a file: write it with `matu heads`"),
        ("--out-dir list.yaml", "list.yaml is a file, expected a folder; name another --out-dir"),
        ("--out-dir list.yaml/below", "name another --out-dir"),
        ("--out-dir dead/below", "dead is a link that leads nowhere, expected a folder"),
        ("--out-dir circle/below", "name another --out-dir"),
        (f"--out-dir {'x' * 300}", "name another --out-dir"),
        ("-c state-dir=list.yaml", "list.yaml is a file, expected a folder; name another folder with state-dir"),
        ("-c cache-dir=list.yaml", "list.yaml is a file, expected a folder; name another folder with cache-dir"),
        ("-c cache-dir=~nobody-here/x", "cache-dir = '~nobody-here/x': there is no such home folder"),
        ("--app empty", "empty is not a Flower app: it has no pyproject.toml; name the folder of one with --app"),
        ("--cpus 5000", "each client is to get 5000 CPUs, and this machine has"),
        ("--nodes 1 -c min-nodes=2", "min-nodes = 2 with 1 simulated nodes: the run would wait for nodes that never"),
        ("--nodes 2 --experiment three.yaml", "min-nodes = 3 with 2 simulated nodes"),
        ("--resume none", "none does not exist: expected the output folder"),
        ("--resume empty", "empty"),
        ("--resume list.yaml", "list.yaml"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(calls: Calls, tmp_path: Path, options: str, text: str) -> None:
    for name, content in {
        "broken": "tasks: {",
        "list": "[1, 2]",
        "loader": SUITE.replace("generated", "generate"),
        "option": SUITE.replace("style", "styl"),
        "folder": "tasks: {leaves: {loader: folder}, trees: {loader: folder}}",
        "unknown": "sweet: offline",
        "three": "min-nodes: 3",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "dead").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe.yaml")
    assert text in refused(calls, tmp_path, *options.split())


def test_every_task_without_files_is_named(calls: Calls, tmp_path: Path) -> None:
    tasks = ", ".join(f"t{i}: {{loader: folder}}" for i in range(8))
    (tmp_path / "s.yaml").write_text(f"tasks: {{{tasks}}}")
    text = refused(calls, tmp_path, "--suite", "s.yaml", "-c", "data-dir=.")
    assert f"task 't0': {tmp_path}/t0 does not exist" in text
    assert text.endswith("so it is with t1, t2, t3, t4, t5, …")


def test_a_folder_that_may_not_be_written_is_refused(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, who may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    text = refused(calls, tmp_path)
    assert f"nothing can be written to the output folder {tmp_path}/runs/" in text
    assert f"{tmp_path} may not be written by this user; name another --out-dir" in text


def test_without_a_home_the_setting_to_give_is_named(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody_at_home(monkeypatch)
    assert "cache-dir is not set, and there is no home folder to put it into" in refused(calls, tmp_path)
    matu("run", "-c", "cache-dir=here")
    assert len(calls) == 1


@pytest.mark.parametrize("command", [("data", "check", "offline"), ("data", "prepare", "offline"), ("heads", "out.pt")])
def test_other_commands_without_a_home_say_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    nobody_at_home(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert "error: cache-dir is not set, and there is no home folder" in matu(*command, status=1)


def nobody_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


# --- fewer nodes than min-nodes ---


def test_a_run_of_one_node_does_not_wait_for_two(calls: Calls, tmp_path: Path) -> None:
    matu("run", "--nodes", "1")
    matu("run", "--nodes", "2")
    assert [call["run_config"].get("min-nodes") for call in calls] == [1, None]


def test_a_run_that_is_going_on_is_not_resumed(calls: Calls, tmp_path: Path) -> None:
    folder = cut_off_run(tmp_path / "old", {"rounds": 9})
    with FileLock(folder / ".lock"):
        assert f"a run in {folder} is still going on" in matu("run", "--resume", "old", status=1)
    assert calls == []


def test_a_damaged_file_of_the_launch_is_named(calls: Calls, tmp_path: Path) -> None:
    folder = cut_off_run(tmp_path / "old", {"rounds": 9})
    (folder / "launch.json").write_text('{"nodes": "many"}')
    assert "launch.json, which says how many nodes the run had, cannot be read" in matu(
        "run", "--resume", "old", status=1
    )


# --- two at once ---


def test_two_runs_of_the_same_second_get_two_folders(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "20261130-101500")
    for seed in "012":
        matu("run", "--seed", seed)
    names = ["20261130-101500-offline-matu" + end for end in ("", "-2", "-3")]
    assert [call["out_dir"].name for call in calls] == names
    assert [call["run_config"]["state-dir"] for call in calls] == [
        str(tmp_path / "runs" / name / "client-state") for name in names
    ]


# --- paths of an experiment ---


def test_paths_of_an_experiment_begin_beside_it(calls: Calls, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    (folder / "leaves").mkdir(parents=True)
    (folder / "mine.yaml").write_text("tasks: {leaves: {loader: folder}}")
    (folder / "w.pt").touch()
    (folder / "e.yaml").write_text(
        "suite: mine.yaml\ndata-dir: .\nout-dir: results\ncache-dir: ../cache\nbackbone: {weights: w.pt}\n"
    )
    text = matu("run", "--experiment", "study/e.yaml")
    (call,) = calls
    assert call["out_dir"] == folder / "results"
    assert f"on suite {folder}/mine.yaml" in text
    # The ServerApp reads the same file, in another folder.
    settings = Settings.from_run_config(call["run_config"])
    assert (settings.suite, settings.data_dir) == (str(folder / "mine.yaml"), str(folder))
    assert (settings.cache_dir, settings.backbone.weights) == (str(folder / ".." / "cache"), str(folder / "w.pt"))


def test_what_is_typed_begins_where_it_is_typed(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "e.yaml").write_text("suite: mine.yaml\n")
    (tmp_path / "mine.yaml").write_text(SUITE)
    assert f"{tmp_path}/study/mine.yaml cannot be read" in refused(calls, tmp_path, "--experiment", "study/e.yaml")
    matu("run", "--experiment", "study/e.yaml", "--suite", "mine.yaml")
    assert calls[0]["run_config"]["suite"] == str(tmp_path / "mine.yaml")
