from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from matu_flwr.launch.launcher import LaunchError, resources_of, run_app, tail
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
    home = re.search(r"home +(.*)", text)[1]  # FLWR_HOME
    assert home.startswith(str(tiny_app / ".flwr" / "run-"))
    assert not Path(home).exists()
    log = (tmp_path / "out of it" / "flower.log").read_text(encoding="utf-8")
    assert "Starting Flower Simulation" in log
    assert not running_with("FLWR_HOME", home)


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
    with pytest.raises(LaunchError, match="holds a run already; name another --out-dir, or resume"):
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


def test_tail_is_plain_text(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("first\n\n\x1b[91mERROR\x1b[0m: two  \n\nthree\n")
    assert tail(tmp_path / "log", lines=2) == "ERROR: two\nthree"
    assert tail(tmp_path / "none") == ""
