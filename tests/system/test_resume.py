"""Runs that are killed, and go on: a process that gets SIGKILL leaves what a reader finds whole, or nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from matu_flwr.launch.flower import LaunchError
from matu_flwr.run.checkpoint import checkpoints, read_checkpoint
from matu_flwr.run.history import read_history
from tests.support.federation import tiny_values
from tests.support.marks import long_but
from tests.support.running import running_with
from tests.support.simulation import APP, home_of, simulate
from tests.support.whole_run import KILLS, run

SUPPORT = APP / "tests" / "support"

pytestmark = pytest.mark.system


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def tensors(out_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(out_dir / "task_vectors.safetensors")


# --- killed at one place, in one process ---


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Settings of a run whose clients keep something of their own, and its output folder."""
    folder = tmp_path_factory.mktemp("whole")
    values = tiny_values(folder, rounds=3, matu__error_feedback=True, server_evaluate=False)
    run(folder / "out", values)
    return values, folder / "out"


def killed(folder: Path, values: dict, place: str, round_: int, run_id: int) -> None:
    told = {"out_dir": str(folder), "values": values, "kill": place, "round": round_, "run_id": run_id}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(APP), str(SUPPORT)])}
    command = [sys.executable, str(SUPPORT / "whole_run.py"), json.dumps(told)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


# Each place leaves something else behind: replies of half a round, a merge without its heads, half a file of tensors,
# half a file of text, a client's own state that was not yet put in place.
@pytest.mark.parametrize("place", long_but(("tensors",), KILLS))
def test_a_run_killed_at_any_place_goes_on_as_if_nothing_had_been(uninterrupted, tmp_path, place):
    values, whole = uninterrupted
    values = values | {"state-dir": str(tmp_path / "state")}
    out_dir = tmp_path / "out"
    killed(out_dir, values, place, 2, run_id=2)
    assert read_history(out_dir / "history.jsonl")[-1]["event"] != "end"  # it could not say a last word
    assert read_checkpoint(checkpoints(out_dir)[0]).round == 1
    run(out_dir, {"resume-from": str(out_dir)}, run_id=3)
    assert equal(tensors(out_dir), tensors(whole))
    assert read_history(out_dir / "history.jsonl")[-1]["status"] == "completed"
    assert sorted(path.name for path in (out_dir / "checkpoints").iterdir()) == [
        f"round-00000{round_}.{kind}" for round_ in (2, 3) for kind in ("json", "safetensors")
    ]


@pytest.mark.long
def test_a_run_killed_again_and_again_arrives(uninterrupted, tmp_path):
    """Before its first round, in the next one after it was resumed, and once more at the same place."""
    values, whole = uninterrupted
    out_dir = tmp_path / "out"
    values = values | {"state-dir": str(tmp_path / "state")}
    killed(out_dir, values, "training", 1, run_id=2)
    assert read_checkpoint(checkpoints(out_dir)[0]).round == 0
    resume = {"resume-from": str(out_dir)}
    killed(out_dir, resume, "aggregation", 2, run_id=3)
    killed(out_dir, resume, "training", 2, run_id=4)
    run(out_dir, resume, run_id=5)
    assert equal(tensors(out_dir), tensors(whole))
    resumed = [e for e in read_history(out_dir / "history.jsonl") if e["event"] == "resume"]
    assert [(e["round"], e["attempt"]) for e in resumed] == [(0, 1), (1, 2), (1, 3)]


# --- a whole simulation, killed from outside ---


def simulations(home: Path) -> list[int]:
    """Processes with the ServerApp of runs under a Flower folder."""
    found = []
    for process in running_with("FLWR_HOME", home):
        with contextlib.suppress(OSError):  # ended meanwhile
            if b"flwr-simulation" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                found.append(process.pid)
    return found


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process by /proc")
def test_a_simulation_killed_in_a_round_is_resumed(tmp_path):
    values = tiny_values(tmp_path, rounds=4, strategy="fedper", server_evaluate=False)
    # In this process: where clients run changes nothing that they keep.
    run(tmp_path / "whole", values | {"state-dir": str(tmp_path / "one")}, nodes=2)
    out_dir = tmp_path / "cut"

    def kill_in_round_3() -> None:
        history = out_dir / "history.jsonl"
        while not over.is_set():
            if history.exists() and any(e["event"] == "client" and e["round"] == 3 for e in read_history(history)):
                for pid in simulations(home_of(out_dir)):
                    os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.02)

    over = threading.Event()
    killer = threading.Thread(target=kill_in_round_3)
    killer.start()
    with pytest.raises(LaunchError, match="the run stopped without an end event"):
        simulate(values | {"state-dir": str(tmp_path / "two")}, out_dir)
    over.set()
    killer.join()
    kept = read_checkpoint(checkpoints(out_dir)[0]).round
    assert kept in (2, 3)  # the other client's reply may have come before the signal
    assert f"resumed after round {kept}" in simulate({"resume-from": str(out_dir)}, out_dir).screen
    one, other = (
        {path.name: load_file(path) for path in sorted((tmp_path / name).rglob("round-*.safetensors"))}
        for name in ("one", "two")
    )
    assert len(one) == 3
    assert one.keys() == other.keys()
    assert all(equal(one[name], other[name]) for name in one)
