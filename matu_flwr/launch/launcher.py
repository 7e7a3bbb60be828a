"""Runs `flwr run` with a SuperLink of its own. `matu run` and `make run` use it.

Plain `flwr run` has habits that surprise: it starts a SuperLink in the background on a fixed port and leaves it
running, it installs the app's dependencies again for every run, it takes relative paths from the folder in which the
first run was started, and it exits with status 0 even if the run failed. Here the SuperLink gets a free port and ends
with the run, paths are absolute, and a failed run fails the command.

Nothing that is written is shared with another run (`launch.staging`), and nothing stays behind: if this process is
killed, a watchdog stops Flower's processes (`launch.processes`). Flower's commands are told the address of our
SuperLink, as if it were a distant one. With a local one, a command that comes too late starts a SuperLink of its own.
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from filelock import FileLock, Timeout
from rich.console import Console

from matu_flwr.config.settings import Scalar
from matu_flwr.config.toml import as_toml
from matu_flwr.events import EndEvent
from matu_flwr.files import obstacle, write_text
from matu_flwr.launch import superlink
from matu_flwr.launch.causes import LATE, cause_of, in_words
from matu_flwr.launch.environment import CLUSTER, flower_variables, handed_on, unanswered
from matu_flwr.launch.flwr_answer import read_answer
from matu_flwr.launch.processes import deaf_to_signals, interrupted_by_sigterm, stop_run, watchdog
from matu_flwr.launch.staging import StagingError, Workplace, stage, workplace
from matu_flwr.launch.waiting import Stage, Waiting
from matu_flwr.run.console import ConsoleFollower
from matu_flwr.run.history import HISTORY, follow
from matu_flwr.run.recorder import is_going_on
from matu_flwr.texts import Brief

FLOWER_LOG, SUPERLINK_LOG, LAUNCH, LOCK = "flower.log", "superlink.log", "launch.json", ".launch.lock"
# Lines at the end of a log that an error shows.
LOG_LINES = 30
# Seconds without an event after which Flower is asked whether the run is over, before the first event and after it.
# Asking is not cheap: each question starts a Python process while the clients use all cores.
POLL_AT_START = 12.0
POLL_IN_SILENCE = 20.0
# Seconds from the end event until Flower must call the run finished. The pictures are drawn and Ray stops meanwhile.
FINISH_TIMEOUT = 120.0
# Seconds until the SuperLink must listen, until a command of Flower must be done, and until the app's process must have
# said its first word. They are long, because a busy machine is no reason to give up, and short enough to end.
LISTEN_TIMEOUT = 300.0
COMMAND_TIMEOUT = 600.0
START_TIMEOUT = 1.5 * superlink.FIRST_WORD
# Lines of the SuperLink's log that refuse a process which came too late, before the run is given up.
REFUSALS = 12
# How often a start is tried whose cause can pass: a port that was just taken, a machine that was slow for a moment.
TRIES = 3
CONNECTION = "this-run"
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class LaunchError(Brief, RuntimeError):
    """A run could not be started, or it failed; the text gives the reason and the last lines of the log."""


@dataclass
class FlowerEnvironment:
    """Where Flower keeps its files of one run, which port its SuperLink uses, and where it logs.

    Attributes
    ----------
    place : Workplace
        The run's own folders.
    log : Path
        File for the output of the SuperLink.
    port : int
        The port of the SuperLink; 0 until there is one.
    process : Popen or None
        The SuperLink; None until there is one.
    waiting : Waiting
        Says what is being waited for.
    watched : callable
        Takes the id of a process that has to end with this one.
    """

    place: Workplace
    log: Path
    waiting: Waiting
    watched: Callable[[int], None] = field(default=lambda pid: None)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def variables(self) -> dict[str, str]:
        """Return the environment for every Flower command."""
        return flower_variables(os.environ, self.place.home, self.place.ray, self.place.kernels)

    def connect(self, port: int) -> None:
        """Write Flower's configuration, so that its commands find the SuperLink at this port, and start none."""
        self.port = port
        text = f'[superlink]\ndefault = "{CONNECTION}"\n\n'
        text += f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        write_text(self.place.home / "config.toml", text)

    def is_alive(self) -> bool:
        """Tell whether the SuperLink runs."""
        return self.process is not None and self.process.poll() is None


def free_port() -> int:
    """Find a free TCP port on the loopback interface."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def check_start(app_dir: Path, out_dir: Path, *, resuming: bool) -> None:
    """Check what can be known before Flower starts. Nothing is changed.

    Raises
    ------
    LaunchError
        There is no app; or the output folder cannot be written, holds a run already or none that could be resumed, or
        a run in it is going on.
    """
    if not (app_dir / "pyproject.toml").is_file():
        raise LaunchError(f"{app_dir} is not a Flower app: it has no pyproject.toml; name the folder of one with --app")
    if reason := obstacle(out_dir):
        raise LaunchError(f"nothing can be written to the output folder {out_dir}: {reason}; name another --out-dir")
    # A link to a file, or a folder that this user may not look into, is an obstacle; it was found above.
    history = out_dir / HISTORY
    if history.exists() and not resuming:
        raise LaunchError(
            f"{out_dir} holds a run already: name another --out-dir; whether it can be resumed, and how, says "
            f"`matu status {shlex.quote(str(out_dir))}`"
        )
    if resuming and not history.exists():
        raise LaunchError(f"{out_dir} holds no run to resume: it has no {HISTORY}")
    if is_going_on(out_dir):
        raise LaunchError(f"a run in {out_dir} is still going on: wait for it, or stop it first")


def check_cpus(num_cpus: int) -> None:
    """Raise LaunchError if a client is to get more CPUs than there are, or if the named Ray cluster is not there."""
    if address := os.environ.get(CLUSTER):
        if reason := unanswered(address):
            raise LaunchError(
                f"{CLUSTER} = {address}, but no Ray cluster answers there ({reason}): start it, or unset {CLUSTER} to "
                "run on this machine alone"
            )
        return
    there = os.cpu_count() or 1
    if num_cpus > there:
        raise LaunchError(
            f"each client is to get {num_cpus} CPUs, and this machine has {there}: give --cpus {there} or fewer"
        )


@contextlib.contextmanager
def claimed(folder: Path, what: str) -> Iterator[None]:
    """Keep a folder for this process; LaunchError if another one works in it. `what` names the folder's content."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LaunchError(
            f"another command is at work on {what} in {folder}: wait for it, or name another --out-dir"
        ) from None
    # A file system without locks: nothing is lost but this check.
    except NotImplementedError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


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
        Where the run's own folder for Flower is made and removed again; `<app_dir>/.flwr` if not given, or the
        temporary folder if nothing can be written there.
    console : Console, optional
        Where to show the progress; standard output if not given.

    Raises
    ------
    LaunchError
        The run could not be started, failed or was stopped, or the folder holds a run already.
    """
    app_dir, out_dir = app_dir.absolute(), out_dir.absolute()
    resuming = bool(run_config.get("resume-from"))
    check_start(app_dir, out_dir, resuming=resuming)
    check_cpus(num_cpus)
    follower = ConsoleFollower(console)

    def say(text: str) -> None:
        follower.console.print(text, markup=False, soft_wrap=True)

    resources = {"nodes": num_nodes, "cpus": num_cpus, "gpus": num_gpus}
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with claimed(out_dir, "a run"):
            write_text(out_dir / LAUNCH, json.dumps(resources) + "\n")
            # Settings go through a file. Given as options, Flower would read "a.b=1" and "a.c=2" as two tables `a` and
            # keep only the second; and a path may contain spaces and quotes.
            config = out_dir / ("resume-config.toml" if resuming else "run-config.toml")
            write_text(config, as_toml({**run_config, "out-dir": str(out_dir)}))
            with interrupted_by_sigterm(), workplace((home or app_dir / ".flwr").absolute(), say) as place:
                _run(app_dir, out_dir, config, resources, place, follower, say, resuming=resuming)
    except KeyboardInterrupt:
        raise LaunchError(f"stopped by you; the history so far is in {out_dir}") from None
    except (OSError, StagingError) as error:
        raise LaunchError(f"the run in {out_dir} cannot be started: {error}") from error


def _run(
    app_dir: Path,
    out_dir: Path,
    config: Path,
    resources: Mapping[str, float],
    place: Workplace,
    follower: ConsoleFollower,
    say: Callable[[str], None],
    *,
    resuming: bool,
) -> None:
    """Start Flower, hand it the app, follow the run to its end, and stop Flower."""
    history, log = out_dir / HISTORY, out_dir / FLOWER_LOG
    if left_out := handed_on(os.environ)[1]:
        say(f"not handed on to Flower, because it would lead its processes astray: {', '.join(left_out)}")
    if cluster := os.environ.get(CLUSTER):
        say(f"{CLUSTER} is set: the clients run on the Ray cluster at {cluster}")
    staged = stage(app_dir, place.home / "staged-app", say)
    simulation = " ".join(
        f"{key}={resources[name]}"
        for key, name in (
            ("num-supernodes", "nodes"),
            ("client-resources-num-cpus", "cpus"),
            ("client-resources-num-gpus", "gpus"),
        )
    )
    options = [*("--run-config", str(config)), *("--federation-config", simulation)]
    before = history.stat().st_ino if resuming else None
    flower = FlowerEnvironment(place, out_dir / SUPERLINK_LOG, Waiting(say))
    with (
        watchdog(str(place.home), [place.home, place.ray]) as flower.watched,
        local_superlink(flower),
        follower,
    ):
        for attempt in range(1, TRIES + 1):
            end, heard = None, False
            run_id = str(_flwr(flower, "run", str(staged), *options, awaited="Flower to take the app")["run-id"])
            watch = _Watch(flower, run_id, history, before)
            for event in follow(history, watch.is_over, replaces=before):
                watch.hear(event)
                follower.show(event)
                heard, end = True, event if event["event"] == "end" else None
            status, details = watch.wait()
            if flower.is_alive():
                # The SuperLink keeps the run's log in memory only, so it must be fetched while the SuperLink lives.
                with log.open("a", encoding="utf-8") as file:
                    file.write(_command(flower, "log", run_id, "--show", awaited="the log of the run").stdout)
            cause = cause_of(f"{details}\n{tail(log, 200)}")
            if heard or status.startswith("given-up") or cause is None or not cause.again or attempt == TRIES:
                break
            say(f"{in_words(cause, details, sys.executable)} (trying again, {attempt + 1} of {TRIES})")
            if not resuming:
                # Empty: no event has come.
                history.unlink(missing_ok=True)
    _judge(end, status, details, log, flower.log)


def _judge(end: EndEvent | None, status: str, details: str, log: Path, superlink_log: Path) -> None:
    """Return if the run has completed; LaunchError with the reason if it has not."""
    if end is None:
        _fail(f"the run stopped without an end event; Flower says {status}: {details}", log, superlink_log)
    if end["status"] != "completed":
        # The ServerApp knows best why it failed.
        raise LaunchError(_with_tail(f"the run failed: {end['error']}", log))
    if status != "finished:completed":
        _fail(f"the run completed, but then Flower says {status}: {details}", log, superlink_log)


def resources_of(
    out_dir: Path, *, nodes: int | None, cpus: int | None, gpus: float | None
) -> dict[Literal["num_nodes", "num_cpus", "num_gpus"], Any]:
    """Choose nodes, CPUs and GPUs for `run_app`.

    A value that is given wins. For the others, a resumed run takes what the run in the folder had before, and a new run
    takes 10 nodes with one CPU and no GPU each.

    Raises
    ------
    LaunchError
        The file with what the run had before cannot be read.
    """
    path = out_dir / LAUNCH
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        earlier = {
            name: kind(earlier[name])
            for name, kind in (("nodes", int), ("cpus", int), ("gpus", float))
            if name in earlier
        }
    except (OSError, ValueError, TypeError) as error:
        raise LaunchError(
            f"{path}, which says how many nodes the run had, cannot be read ({error}): remove it, and give --nodes"
        ) from None
    asked = {"nodes": nodes, "cpus": cpus, "gpus": gpus}
    found = {"nodes": 10, "cpus": 1, "gpus": 0.0} | earlier | {k: v for k, v in asked.items() if v is not None}
    return {"num_nodes": found["nodes"], "num_cpus": found["cpus"], "num_gpus": found["gpus"]}


def _fail(reason: str, *logs: Path) -> NoReturn:
    """Raise a LaunchError: a sentence if the logs show a known cause, else the reason and the end of the first log."""
    text = "\n".join([reason, *(tail(log, 200) for log in logs)])
    if cause := cause_of(text):
        raise LaunchError(
            f"{in_words(cause, text, sys.executable)} (in Flower's words: {reason[:300]}; its log is {logs[0]})"
        )
    raise LaunchError(_with_tail(reason, logs[0]))


def _with_tail(reason: str, log: Path) -> str:
    return f"{reason}\nlast lines of {log}:\n{tail(log)}"


class _Watch:
    """Knows whether a run is over. Flower is asked only if no event has come for a while, because asking is slow."""

    def __init__(self, flower: FlowerEnvironment, run_id: str, history: Path, replaces: int | None) -> None:
        self.flower = flower
        self.run_id = run_id
        self._history = history
        self._replaces = replaces
        self._stage = Stage()
        self._heard = False
        self._state = ("unknown", "")
        # Shorter at the start: an app that cannot even be imported fails soon, and without writing an event.
        self._interval = POLL_AT_START
        self._began = self._quiet_since = time.monotonic()

    def hear(self, event: Any) -> None:
        """Note that an event has come, so that Flower need not be asked for a while."""
        self._heard = True
        self._stage.hear(event)
        self.flower.waiting.hear()
        self._interval = POLL_IN_SILENCE
        self._quiet_since = time.monotonic()

    def is_over(self) -> bool:
        """Tell whether the run has finished, according to Flower's last answer, or cannot go on."""
        if not self._finished and not self.flower.is_alive():
            self._state = ("finished:lost", "its SuperLink is gone")
        self.flower.waiting.look(self.awaited())
        if not self._finished and time.monotonic() - self._quiet_since > self._interval:
            self._ask()
        return self._finished

    def awaited(self) -> str:
        """Say what the run is waiting for."""
        if self._state[0] in ("unknown", "pending", "starting"):
            return "Flower to start the process of the ServerApp"
        if stage := str(self._stage):
            return stage
        if self._history.exists() and self._history.stat().st_ino != self._replaces:
            return "the nodes to say who they are and which tasks they have"
        ray = self.flower.place.ray / "ray"
        return "the ServerApp to be ready" if ray.exists() else "Ray to start, which runs the simulated clients"

    def wait(self) -> tuple[str, str]:
        """Ask until the run has finished, at most for FINISH_TIMEOUT seconds. Returns Flower's status and details."""
        deadline = time.monotonic() + FINISH_TIMEOUT
        while not self._finished and time.monotonic() < deadline:
            if not self.flower.is_alive():
                return "finished:lost", "its SuperLink is gone"
            self._ask()
            if not self._finished:
                time.sleep(0.5)
        return self._state

    @property
    def _finished(self) -> bool:
        return self._state[0].startswith(("finished", "given-up"))

    def _ask(self) -> None:
        try:
            run = _flwr(self.flower, "list", "--run-id", self.run_id, awaited=self.awaited())["runs"][0]
        except LaunchError as error:
            # A question that fails while the SuperLink lives may succeed next time: the machine may just be busy.
            if not self.flower.is_alive():
                self._state = ("finished:lost", f"its SuperLink is gone ({error})")
        else:
            self._state = (str(run["status"]), str(run["status-details"]))
        self._quiet_since = time.monotonic()
        if not self._heard and not self._finished:
            self._give_up_if_hopeless()

    def _give_up_if_hopeless(self) -> None:
        refused = tail(self.flower.log, 10_000).count(LATE.pattern)
        seconds = time.monotonic() - self._began
        if refused >= REFUSALS:
            self._state = ("given-up", f"{refused} times it has refused a process that came too late ({LATE.pattern})")
        elif self._state[0] in ("unknown", "pending", "starting") and seconds > START_TIMEOUT:
            self._state = ("given-up", f"the process of the ServerApp has not started within {seconds:.0f} s")


# --- Flower's processes --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def local_superlink(flower: FlowerEnvironment) -> Iterator[None]:
    """Start a SuperLink in simulation mode, and stop it and all processes of the run when the block ends.

    It keeps its state in memory, so it does not take up runs of an earlier launch.

    Raises
    ------
    LaunchError
        Flower is not installed, or the SuperLink does not start.
    """
    variables = flower.variables()
    for command in ("flwr", "flower-superexec", "flwr-simulation"):
        if shutil.which(command, path=variables["PATH"]) is None:
            raise LaunchError(f"there is no command {command} beside {sys.executable}: pip install 'flwr[simulation]'")
    pids = []
    try:
        for attempt in range(1, TRIES + 1):
            flower.connect(free_port())
            # Above the new lines: an earlier attempt may have left a message about its port.
            begin = flower.log.stat().st_size if flower.log.exists() else 0
            with flower.log.open("ab") as log:
                flower.process = subprocess.Popen(
                    superlink_command(flower.port),
                    env=variables,
                    cwd=flower.place.home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # In a session of its own it does not get Ctrl-C. The launcher gets it, and stops Flower in order.
                    start_new_session=True,
                )
            pids.append(flower.process.pid)
            flower.watched(flower.process.pid)
            if _listens(flower, begin):
                break
            cause = cause_of(_since(flower.log, begin))
            if cause is None or not cause.again or attempt == TRIES:
                _fail(f"flower-superlink ended with {flower.process.returncode}", flower.log)
        yield
    finally:
        with deaf_to_signals():
            stop_run(pids, str(flower.place.home))
            if flower.process is not None:
                flower.process.wait()


def superlink_command(port: int) -> list[str]:
    """Return the command that starts our SuperLink."""
    return [
        # As a script by its path, without its folder on the import path: there are modules with common names in it.
        *(sys.executable, "-P", superlink.__file__),
        *("--insecure", "--simulation", "--isolation", "subprocess"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


def _listens(flower: FlowerEnvironment, begin: int, timeout: float = LISTEN_TIMEOUT) -> bool:
    """Wait until our SuperLink listens. False if it has ended; LaunchError if it does neither in time."""
    assert flower.process is not None
    began = time.monotonic()
    answered = 0.0
    flower.waiting.hear()
    while time.monotonic() - began < timeout:
        if flower.process.poll() is not None:
            return False
        flower.waiting.look("Flower's SuperLink to start")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", flower.port), timeout=1):
            answered = answered or time.monotonic()
        # An answer alone may come from somebody else who was given the same port meanwhile. Then ours ends soon.
        if answered and ("Uvicorn running" in _since(flower.log, begin) or time.monotonic() - answered > 30):
            return True
        time.sleep(0.1)
    _fail(f"flower-superlink did not listen on port {flower.port} within {timeout:g} s", flower.log)


def _since(path: Path, begin: int) -> str:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace")


def _flwr(flower: FlowerEnvironment, *arguments: str, awaited: str) -> dict[str, Any]:
    """Run a `flwr` command and return its JSON answer; LaunchError if it fails."""
    done = _command(flower, *arguments, "--format", "json", awaited=awaited)
    return read_answer(done, f"flwr {arguments[0]}", LaunchError)


def _command(flower: FlowerEnvironment, *arguments: str, awaited: str) -> subprocess.CompletedProcess[str]:
    """Run a `flwr` command to its end; LaunchError if it takes longer than COMMAND_TIMEOUT seconds.

    `awaited` says for a person what is being waited for meanwhile.
    """
    with subprocess.Popen(
        ["flwr", *arguments],
        env=flower.variables(),
        cwd=flower.place.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        # As above: Ctrl-C is for the launcher alone.
        start_new_session=True,
    ) as process:
        began = time.monotonic()
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=1)
                    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
                except subprocess.TimeoutExpired:
                    flower.waiting.look(awaited)
                    if time.monotonic() - began > COMMAND_TIMEOUT:
                        raise LaunchError(
                            f"`flwr {arguments[0]}` did not answer within {COMMAND_TIMEOUT:g} s"
                        ) from None
        finally:
            process.kill()


def tail(path: Path, lines: int = LOG_LINES) -> str:
    """Return the last lines of a text file, without colours and blank lines; empty if the file does not exist."""
    if not path.is_file():
        return ""
    text = ANSI.sub("", path.read_text(encoding="utf-8", errors="replace"))
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])
