"""Reading what a `flwr` command with `--format json` printed."""

from __future__ import annotations

import json
import subprocess
from typing import Any


def read_answer(done: subprocess.CompletedProcess[str], what: str, error: type[Exception]) -> dict[str, Any]:
    """Read the JSON answer from a finished command's output. Other lines may stand before it.

    Parameters
    ----------
    done : CompletedProcess
        The finished command, with its output as text.
    what : str
        The command as the error text names it.
    error : type
        The type of the exception to raise.

    Raises
    ------
    Exception
        The command failed, or its answer is not `"success": true`. The exception is of type `error` and has the
        command's own words.
    """
    start = done.stdout.find("{")
    try:
        answer: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
    except json.JSONDecodeError:
        answer = {}
    if done.returncode != 0 or not answer.get("success"):
        said = answer.get("error-message") or (done.stdout + done.stderr).strip()
        raise error(f"`{what}` failed with exit status {done.returncode}: {said}")
    return answer
