"""Running one cell of a comparison in a process of its own.

A run sets signal handlers, which only a main thread may do, while cells that run side by side are started from other
threads. Ctrl-C reaches all of these processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from matu_flwr.files import write_text
from matu_flwr.launch.flower import LaunchError
from matu_flwr.launch.launcher import run_app
from matu_flwr.launch.processes import ends_with

SCREEN, REASON = "screen.txt", "reason.txt"


def run_in_process(folder: Path, arguments: dict[str, Any], *, shown: bool) -> None:
    """Run one cell in a new process, and return when it has completed.

    Parameters
    ----------
    folder : Path
        Output folder of the run, which must exist.
    arguments : dict
        Arguments of `run_app`, with paths as text.
    shown : bool
        Whether the run prints to the screen. If not, its output goes to `screen.txt` in the folder.

    Raises
    ------
    LaunchError
        The run failed; the text gives the reason.
    """
    text = json.dumps(arguments | {"out_dir": str(folder), "parent": os.getpid()})
    command = [sys.executable, "-m", "matu_flwr.compare.one_run", text]
    if shown:
        done = subprocess.run(command, check=False)
    else:
        with (folder / SCREEN).open("w") as screen:
            done = subprocess.run(command, check=False, stdout=screen, stderr=subprocess.STDOUT)
    if done.returncode:
        # The process leaves its reason in a file, because its output may have gone to the screen.
        reason = folder / REASON
        raise LaunchError(
            reason.read_text(encoding="utf-8")
            if reason.exists()
            else f"its process ended with exit status {done.returncode}"
        )


def main() -> None:
    """Call `run_app` with the arguments in the first command-line argument, which is JSON."""
    given = json.loads(sys.argv[1])
    paths = {key: Path(given.pop(key)) for key in ("app_dir", "out_dir", "home")}
    console = Console(highlight=False, markup=False, emoji=False)
    try:
        # Whoever ends the comparison, even with SIGKILL, ends its runs.
        with ends_with(given.pop("parent")):
            run_app(paths["app_dir"], paths["out_dir"], home=paths["home"], console=console, **given)
    except LaunchError as error:
        write_text(paths["out_dir"] / REASON, str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
