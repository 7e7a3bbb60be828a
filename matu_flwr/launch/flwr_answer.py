"""What a `flwr` command with `--format json` said."""

from __future__ import annotations

import json
import subprocess
from typing import Any


def read_answer(done: subprocess.CompletedProcess[str], what: str, error: type[Exception]) -> dict[str, Any]:
    """JSON answer of a command that ended; its output may have other lines before it.

    Raises
    ------
    Exception
        Of the type `error`: the command `what` failed, with what it said.
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
