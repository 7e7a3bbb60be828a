from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from matu_flwr.launch.launcher import (
    FlowerEnvironment,
    LaunchError,
    free_ports,
    resources_of,
    run_app,
    stage,
    tail,
)
from matu_flwr.launch.processes import groups_below, processes, stop_groups
from tests.support.running import running_with

PYPROJECT = """
[project]
name = "tiny-app"
version = "0.1.0"
dependencies = ["flwr[simulation]"]
[tool.flwr.app]
publisher = "tiny"
[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"
[tool.flwr.app.config]
out-dir = ""
[tool.flwr.app.config.tiny]
raises = ""
note = ""
"""

SERVER_APP = """
import json
import os
from pathlib import Path
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    config = context.run_config
    if config["tiny.raises"]:
        raise RuntimeError(config["tiny.raises"])
    out_dir = Path(config["out-dir"])
    end = {
        "event": "end", "time": "", "status": "completed", "error": None, "seconds": 1.0, "peak_memory_bytes": 1000,
        "artefacts": {"note": config["tiny.note"], "home": os.environ["FLWR_HOME"], "here": os.getcwd()},
        "similarity": None, "related": {}, "nodes": len(list(grid.get_node_ids())),
    }
    with (out_dir / "history.jsonl").open("x") as history:
        history.write(json.dumps(end) + "\\n")
"""

CLIENT_APP = """
from flwr.clientapp import ClientApp

app = ClientApp()
"""


@pytest.fixture
def tiny_app(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny app"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "server_app.py").write_text(SERVER_APP)
    (folder / "client_app.py").write_text(CLIENT_APP)
    return folder


def launch(app: Path, out_dir: Path, **values: str) -> str:
    out = io.StringIO()
    console = Console(file=out, width=120, highlight=False)
    run_app(app, out_dir, run_config={f"tiny.{k}": v for k, v in values.items()}, num_nodes=2, console=console)
    return out.getvalue()


@pytest.mark.long
@pytest.mark.system
def test_a_completed_run_leaves_nothing_running(tiny_app: Path, tmp_path: Path) -> None:
    text = launch(tiny_app, tmp_path / "out of it", note='it\'s a "note" = 1')
    assert "completed in 1 s" in text
    assert 'it\'s a "note" = 1' in text
    assert str(tiny_app / ".flwr") in text  # FLWR_HOME, and the working directory
    log = (tmp_path / "out of it" / "flower.log").read_text(encoding="utf-8")
    assert "Starting Flower Simulation" in log
    assert not running_with("FLWR_HOME", tiny_app / ".flwr")


@pytest.mark.system
def test_a_run_that_raises_fails_with_its_reason(tiny_app: Path, tmp_path: Path) -> None:
    with pytest.raises(LaunchError) as failure:
        launch(tiny_app, tmp_path / "out", raises="told to fail")
    text = str(failure.value)
    assert text.startswith(
        "the run stopped without an end event; "
        "Flower says finished:failed: Simulation failed with exception: told to fail"
    )
    assert "RuntimeError: told to fail" in text.splitlines()
    assert "\x1b" not in text


def test_a_run_is_never_written_over(tiny_app: Path, tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text("{}")
    with pytest.raises(
        LaunchError,
        match="holds a run already: name another --out-dir; whether it can be resumed",
    ):
        launch(tiny_app, tmp_path)


def test_a_folder_without_a_run_is_not_resumed(tiny_app: Path, tmp_path: Path) -> None:
    config = {"resume-from": str(tmp_path / "out")}
    with pytest.raises(LaunchError, match=r"out holds no run to resume: it has no history\.jsonl"):
        run_app(tiny_app, tmp_path / "out", run_config=config, num_nodes=2)


def test_a_resumed_run_has_the_nodes_it_had(tmp_path: Path) -> None:
    nothing = {"nodes": None, "cpus": None, "gpus": None}
    assert resources_of(tmp_path, **nothing) == {"num_nodes": 10, "num_cpus": 1, "num_gpus": 0.0}
    (tmp_path / "launch.json").write_text('{"nodes": 4, "cpus": 2, "gpus": 0.5}')
    assert resources_of(tmp_path, **nothing) == {"num_nodes": 4, "num_cpus": 2, "num_gpus": 0.5}
    assert resources_of(tmp_path, **nothing | {"cpus": 1}) == {"num_nodes": 4, "num_cpus": 1, "num_gpus": 0.5}


def test_a_folder_without_an_app_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"is not a Flower app: it has no pyproject\.toml"):
        launch(tmp_path, tmp_path / "out")


def test_ports_are_free_and_different() -> None:
    one, other = free_ports()
    assert one != other
    assert min(one, other) > 1023


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATU_DATA_DIR", "data")
    monkeypatch.setenv("FLWR_HOME", "/somebody/elses")
    monkeypatch.chdir(tmp_path)
    variables = FlowerEnvironment(tmp_path / "home", (1111, 2222), tmp_path / "log").variables()
    assert variables["MATU_DATA_DIR"] == str(tmp_path / "data")
    assert variables["FLWR_HOME"] == str(tmp_path / "home")
    assert variables["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"] == "1111"
    assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert os.environ["FLWR_HOME"] == "/somebody/elses"


def test_tail_is_plain_text(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("first\n\n\x1b[91mERROR\x1b[0m: two  \n\nthree\n")
    assert tail(tmp_path / "log", lines=2) == "ERROR: two\nthree"
    assert tail(tmp_path / "none") == ""


# A SuperLink starts its SuperExec in a session of its own, and that one a simulation that may not hear SIGTERM.
FAMILY = """
import subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {deaf!r}])"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
time.sleep(60)
"""


def test_what_a_process_started_in_other_sessions_is_stopped_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matu_flwr.launch.processes.STOP_TIMEOUT", 0.5)
    with subprocess.Popen([sys.executable, "-c", FAMILY], start_new_session=True, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        groups = groups_below(parent.pid)
        assert len(groups) == 2
        assert os.getpgrp() not in groups
        assert sum(p.group in groups for p in processes()) == 3
        stop_groups(groups)
        assert not [p for p in processes() if p.group in groups]
    assert parent.returncode == -signal.SIGTERM


def test_only_what_a_bundle_can_hold_is_staged(tmp_path):
    app = tmp_path / "checkout"
    for name in ("pyproject.toml", "server_app.py", "pkg/core.py", "pkg/suites/a.yaml", "LICENSE", ".gitignore"):
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(name)
    for name in (
        ".venv/lib/x.py",
        "env/pyvenv.cfg",
        "runs/old/summary.json",
        "pkg/__pycache__/core.py",
        "big.safetensors",
    ):
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(name)
    (tmp_path / "staged").mkdir()
    (tmp_path / "staged" / "left_over.py").write_text("of an older version")
    staged = stage(app, tmp_path / "staged")
    found = sorted(str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file())
    assert found == [".gitignore", "LICENSE", "pkg/core.py", "pkg/suites/a.yaml", "pyproject.toml", "server_app.py"]
