"""The app as its users run it: `flwr run` in a simulation, and a SuperLink with two SuperNodes on this machine."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from matu_flwr.launch.environment import flower_variables
from matu_flwr.launch.flower import free_port
from matu_flwr.models import artefacts
from matu_flwr.run.history import read_history
from tests.support.federation import tiny_values
from tests.support.running import process, running_with
from tests.support.simulation import APP, simulate

BIN = Path(sys.executable).parent

pytestmark = pytest.mark.system


def summary(folder: Path) -> dict:
    found = json.loads((folder / "summary.json").read_text())
    del found["timing"], found["run"]
    return found


def test_simulation_leaves_its_artefacts_and_says_where(simulation):
    folder, screen = simulation.folder, simulation.screen
    names = ("history.jsonl", "summary.json", "curves.png", "task_graph.png")
    for name in (*names, "task_vectors.safetensors", "unified.safetensors"):
        assert (folder / name).stat().st_size > 0
        assert str(folder / name) in screen.replace("\n", "")
    assert "round 2/2" in screen
    assert "\x1b" not in screen
    assert not running_with("FLWR_HOME", simulation.home), "something of it goes on"
    events = read_history(folder / "history.jsonl")
    assert [event["event"] for event in events][-1] == "end"
    assert events[-1]["status"] == "completed"
    assert sorted(summary(folder)["tasks"]) == ["dots", "gratings", "squares", "stripes"]


@pytest.mark.long
def test_one_actor_gives_the_same_summary_as_two(simulation, tmp_path):
    one = simulate(simulation.values, tmp_path / "run", num_cpus=os.cpu_count() or 1)
    assert summary(one.folder) == summary(simulation.folder)


def wait_for(done, what: str, logs: Path, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            said = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(logs.glob("*.log")))
            pytest.fail(f"{what} did not happen within {seconds:g} s\n{said}")
        time.sleep(0.5)


def test_two_supernodes_give_the_task_vectors_of_the_simulation(simulation, tmp_path):
    """The same app and seed, through a real SuperLink and two SuperNodes."""
    port, *nodes = (free_port() for _ in range(3))
    home = tmp_path / "flower"
    home.mkdir()
    address = f"127.0.0.1:{port}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'
    )
    environment = flower_variables(os.environ, home, home, None)
    out_dir = tmp_path / "run"
    config = tmp_path / "run.toml"
    settings = {**simulation.values, "out-dir": str(out_dir), "state-dir": str(tmp_path / "state"), "min-nodes": 2}
    config.write_text("".join(f'"{key}" = {json.dumps(value)}\n' for key, value in settings.items()))
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    link.append("--disable-runtime-dependency-installation")
    with contextlib.ExitStack() as stack:
        stack.enter_context(process([BIN / link[0], *link[1:]], tmp_path / "superlink.log", environment))
        for partition, port in enumerate(nodes):
            node = ["flower-supernode", "--insecure", "--superlink", address, "--port", str(port)]
            node += ["--node-config", f"partition-id={partition} num-partitions=2"]
            stack.enter_context(
                process([BIN / node[0], *node[1:]], tmp_path / f"supernode-{partition}.log", environment)
            )

        def submitted() -> bool:
            command = [str(BIN / "flwr"), "run", str(APP), "here", "--format", "json", "--run-config", str(config)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            (tmp_path / "submit.log").write_text(done.stdout + done.stderr)
            return done.returncode == 0 and json.loads(done.stdout)["success"]

        def ended() -> bool:
            history = out_dir / "history.jsonl"
            return history.exists() and read_history(history)[-1:] != [] and read_history(history)[-1]["event"] == "end"

        wait_for(submitted, "flwr run", tmp_path)
        wait_for(ended, "the end of the run", tmp_path)
    end = read_history(out_dir / "history.jsonl")[-1]
    assert end["status"] == "completed", end["error"]
    for task in ("dots", "gratings", "squares", "stripes"):
        deployed, simulated = (artefacts.read_task_vector(folder, task) for folder in (out_dir, simulation.folder))
        torch.testing.assert_close(deployed, simulated, rtol=1e-4, atol=1e-6)
    accuracy = [
        [task["final_accuracy"] for task in summary(folder)["tasks"].values()]
        for folder in (out_dir, simulation.folder)
    ]
    assert accuracy[0] == accuracy[1]


@pytest.mark.long
def test_two_methods_side_by_side(tmp_path):
    """`matu compare` with real runs; called again, nothing is run again."""
    values = tiny_values(tmp_path)
    as_floats = {"wire.vector-dtype": "float32", "wire.compression": "none"}  # so that the bits below can be said
    config = [
        part
        for key, value in (values | as_floats).items()
        if key not in ("suite", "rounds", "state-dir")
        for part in ("-c", f"{key}={value}")
    ]
    command = [
        BIN / "matu",
        "compare",
        "--strategies",
        "matu,ties",
        "--suite",
        values["suite"],
        "--seeds",
        "1",
        "--nodes",
        "2",
    ]
    command += ["--rounds", "2", "--side-by-side", "2", "--out-dir", tmp_path / "out", "--app", APP, *config]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| ties |" in done.stdout
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {method["name"]: method["failed"] for method in found["methods"]} == {"matu": 0, "ties": 0}
    bits = {method["name"]: method["bits"] for method in found["methods"]}
    assert 16 < bits["matu"] < 33  # one or two tasks a client
    assert bits["ties"] == pytest.approx(16, abs=0.1)  # one of two rounds
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "2 of 2 cells are finished already" in again.stdout
