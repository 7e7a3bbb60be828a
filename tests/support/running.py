"""A process that a test starts, with its output in a file, and that ends with the test."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


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
