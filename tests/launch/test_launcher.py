from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from matu_flwr.launch.flower import LaunchError, tail
from matu_flwr.launch.launcher import resources_of, run_app
from tests.support.running import process, running_with

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


def test_tail_is_plain_text(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("first\n\n\x1b[91mERROR\x1b[0m: two  \n\nthree\n")
    assert tail(tmp_path / "log", lines=2) == "ERROR: two\nthree"
    assert tail(tmp_path / "none") == ""


# --- real processes of Flower ---

LAUNCH = """
import sys
from pathlib import Path
from matu_flwr.launch.launcher import run_app
run_app(Path(sys.argv[1]), Path(sys.argv[2]), run_config={"tiny.note": "x"}, num_nodes=2)
"""


@pytest.mark.long
@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")
def test_a_killed_launcher_takes_all_of_flower_with_it(tiny_app: Path, tmp_path: Path) -> None:
    """SIGKILL while Ray and the simulation are up."""
    server = tiny_app / "server_app.py"
    server.write_text(server.read_text().replace("    config =", "    import time; time.sleep(600)\n    config ="))
    base = tiny_app / ".flwr"
    with process([sys.executable, "-c", LAUNCH, tiny_app, tmp_path / "out"], tmp_path / "screen.txt", {}) as launcher:
        deadline = time.monotonic() + 300
        while not any((place / "ray").is_dir() for place in ray_places(base)):
            assert launcher.poll() is None, (tmp_path / "screen.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        (home,) = base.glob("run-*")
        assert len(running_with("FLWR_HOME", home)) > 3
        launcher.kill()
        launcher.wait()
        deadline = time.monotonic() + 15
        while running_with("FLWR_HOME", home) or home.exists():
            assert time.monotonic() < deadline, running_with("FLWR_HOME", home)
            time.sleep(0.1)
    assert not list(base.glob("run-*"))


def ray_places(base: Path) -> list[Path]:
    return [link.readlink() for link in base.glob("run-*/ray-files")]


@pytest.mark.long
@pytest.mark.system
def test_a_hostile_environment_does_not_keep_flower_from_its_own_processes(
    tiny_app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    for name, value in {
        **dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9"),
        **{"ALL_PROXY": "socks5://127.0.0.1:9", "grpc_proxy": "http://127.0.0.1:9", "no_proxy": "[::1]"},
        **{
            "FLWR_DATABASE": "state.db",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "never",
            "RAY_REDIS_ADDRESS": "127.0.0.1:9",
        },
        **{"SSL_CERT_FILE": "/not/there", "FORCE_COLOR": "1", "TMPDIR": str(long), "RAY_grpc_enable_http_proxy": "1"},
    }.items():
        monkeypatch.setenv(name, value)
    text = launch(tiny_app, tmp_path / "out", note="arrived")
    assert "arrived" in text
    assert "not handed on to Flower, because it would lead its processes astray: ALL_PROXY, FLWR_DATABASE" in text
