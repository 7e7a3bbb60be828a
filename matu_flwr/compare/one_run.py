"""One cell in a process of its own: its local SuperLink and signals want a main thread, and Ctrl-C reaches all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from matu_flwr.files import write_text
from matu_flwr.launch.launcher import LaunchError, run_app

SCREEN, REASON = "screen.txt", "reason.txt"


def run_in_process(folder: Path, arguments: dict[str, Any], *, shown: bool) -> None:
    """Run one cell.

    Parameters
    ----------
    folder : Path
        Its output folder, which exists.
    arguments : dict
        Of `run_app`, paths as text.
    shown : bool
        Show the run's screen; otherwise it goes to a file in the folder.

    Raises
    ------
    LaunchError
        The run failed, with its reason.
    """
    text = json.dumps(arguments | {"out_dir": str(folder)})
    command = [sys.executable, "-m", "matu_flwr.compare.one_run", text]
    if shown:
        done = subprocess.run(command, check=False)
    else:
        with (folder / SCREEN).open("w") as screen:
            done = subprocess.run(command, check=False, stdout=screen, stderr=subprocess.STDOUT)
    if done.returncode:
        reason = folder / REASON
        raise LaunchError(
            reason.read_text(encoding="utf-8") if reason.exists() else f"its process ended with {done.returncode}"
        )


def main() -> None:
    """Run what the first argument says."""
    given = json.loads(sys.argv[1])
    paths = {key: Path(given.pop(key)) for key in ("app_dir", "out_dir", "home")}
    console = Console(highlight=False, markup=False, emoji=False)
    try:
        run_app(paths["app_dir"], paths["out_dir"], home=paths["home"], console=console, **given)
    except LaunchError as error:
        write_text(paths["out_dir"] / REASON, str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
