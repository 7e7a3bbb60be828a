"""Finding and stopping processes of this machine, and handling signals meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

# Seconds that processes get after SIGTERM before SIGKILL follows.
STOP_TIMEOUT = 10.0


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


def stop_groups(groups: set[int]) -> None:
    """Send SIGTERM to process groups, and SIGKILL to what is still running after STOP_TIMEOUT seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)
        deadline = time.monotonic() + STOP_TIMEOUT
        while time.monotonic() < deadline:
            if not any(process.group in groups for process in processes()):
                return
            time.sleep(0.1)


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Make SIGTERM end the block like Ctrl-C. It comes from make, from `docker stop` or from a CI runner."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def deaf_to_signals() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM during this block, so that a clean-up of a few seconds is finished."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
