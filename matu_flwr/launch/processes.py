"""Processes of this machine, found and stopped; and signals held off."""

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

STOP_TIMEOUT = 10.0  # seconds from SIGTERM to SIGKILL


@dataclass(frozen=True)
class Process:
    """A live process; zombies are none."""

    pid: int
    parent: int
    group: int


def processes() -> list[Process]:
    """All live processes of this machine, also where there is no `ps` (slim containers)."""
    if sys.platform != "linux":
        listing = subprocess.run(
            ["ps", "-axo", "pid=,ppid=,pgid=,stat="], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split() for line in listing.splitlines()]
        return [Process(int(p), int(parent), int(g)) for p, parent, g, state in rows if not state.startswith("Z")]
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            # "pid (name, which may have spaces) state parent group ..."
            state, parent, group = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:3]
            if state != "Z":
                found.append(Process(int(path.parent.name), int(parent), int(group)))
    return found


def groups_below(pid: int) -> set[int]:
    """Process groups of a process and all its descendants.

    The SuperLink's SuperExec leads a group of its own, with the simulation and Ray in it.
    """
    everything = processes()
    below = {pid}
    while found := {p.pid for p in everything if p.parent in below} - below:
        below |= found
    return {p.group for p in everything if p.pid in below} - {os.getpgrp()}


def stop_groups(groups: set[int]) -> None:
    """SIGTERM, and SIGKILL for what is left after STOP_TIMEOUT seconds."""
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
    """Let SIGTERM (of make, docker stop, a CI runner) end the launch as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def deaf_to_signals() -> Iterator[None]:
    """Finish a clean-up of seconds even if Ctrl-C is pressed again."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
