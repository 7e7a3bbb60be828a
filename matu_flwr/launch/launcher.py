"""`flwr run` with the sensible environment around it: what `make run` calls.

Flower alone starts a SuperLink in the background on a fixed port and leaves it running, resolves the app's dependencies
anew for every run, writes relative paths to wherever the first run was typed, and exits with 0 when a run failed. Here
the SuperLink has a port of its own and lives for this run only; and a failed run fails the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from rich.console import Console

from matu_flwr.config.settings import Scalar
from matu_flwr.config.toml import as_toml
from matu_flwr.events import EndEvent
from matu_flwr.files import write_text
from matu_flwr.launch.flwr_answer import read_answer
from matu_flwr.launch.processes import deaf_to_signals, groups_below, interrupted_by_sigterm, stop_groups
from matu_flwr.run.console import ConsoleFollower
from matu_flwr.run.history import HISTORY, follow

FLOWER_LOG, SUPERLINK_LOG, LAUNCH = "flower.log", "superlink.log", "launch.json"
LOG_LINES = 30
POLL_AT_START = 12.0  # seconds between questions to Flower, each of which starts a Python process on busy cores
POLL_IN_SILENCE = 20.0
FINISH_TIMEOUT = 120.0  # from the end event until Flower calls the run finished: pictures, Ray's own end
BUNDLED = (".py", ".toml", ".md", ".yaml", ".yml", ".json")  # kinds of files that Flower puts into an app bundle
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class LaunchError(RuntimeError):
    """A run that could not be started, or that failed; the text has the reason and the last lines of the log."""


@dataclass(frozen=True)
class FlowerEnvironment:
    """Where Flower keeps its files, on which ports its local SuperLink is, and where everything is logged.

    `home` is also the working directory of all that Flower starts. Ray puts that directory before the app's own on the
    clients' import path, so from a checkout it would run the files there and not those of the bundle.
    """

    home: Path
    ports: tuple[int, int]
    log: Path

    def variables(self) -> dict[str, str]:
        """Environment of every Flower command, on top of this process's own."""
        inherited = dict(os.environ)
        if data := inherited.get("MATU_DATA_DIR"):  # may be relative to where the user is
            inherited["MATU_DATA_DIR"] = str(Path(data).expanduser().absolute())
        return inherited | {
            "FLWR_HOME": str(self.home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(self.ports[0]),
            "FLWR_LOCAL_CONTROL_API_PORT": str(self.ports[1]),
            # Installed already; resolving again needs the network and may shadow what was tested.
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONUNBUFFERED": "1",  # what a killed process said last stands in the log
            # Flower starts its commands by name: they have to be those of this environment.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
        }


def free_ports() -> tuple[int, int]:
    """Two TCP ports of the loopback interface that nobody listens on: two launches do not collide."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])


def run_app(
    app_dir: Path,
    out_dir: Path,
    *,
    run_config: Mapping[str, Scalar],
    num_nodes: int,
    num_cpus: int = 1,
    num_gpus: float = 0.0,
    home: Path | None = None,
    console: Console | None = None,
) -> None:
    """Run the app in a simulation, show how it goes, and return when it has completed.

    Parameters
    ----------
    app_dir : Path
        Folder with the app's pyproject.toml.
    out_dir : Path
        Output folder; must not hold a run yet, unless `resume-from` names it or one of its checkpoints. Besides the
        run's own files it gets `flower.log`, what ServerApp and clients logged, `superlink.log`, and `launch.json`.
    run_config : mapping of str to bool, int, float or str
        Settings under the keys of the app's run configuration.
    num_nodes : int
        SuperNodes to simulate; as many as the run had if it is resumed (`resources_of`).
    num_cpus : int
        CPUs of each client; as many clients run side by side as fit on the machine.
    num_gpus : float
        GPUs of each client, or the part of one.
    home : Path, optional
        Flower's folder; `<app_dir>/.flwr` if not given.
    console : Console, optional
        Where to show it; standard output if not given.

    Raises
    ------
    LaunchError
        The run could not be submitted, failed or was stopped, or the folder holds a run already.
    """
    app_dir, out_dir = app_dir.absolute(), out_dir.absolute()
    if not (app_dir / "pyproject.toml").is_file():
        raise LaunchError(f"{app_dir} is no Flower app: it has no pyproject.toml")
    history, resuming = out_dir / HISTORY, bool(run_config.get("resume-from"))
    if history.exists() and not resuming:
        raise LaunchError(f"{out_dir} holds a run already; name another --out-dir, or resume it with --resume")
    if resuming and not history.exists():
        raise LaunchError(f"{out_dir} holds no run to resume: it has no {HISTORY}")
    out_dir.mkdir(parents=True, exist_ok=True)
    resources = {"nodes": num_nodes, "cpus": num_cpus, "gpus": num_gpus}
    write_text(out_dir / LAUNCH, json.dumps(resources) + "\n")
    flower = FlowerEnvironment((home or app_dir / ".flwr").absolute(), free_ports(), out_dir / SUPERLINK_LOG)
    flower.home.mkdir(parents=True, exist_ok=True)
    staged = stage(app_dir, flower.home / "staged-app")
    # A file, because Flower reads "a.b=1" and "a.c=2" of two options as one table and keeps the last, and because a
    # path may have spaces and quotes.
    config = out_dir / ("resume-config.toml" if resuming else "run-config.toml")
    write_text(config, as_toml({**run_config, "out-dir": str(out_dir)}))
    simulation = f"num-supernodes={num_nodes} client-resources-num-cpus={num_cpus} client-resources-num-gpus={num_gpus}"
    options = [*("--run-config", str(config)), *("--federation-config", simulation)]
    before = history.stat().st_ino if resuming else None
    end: EndEvent | None = None
    log = out_dir / FLOWER_LOG
    try:
        with interrupted_by_sigterm(), local_superlink(flower), ConsoleFollower(console) as follower:
            run_id = str(_flwr(flower, "run", str(staged), *options)["run-id"])
            watch = _Watch(flower, run_id)
            for event in follow(history, watch.is_over, replaces=before):
                watch.hear()
                follower.show(event)
                end = event if event["event"] == "end" else None
            status, details = watch.wait()
            # The SuperLink has it in memory.
            with log.open("a", encoding="utf-8") as file:
                file.write(_command(flower, "log", run_id, "--show").stdout)
    except KeyboardInterrupt:
        raise LaunchError(f"stopped by you; the history so far is in {out_dir}") from None
    if end is None:
        _fail(f"the run died without a last word; Flower says {status}: {details}", log)
    if end["status"] != "completed":
        _fail(f"the run failed: {end['error']}", log)
    if status != "finished:completed":
        _fail(f"the run completed, and then Flower says {status}: {details}", log)


def resources_of(
    out_dir: Path, *, nodes: int | None, cpus: int | None, gpus: float | None
) -> dict[Literal["num_nodes", "num_cpus", "num_gpus"], Any]:
    """Arguments of `run_app`: as asked for, else as the run in the folder had them, else 10 nodes of one CPU each."""
    path = out_dir / LAUNCH
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    asked = {"nodes": nodes, "cpus": cpus, "gpus": gpus}
    found = {"nodes": 10, "cpus": 1, "gpus": 0.0} | earlier | {k: v for k, v in asked.items() if v is not None}
    return {"num_nodes": found["nodes"], "num_cpus": found["cpus"], "num_gpus": found["gpus"]}


def stage(app_dir: Path, target: Path) -> Path:
    """Copy what an app bundle can hold into a folder of its own, and return that folder.

    `flwr run` looks at every file below the app's folder before it chooses: a virtual environment beside the code costs
    it three seconds at every start.
    """

    def other(folder: str, names: list[str]) -> list[str]:
        paths = [Path(folder, name) for name in names]
        hidden = {path.name for path in paths if path.is_dir() and path.name.startswith((".", "__"))}
        foreign = {path.name for path in paths if path.is_dir() and (path / "pyvenv.cfg").exists()}
        files = {path.name for path in paths if path.is_file()}
        kept = {name for name in files if Path(name).suffix in BUNDLED or name in ("LICENSE", ".gitignore")}
        return sorted(hidden | foreign | (files - kept) | ({"runs", "comparisons"} & set(names)))

    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(app_dir, target, ignore=other)
    return target


def _fail(reason: str, log: Path) -> NoReturn:
    raise LaunchError(f"{reason}\nlast lines of {log}:\n{tail(log)}")


class _Watch:
    """Asks Flower, at long intervals and only while the history is silent, whether a run is over."""

    def __init__(self, flower: FlowerEnvironment, run_id: str) -> None:
        self.flower = flower
        self.run_id = run_id
        self._state = ("unknown", "")
        self._interval = POLL_AT_START  # an app that cannot even be imported fails soon and writes no event
        self._quiet_since = time.monotonic()

    def hear(self) -> None:
        """Note that an event has come."""
        self._interval = POLL_IN_SILENCE
        self._quiet_since = time.monotonic()

    def is_over(self) -> bool:
        """True once the run has finished, as of the last answer."""
        if not self._finished and time.monotonic() - self._quiet_since > self._interval:
            self._ask()
        return self._finished

    def wait(self) -> tuple[str, str]:
        """Ask until the run has finished, or for FINISH_TIMEOUT seconds; returns status and details."""
        deadline = time.monotonic() + FINISH_TIMEOUT
        while not self._finished and time.monotonic() < deadline:
            self._ask()
            if not self._finished:
                time.sleep(0.5)
        return self._state

    @property
    def _finished(self) -> bool:
        return self._state[0].startswith("finished")

    def _ask(self) -> None:
        try:
            run = _flwr(self.flower, "list", "--run-id", self.run_id)["runs"][0]
        except LaunchError as error:
            # flwr starts another SuperLink where ours is gone, and that one knows no runs
            self._state = ("finished:lost", f"its SuperLink is gone ({error})")
        else:
            self._state = (str(run["status"]), str(run["status-details"]))
        self._quiet_since = time.monotonic()


# --- Flower's processes --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def local_superlink(flower: FlowerEnvironment) -> Iterator[None]:
    """Start a SuperLink in simulation mode for the time of the context; it and all it started are gone afterwards.

    `flwr run` finds it at its port. Its state is in memory: a run that an earlier launch left behind is not resumed.
    """
    command = [
        "flower-superlink",
        *("--insecure", "--simulation", "--isolation", "subprocess"),
        *("--host", "127.0.0.1", "--port", str(flower.ports[0])),
    ]
    variables = flower.variables()
    with flower.log.open("ab") as log:
        try:
            process = subprocess.Popen(
                command,
                env=variables,
                cwd=flower.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the launcher, which then stops Flower in order
            )
        except FileNotFoundError:
            raise LaunchError(
                f"no command flower-superlink beside {sys.executable}: pip install 'flwr[simulation]'"
            ) from None
    groups = {process.pid}
    try:
        _wait_until_listening(process, flower)
        groups |= groups_below(process.pid)
        yield
    finally:
        with deaf_to_signals():
            stop_groups(groups | groups_below(process.pid))
            process.wait()


def _wait_until_listening(process: subprocess.Popen[bytes], flower: FlowerEnvironment, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            _fail(f"flower-superlink ended with {process.returncode}", flower.log)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", flower.ports[0]), timeout=1):
            return
        time.sleep(0.1)
    _fail(f"flower-superlink did not listen on port {flower.ports[0]} within {timeout:g} s", flower.log)


def _flwr(flower: FlowerEnvironment, *arguments: str) -> dict[str, Any]:
    """Run a `flwr` command and read its JSON answer."""
    done = _command(flower, *arguments, "--format", "json")
    return read_answer(done, f"flwr {arguments[0]}", LaunchError)


def _command(flower: FlowerEnvironment, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["flwr", *arguments],
        env=flower.variables(),
        cwd=flower.home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,  # Ctrl-C is for the launcher
        check=False,
    )


def tail(path: Path, lines: int = LOG_LINES) -> str:
    """Return the last lines of a text file, without colours and blank lines; empty if there is none."""
    if not path.is_file():
        return ""
    text = ANSI.sub("", path.read_text(encoding="utf-8", errors="replace"))
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])
