"""Processes that a test starts, with their output in a file, and those that it looks for."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from matu_flwr.launch.processes import Process, processes


@contextlib.contextmanager
def process(command: Sequence[str | Path], log: Path, variables: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    with log.open("ab") as file:
        started = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, **variables},
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


def running_with(name: str, value: str | Path) -> list[Process]:
    """Processes in whose environment a variable names this path, or one below it; none where there is no /proc."""
    wanted, found = f"{name}={value}".encode(), []
    for one in processes():
        with contextlib.suppress(OSError):  # ended meanwhile, or somebody else's
            variables = Path(f"/proc/{one.pid}/environ").read_bytes().split(b"\0")
            if any(given == wanted or given.startswith(wanted + b"/") for given in variables):
                found.append(one)
    return found
