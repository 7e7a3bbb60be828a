"""Runs `flwr run` with a SuperLink of its own. `matu run` and `make run` use it.

Plain `flwr run` has habits that surprise: it starts a SuperLink in the background on a fixed port and leaves it
running, it installs the app's dependencies again for every run, it takes relative paths from the folder in which the
first run was started, and it exits with status 0 even if the run failed. Here the SuperLink gets a free port and ends
with the run, paths are absolute, and a failed run fails the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
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
from matu_flwr.texts import Brief

FLOWER_LOG, SUPERLINK_LOG, LAUNCH = "flower.log", "superlink.log", "launch.json"
# Lines at the end of a log that an error shows.
LOG_LINES = 30
# Seconds without an event after which Flower is asked whether the run is over, before the first event and after it.
# Asking is not cheap: each question starts a Python process while the clients use all cores.
POLL_AT_START = 12.0
POLL_IN_SILENCE = 20.0
# Seconds from the end event until Flower must call the run finished. The pictures are drawn and Ray stops meanwhile.
FINISH_TIMEOUT = 120.0
# Kinds of files that Flower puts into an app bundle.
BUNDLED = (".py", ".toml", ".md", ".yaml", ".yml", ".json")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class LaunchError(Brief, RuntimeError):
    """A run could not be started, or it failed; the text gives the reason and the last lines of the log."""


@dataclass(frozen=True)
class FlowerEnvironment:
    """Where Flower keeps its files, which ports its SuperLink uses, and where it logs.

    Attributes
    ----------
    home : Path
        Flower's folder. It is also the working directory of every process that Flower starts. Ray puts that directory
        first on the clients' import path, so in a checkout it would import the files there and not those of the bundle.
    ports : tuple of int
        The HTTP port and the control port of the SuperLink.
    log : Path
        File for the output of the SuperLink.
    """

    home: Path
    ports: tuple[int, int]
    log: Path

    def variables(self) -> dict[str, str]:
        """Return the environment for every Flower command: that of this process, with Flower's variables added."""
        inherited = dict(os.environ)
        # Flower runs in another folder, where a relative path would not mean the same.
        if data := inherited.get("MATU_DATA_DIR"):
            inherited["MATU_DATA_DIR"] = str(Path(data).expanduser().absolute())
        return inherited | {
            "FLWR_HOME": str(self.home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(self.ports[0]),
            "FLWR_LOCAL_CONTROL_API_PORT": str(self.ports[1]),
            # The dependencies are installed. Installing them again needs the network, and could bring other versions
            # than those that were tested.
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Without a buffer, the last words of a killed process reach the log.
            "PYTHONUNBUFFERED": "1",
            # Flower starts its own commands by name, and they must be those of this Python environment.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
        }


def free_ports() -> tuple[int, int]:
    """Find two free TCP ports on the loopback interface, so that runs started side by side do not collide."""
    # Both sockets stay open until both ports are known: otherwise the system could give the same port twice.
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
    """Run the app as a simulation, show its progress, and return when the run has completed.

    Parameters
    ----------
    app_dir : Path
        Folder with the app's pyproject.toml.
    out_dir : Path
        Output folder. It must not hold a run yet, unless `resume-from` names it or one of its checkpoints. Besides the
        run's own files it gets `flower.log` (what ServerApp and clients logged), `superlink.log` and `launch.json`.
    run_config : mapping of str to bool, int, float or str
        Settings, under the keys of the app's run configuration.
    num_nodes : int
        Number of SuperNodes to simulate. A resumed run needs as many as before; see `resources_of`.
    num_cpus : int
        CPUs of each client. As many clients run side by side as fit on the machine.
    num_gpus : float
        GPUs of each client; 0.5 lets two clients share one.
    home : Path, optional
        Flower's folder; `<app_dir>/.flwr` if not given.
    console : Console, optional
        Where to show the progress; standard output if not given.

    Raises
    ------
    LaunchError
        The run could not be started, failed or was stopped, or the folder holds a run already.
    """
    app_dir, out_dir = app_dir.absolute(), out_dir.absolute()
    if not (app_dir / "pyproject.toml").is_file():
        raise LaunchError(f"{app_dir} is not a Flower app: it has no pyproject.toml; name the folder of one")
    history, resuming = out_dir / HISTORY, bool(run_config.get("resume-from"))
    if history.exists() and not resuming:
        raise LaunchError(
            f"{out_dir} holds a run already: name another --out-dir; whether it can be resumed, and how, says "
            f"`matu status {shlex.quote(str(out_dir))}`"
        )
    if resuming and not history.exists():
        raise LaunchError(f"{out_dir} holds no run to resume: it has no {HISTORY}")
    out_dir.mkdir(parents=True, exist_ok=True)
    resources = {"nodes": num_nodes, "cpus": num_cpus, "gpus": num_gpus}
    write_text(out_dir / LAUNCH, json.dumps(resources) + "\n")
    flower = FlowerEnvironment((home or app_dir / ".flwr").absolute(), free_ports(), out_dir / SUPERLINK_LOG)
    flower.home.mkdir(parents=True, exist_ok=True)
    staged = stage(app_dir, flower.home / "staged-app")
    # Settings go through a file. Given as options, Flower would read "a.b=1" and "a.c=2" as two tables `a` and keep
    # only the second; and a path may contain spaces and quotes.
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
            # The SuperLink keeps the run's log in memory only, so it must be fetched while the SuperLink lives.
            with log.open("a", encoding="utf-8") as file:
                file.write(_command(flower, "log", run_id, "--show").stdout)
    except KeyboardInterrupt:
        raise LaunchError(f"stopped by you; the history so far is in {out_dir}") from None
    if end is None:
        _fail(f"the run stopped without an end event; Flower says {status}: {details}", log)
    if end["status"] != "completed":
        _fail(f"the run failed: {end['error']}", log)
    if status != "finished:completed":
        _fail(f"the run completed, but then Flower says {status}: {details}", log)


def resources_of(
    out_dir: Path, *, nodes: int | None, cpus: int | None, gpus: float | None
) -> dict[Literal["num_nodes", "num_cpus", "num_gpus"], Any]:
    """Choose nodes, CPUs and GPUs for `run_app`.

    A value that is given wins. For the others, a resumed run takes what the run in the folder had before, and a new run
    takes 10 nodes with one CPU and no GPU each.
    """
    path = out_dir / LAUNCH
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    asked = {"nodes": nodes, "cpus": cpus, "gpus": gpus}
    found = {"nodes": 10, "cpus": 1, "gpus": 0.0} | earlier | {k: v for k, v in asked.items() if v is not None}
    return {"num_nodes": found["nodes"], "num_cpus": found["cpus"], "num_gpus": found["gpus"]}


def stage(app_dir: Path, target: Path) -> Path:
    """Copy the files that belong into an app bundle to `target`, and return that folder.

    `flwr run` looks at every file below the app's folder before it chooses. With a virtual environment beside the code
    that takes three seconds at every start.
    """

    def left_out(folder: str, names: list[str]) -> list[str]:
        paths = [Path(folder, name) for name in names]
        hidden = {path.name for path in paths if path.is_dir() and path.name.startswith((".", "__"))}
        foreign = {path.name for path in paths if path.is_dir() and (path / "pyvenv.cfg").exists()}
        files = {path.name for path in paths if path.is_file()}
        kept = {name for name in files if Path(name).suffix in BUNDLED or name in ("LICENSE", ".gitignore")}
        return sorted(hidden | foreign | (files - kept) | ({"runs", "comparisons"} & set(names)))

    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(app_dir, target, ignore=left_out)
    return target


def _fail(reason: str, log: Path) -> NoReturn:
    raise LaunchError(f"{reason}\nlast lines of {log}:\n{tail(log)}")


class _Watch:
    """Asks Flower whether a run is over, but only if no event has come for a while, because asking is slow."""

    def __init__(self, flower: FlowerEnvironment, run_id: str) -> None:
        self.flower = flower
        self.run_id = run_id
        self._state = ("unknown", "")
        # Shorter at the start: an app that cannot even be imported fails soon, and without writing an event.
        self._interval = POLL_AT_START
        self._quiet_since = time.monotonic()

    def hear(self) -> None:
        """Note that an event has come, so that Flower need not be asked for a while."""
        self._interval = POLL_IN_SILENCE
        self._quiet_since = time.monotonic()

    def is_over(self) -> bool:
        """Tell whether the run has finished, according to Flower's last answer."""
        if not self._finished and time.monotonic() - self._quiet_since > self._interval:
            self._ask()
        return self._finished

    def wait(self) -> tuple[str, str]:
        """Ask until the run has finished, at most for FINISH_TIMEOUT seconds. Returns Flower's status and details."""
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
            # If our SuperLink is gone, `flwr list` silently starts a new one, which knows no runs.
            self._state = ("finished:lost", f"its SuperLink is gone ({error})")
        else:
            self._state = (str(run["status"]), str(run["status-details"]))
        self._quiet_since = time.monotonic()


# --- Flower's processes --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def local_superlink(flower: FlowerEnvironment) -> Iterator[None]:
    """Start a SuperLink in simulation mode, and stop it and all its processes when the block ends.

    `flwr run` finds it at its port. It keeps its state in memory, so it does not take up runs of an earlier launch.

    Raises
    ------
    LaunchError
        Flower is not installed, or the SuperLink does not start.
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
                # In a session of its own it does not get Ctrl-C. The launcher gets it, and stops Flower in order.
                start_new_session=True,
            )
        except FileNotFoundError:
            raise LaunchError(
                f"there is no command flower-superlink beside {sys.executable}: pip install 'flwr[simulation]'"
            ) from None
    groups = {process.pid}
    try:
        _wait_until_listening(process, flower)
        # Noted now and again at the end: processes whose parent has died can no longer be found below the SuperLink.
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
    """Run a `flwr` command and return its JSON answer; LaunchError if it fails."""
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
        # As above: Ctrl-C is for the launcher alone.
        start_new_session=True,
        check=False,
    )


def tail(path: Path, lines: int = LOG_LINES) -> str:
    """Return the last lines of a text file, without colours and blank lines; empty if the file does not exist."""
    if not path.is_file():
        return ""
    text = ANSI.sub("", path.read_text(encoding="utf-8", errors="replace"))
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])
