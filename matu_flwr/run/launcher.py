"""`flwr run` with the sensible environment around it: what `make run` calls.

Flower alone starts a SuperLink in the background and leaves it running, resolves the app's dependencies anew for every
run, writes relative paths to wherever the first run was typed, and exits with 0 when a run failed. Here the SuperLink
lives in the project's own folder, on ports of its own, for this run only; and a failed run fails the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matu_flwr.run.console import ConsoleFollower
from matu_flwr.run.history import follow
from matu_flwr.run.report import HISTORY

STATUS_INTERVAL = 10.0  # seconds between questions to Flower: each starts a Python process
LOG_LINES = 30


class LaunchError(RuntimeError):
    """A run that could not be started, or that failed; the text has the reason and the last lines of the log."""


@dataclass(frozen=True)
class FlowerEnvironment:
    """Where Flower keeps its files, and on which port its local SuperLink listens."""

    home: Path
    port: int

    def variables(self) -> dict[str, str]:
        """Environment of every Flower command, on top of this process's own."""
        return {
            **os.environ,
            "FLWR_HOME": str(self.home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(self.port),
            # Installed already; resolving again needs the network and may shadow what was tested.
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
            # Flower starts `flower-superlink` by name: it has to be the one of this environment.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }

    @property
    def log(self) -> Path:
        """Log of the local SuperLink and of what it starts."""
        return self.home / "local-superlink" / "superlink.log"


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on: two checkouts do not collide."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_app(
    app_dir: Path,
    out_dir: Path,
    *,
    run_config: Mapping[str, str],
    num_nodes: int,
    num_cpus: int = 1,
    home: Path | None = None,
) -> None:
    """Run the app in a simulation, show how it goes, and return when it has completed.

    Parameters
    ----------
    app_dir : Path
        Folder with the app's pyproject.toml.
    out_dir : Path
        Absolute output folder; must not hold a run yet.
    run_config : mapping of str to str
        Values as `flwr run --run-config` wants them: strings quoted.
    num_nodes : int
        SuperNodes to simulate.
    num_cpus : int
        CPUs of each client; as many clients run side by side as fit on the machine.
    home : Path, optional
        Flower's folder; `<app_dir>/.flwr` if not given.

    Raises
    ------
    LaunchError
        The run could not be submitted, failed or was stopped, or the folder holds a run already.
    """
    history = out_dir / HISTORY
    if history.exists():
        raise LaunchError(f"{out_dir} holds a run already; name another --out-dir")
    out_dir.mkdir(parents=True, exist_ok=True)
    values = {**run_config, "out-dir": f"'{out_dir}'"}
    resources = {"num-supernodes": num_nodes, "client-resources-num-cpus": num_cpus, "client-resources-num-gpus": 0.0}
    flower = FlowerEnvironment((home or app_dir / ".flwr").absolute(), free_port())
    with ConsoleFollower() as console, local_superlink(flower):
        submitted = _flwr(
            flower,
            "run",
            str(app_dir),
            "--run-config",
            " ".join(f"{key}={value}" for key, value in values.items()),
            "--federation-config",
            " ".join(f"{key}={value}" for key, value in resources.items()),
        )
        if not submitted.get("success"):
            raise LaunchError(f"flwr run refused the app: {submitted.get('error-message', submitted)}")
        run_id = str(submitted["run-id"])
        watch = _Watch(flower, run_id)
        try:
            for event in follow(history, watch.is_over):
                console.show(event)
        except KeyboardInterrupt:
            _flwr(flower, "stop", run_id)
            raise LaunchError(f"stopped by you; the history so far is in {out_dir}") from None
        status = watch.wait()
    if status != "finished:completed":
        raise LaunchError(f"the run ended as {status}; last lines of {flower.log}:\n{tail(flower.log)}")


class _Watch:
    """Asks Flower, at long intervals, whether a run is over."""

    def __init__(self, flower: FlowerEnvironment, run_id: str) -> None:
        self.flower = flower
        self.run_id = run_id
        self.status = "unknown"
        self._asked = time.monotonic()

    def is_over(self) -> bool:
        """True once the run has finished, as of the last answer."""
        if not self.status.startswith("finished") and time.monotonic() - self._asked > STATUS_INTERVAL:
            self.ask()
        return self.status.startswith("finished")

    def ask(self) -> None:
        """Ask now."""
        answer = _flwr(self.flower, "list", "--run-id", self.run_id)
        self._asked = time.monotonic()
        runs = answer.get("runs") or [{"status": "finished:lost"}]  # the SuperLink forgot the run: it was killed
        self.status = str(runs[0]["status"])

    def wait(self) -> str:
        """Ask until the run has finished; returns its status."""
        while True:
            self.ask()
            if self.status.startswith("finished"):
                return self.status
            time.sleep(0.5)


@contextlib.contextmanager
def local_superlink(flower: FlowerEnvironment) -> Iterator[None]:
    """Start a SuperLink in simulation mode for the time of the context; it and all it started are gone afterwards.

    `flwr run` would start one by itself and leave it running; one that runs already at the port is used instead.
    """
    flower.log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        "flower-superlink",
        *("--insecure", "--simulation", "--isolation", "subprocess"),
        *("--host", "127.0.0.1", "--port", str(flower.port)),
        *("--database", str(flower.log.parent / "state.db")),
        *("--log-file", str(flower.log)),
    ]
    process = subprocess.Popen(
        command,
        env=flower.variables(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a process group of its own: Ray and the apps end with it
    )
    try:
        _wait_until_listening(process, flower)
        yield
    finally:
        _end_group(process)


def _wait_until_listening(process: subprocess.Popen[bytes], flower: FlowerEnvironment, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LaunchError(f"flower-superlink ended with {process.returncode}; {flower.log}:\n{tail(flower.log)}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", flower.port), timeout=1):
            return
        time.sleep(0.1)
    raise LaunchError(f"flower-superlink did not listen on port {flower.port} within {timeout:g} s; see {flower.log}")


def _end_group(process: subprocess.Popen[bytes], patience: float = 10) -> None:
    """SIGTERM to the whole process group, SIGKILL to what is left of it after `patience` seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            process.poll()  # reaps the leader, which otherwise keeps the group alive as a zombie
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.1)


def _flwr(flower: FlowerEnvironment, *arguments: str) -> dict[str, Any]:
    """Run a `flwr` command and read its JSON answer."""
    command = ["flwr", *arguments, "--format", "json"]
    done = subprocess.run(command, env=flower.variables(), capture_output=True, text=True, check=False)
    start = done.stdout.find("{")
    try:
        answer: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
    except json.JSONDecodeError:
        answer = {}
    if done.returncode != 0 or not answer:
        said = answer.get("error-message") or (done.stdout + done.stderr).strip()
        raise LaunchError(f"`{' '.join(command[:2])}` failed with exit status {done.returncode}: {said}")
    return answer


def tail(path: Path, lines: int = LOG_LINES) -> str:
    """Return the last lines of a text file; empty if there is none."""
    if not path.is_file():
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
