"""Flower's processes and commands for one run: its own SuperLink, the `flwr` commands that ask it, and their logs.

Flower's commands are told the address of our SuperLink, as if it were a distant one. With a local one, a command that
comes too late starts a SuperLink of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from matu_flwr.files import write_text
from matu_flwr.launch import superlink
from matu_flwr.launch.causes import cause_of, in_words
from matu_flwr.launch.environment import flower_variables
from matu_flwr.launch.flwr_answer import read_answer
from matu_flwr.launch.processes import deaf_to_signals, stop_run
from matu_flwr.launch.staging import Workplace
from matu_flwr.launch.waiting import Waiting
from matu_flwr.texts import Brief

# Lines at the end of a log that an error shows.
LOG_LINES = 30
# Seconds until the SuperLink must listen, and until a command of Flower must be done. They are long, because a busy
# machine is no reason to give up, and short enough to end.
LISTEN_TIMEOUT = 300.0
COMMAND_TIMEOUT = 600.0
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
    for name in ("flwr", "flower-superexec", "flwr-simulation"):
        if shutil.which(name, path=variables["PATH"]) is None:
            raise LaunchError(f"there is no command {name} beside {sys.executable}: pip install 'flwr[simulation]'")
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
                fail(f"flower-superlink ended with {flower.process.returncode}", flower.log)
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
    fail(f"flower-superlink did not listen on port {flower.port} within {timeout:g} s", flower.log)


def _since(path: Path, begin: int) -> str:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace")


def ask(flower: FlowerEnvironment, *arguments: str, awaited: str) -> dict[str, Any]:
    """Run a `flwr` command and return its JSON answer; LaunchError if it fails."""
    done = command(flower, *arguments, "--format", "json", awaited=awaited)
    return read_answer(done, f"flwr {arguments[0]}", LaunchError)


def command(flower: FlowerEnvironment, *arguments: str, awaited: str) -> subprocess.CompletedProcess[str]:
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


def fail(reason: str, *logs: Path) -> NoReturn:
    """Raise a LaunchError: a sentence if the logs show a known cause, else the reason and the end of the first log."""
    text = "\n".join([reason, *(tail(log, 200) for log in logs)])
    if cause := cause_of(text):
        raise LaunchError(
            f"{in_words(cause, text, sys.executable)} (in Flower's words: {reason[:300]}; its log is {logs[0]})"
        )
    raise LaunchError(with_tail(reason, logs[0]))


def with_tail(reason: str, log: Path) -> str:
    """Return a reason with the last lines of a log."""
    return f"{reason}\nlast lines of {log}:\n{tail(log)}"
