"""Runs `flwr run` with a SuperLink of its own. `matu run` and `make run` use it.

Plain `flwr run` has habits that surprise: it starts a SuperLink in the background on a fixed port and leaves it
running, it installs the app's dependencies again for every run, it takes relative paths from the folder in which the
first run was started, and it exits with status 0 even if the run failed. Here the SuperLink gets a free port and ends
with the run, paths are absolute, and a failed run fails the command.

Nothing that is written is shared with another run (`launch.staging`), and nothing stays behind: if this process is
killed, a watchdog stops Flower's processes (`launch.processes`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from rich.console import Console

from matu_flwr.config.settings import Scalar
from matu_flwr.config.toml import as_toml
from matu_flwr.events import EndEvent
from matu_flwr.files import obstacle, write_text
from matu_flwr.launch import superlink
from matu_flwr.launch.causes import LATE, cause_of, in_words
from matu_flwr.launch.environment import CLUSTER, handed_on, unanswered
from matu_flwr.launch.flower import (
    TRIES,
    FlowerEnvironment,
    LaunchError,
    ask,
    command,
    fail,
    local_superlink,
    tail,
    with_tail,
)
from matu_flwr.launch.processes import interrupted_by_sigterm, watchdog
from matu_flwr.launch.staging import StagingError, Workplace, stage, workplace
from matu_flwr.launch.waiting import Stage, Waiting
from matu_flwr.run.console import ConsoleFollower
from matu_flwr.run.history import HISTORY, follow
from matu_flwr.run.recorder import is_going_on

FLOWER_LOG, SUPERLINK_LOG, LAUNCH, LOCK = "flower.log", "superlink.log", "launch.json", ".launch.lock"
# Seconds without an event after which Flower is asked whether the run is over, before the first event and after it.
# Asking is not cheap: each question starts a Python process while the clients use all cores.
POLL_AT_START = 12.0
POLL_IN_SILENCE = 20.0
# Seconds from the end event until Flower must call the run finished. The pictures are drawn and Ray stops meanwhile.
FINISH_TIMEOUT = 120.0
# Seconds until the app's process must have said its first word: long, because a busy machine is no reason to give up.
START_TIMEOUT = 1.5 * superlink.FIRST_WORD
# Lines of the SuperLink's log that refuse a process which came too late, before the run is given up.
REFUSALS = 12


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
            run_id = str(ask(flower, "run", str(staged), *options, awaited="Flower to take the app")["run-id"])
            watch = _Watch(flower, run_id, history, before)
            for event in follow(history, watch.is_over, replaces=before):
                watch.hear(event)
                follower.show(event)
                heard, end = True, event if event["event"] == "end" else None
            status, details = watch.wait()
            if flower.is_alive():
                # The SuperLink keeps the run's log in memory only, so it must be fetched while the SuperLink lives.
                with log.open("a", encoding="utf-8") as file:
                    file.write(command(flower, "log", run_id, "--show", awaited="the log of the run").stdout)
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
        fail(f"the run stopped without an end event; Flower says {status}: {details}", log, superlink_log)
    if end["status"] != "completed":
        # The ServerApp knows best why it failed.
        raise LaunchError(with_tail(f"the run failed: {end['error']}", log))
    if status != "finished:completed":
        fail(f"the run completed, but then Flower says {status}: {details}", log, superlink_log)


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
            run = ask(self.flower, "list", "--run-id", self.run_id, awaited=self.awaited())["runs"][0]
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
