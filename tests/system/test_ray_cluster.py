"""A simulation on a Ray cluster that is there already: two raylets of one CPU each stand for two machines."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from matu_flwr.launch.flower import free_port
from tests.support.simulation import APP

BIN = Path(sys.executable).parent
ALONE = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

pytestmark = [pytest.mark.system, pytest.mark.long]


def matu_run(values: dict, out_dir: Path, environment: dict[str, str]) -> None:
    options = [part for key, value in values.items() for part in ("-c", f"{key}={value}")]
    command = [BIN / "matu", "run", "--app", APP, "--nodes", "2", "--out-dir", out_dir, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def cluster() -> Iterator[tuple[str, Path]]:
    """Address of two raylets, and the folder of their workers' logs."""
    folder = tempfile.mkdtemp(prefix="ray")  # sockets lie in it: a long path is none
    port = free_port()
    address = f"127.0.0.1:{port}"
    common = ["--num-cpus=1", "--disable-usage-stats", "--object-store-memory=200000000"]
    head = [f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
    ranges = [
        ["--min-worker-port=20000", "--max-worker-port=20499"],
        ["--min-worker-port=20500", "--max-worker-port=20999"],
    ]
    try:
        for where, ports in zip((["--head", *head], [f"--address={address}"]), ranges, strict=True):
            command = [BIN / "ray", "start", *where, *common, *ports]
            subprocess.run(command, env=ALONE, check=True, capture_output=True, timeout=120)
        yield address, Path(folder) / "session_latest/logs"
    finally:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):  # `ray stop` would stop every Ray of this machine
            try:
                if folder.encode() in entry.read_bytes():
                    os.kill(int(entry.parent.name), 9)
            except OSError:
                continue
        shutil.rmtree(folder, ignore_errors=True)


def test_clients_train_on_all_nodes_of_a_cluster_and_give_what_they_give_on_one(cluster, simulation, tmp_path):
    address, logs = cluster
    values = simulation.values | {"state-dir": str(tmp_path / "state")}
    matu_run(values, tmp_path / "cluster", {**ALONE, "RAY_ADDRESS": address})
    # Actors take one CPU each and a raylet has one: two actors are on two nodes.
    assert sum(":actor_name:ClientAppActor" in log.read_text() for log in logs.glob("worker-*.out")) == 2
    folders = (tmp_path / "cluster", simulation.folder)
    one, other = (load_file(folder / "task_vectors.safetensors") for folder in folders)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
