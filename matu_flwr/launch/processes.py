"""Finding and stopping processes of this machine, and handling signals meanwhile.

A run's processes are many, in several sessions, and some outlive their parents. On Linux they are found by a mark: the
value of one variable in their environment, which no other run has. Elsewhere only those are found whose parents, up to
the SuperLink, are still there.

Run as a script, this file is the watchdog of a run; see `watchdog`. It imports nothing of this package.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

# Seconds that processes get after SIGTERM before SIGKILL follows; of the watchdog, and otherwise.
WATCHDOG_TIMEOUT = 2.0
STOP_TIMEOUT = 10.0
# The variable whose value marks the processes of a run.
MARK = "FLWR_HOME"
DONE = b"done\n"


@dataclass(frozen=True)
class Process:
    """A running process: its id, its parent's id, and the id of its process group."""

    pid: int
    parent: int
    group: int


def processes() -> list[Process]:
    """List all running processes of this machine, without zombies."""
    # On Linux /proc is read directly, because slim containers have no `ps`.
    if sys.platform != "linux":
        listing = subprocess.run(
            ["ps", "-axo", "pid=,ppid=,pgid=,stat="], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split() for line in listing.splitlines()]
        return [Process(int(p), int(parent), int(g)) for p, parent, g, state in rows if not state.startswith("Z")]
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        # A process may end between being listed and being read.
        with contextlib.suppress(OSError):
            # The line is "pid (name) state parent group ...". The name may contain spaces and brackets, so the fields
            # are counted from the last bracket.
            state, parent, group = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:3]
            if state != "Z":
                found.append(Process(int(path.parent.name), int(parent), int(group)))
    return found


def groups_below(pid: int) -> set[int]:
    """Return the ids of the process groups of a process and all its descendants, without this process's own group.

    There are several: the SuperLink's SuperExec has its own group, with the simulation and Ray in it.
    """
    everything = processes()
    below = {pid}
    while found := {p.pid for p in everything if p.parent in below} - below:
        below |= found
    return {p.group for p in everything if p.pid in below} - {os.getpgrp()}


def marked(value: str) -> set[int]:
    """Return the ids of the groups that have a process with this value of MARK; none where there is no /proc."""
    wanted, found = f"{MARK}={value}".encode(), set()
    for process in processes():
        # Ended meanwhile, or another user's.
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.add(process.group)
    return found - {os.getpgrp()}


def stop_run(pids: Iterable[int], mark: str, timeout: float | None = None) -> None:
    """Stop all processes of a run: those below `pids`, and those with the mark."""
    noted = list(pids)
    # Again, because a process may have started another one while it was being stopped.
    for _ in range(3):
        groups = marked(mark).union(*(groups_below(pid) for pid in noted))
        if not groups:
            return
        stop_groups(groups, timeout)


def stop_groups(groups: set[int], timeout: float | None = None) -> None:
    """Send SIGTERM to process groups, and SIGKILL to what is still running after `timeout` seconds (STOP_TIMEOUT)."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)
        deadline = time.monotonic() + (STOP_TIMEOUT if timeout is None else timeout)
        while time.monotonic() < deadline:
            if not any(process.group in groups for process in processes()):
                return
            time.sleep(0.1)


@contextlib.contextmanager
def watchdog(mark: str, folders: Iterable[Path]) -> Iterator[Callable[[int], None]]:
    """Have a run's processes stopped, and its folders removed, also if this process is killed during the block.

    A small process of its own waits for the end of a pipe, whose other end only this process has. The kernel closes it,
    however this process dies. Gives a function that takes the id of a process to stop with all that it started.
    """
    with subprocess.Popen(
        # Without the site's packages it starts in a few milliseconds.
        [sys.executable, "-I", "-S", __file__, mark, *map(str, folders)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        # Ctrl-C, and the end of the terminal, are not for it.
        start_new_session=True,
    ) as guard:
        assert guard.stdin is not None

        def tell(text: bytes) -> None:
            # It may have been killed. Then there is no guard, and the run goes on.
            with contextlib.suppress(BrokenPipeError):
                guard.stdin.write(text)  # type: ignore[union-attr]  # a pipe
                guard.stdin.flush()  # type: ignore[union-attr]  # a pipe

        try:
            yield lambda pid: tell(f"{pid}\n".encode())
        finally:
            tell(DONE)


def keep_watch(mark: str, folders: Iterable[str]) -> None:
    """Wait for the end of standard input. If it comes without DONE, stop the run and remove its folders."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pids = []
    for line in sys.stdin.buffer:
        if line == DONE:
            return
        pids.append(int(line))
    stop_run(pids, mark, WATCHDOG_TIMEOUT)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the block like Ctrl-C.

    SIGTERM comes from make, from `docker stop` or from a CI runner; SIGHUP when the terminal is closed. What is ignored
    already, as SIGHUP is under `nohup`, stays ignored.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deaf_to_signals() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM during this block, so that a clean-up of a few seconds is finished."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ends_with(parent: int, interval: float = 1.0) -> Iterator[None]:
    """Send SIGTERM to this process if `parent`, the process that started it, dies before the end of the block."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(interval):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        over.set()


if __name__ == "__main__":
    keep_watch(sys.argv[1], sys.argv[2:])
