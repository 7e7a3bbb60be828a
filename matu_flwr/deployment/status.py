"""The status of a run, and the nodes and runs of a SuperLink. Nothing is changed by asking."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from matu_flwr.config.settings import SettingsError
from matu_flwr.events import ClientEvent, Event
from matu_flwr.launch.environment import plain
from matu_flwr.launch.flwr_answer import read_answer
from matu_flwr.launch.launcher import LAUNCH
from matu_flwr.run.checkpoint import CheckpointError, checkpoints, read_checkpoint
from matu_flwr.run.history import HISTORY, HistoryError, read_what_is_whole
from matu_flwr.run.recorder import is_going_on
from matu_flwr.run.resume import settings_of
from matu_flwr.run.summary import end_of, float_of, plan_of
from matu_flwr.texts import Brief, printable

Rows = list[tuple[str, str]]


class StatusError(Brief, RuntimeError):
    """The run or the SuperLink that was asked about cannot be found, or does not answer."""


# --- a run's folder ------------------------------------------------------------------------------------------------


def run_view(folder: Path) -> tuple[Rows, Table]:
    """Describe a run: pairs of a label and a text, and a table of its clients.

    Raises
    ------
    HistoryError
        The folder holds no run, or its history cannot be read.
    StatusError
        The history is not that of a run, or something in the folder cannot be looked at.
    """
    events, broken = read_what_is_whole(folder / HISTORY)
    try:
        rows = run_rows(folder, events)
        table = client_table(events)
    except OSError as error:
        raise StatusError(f"{folder} cannot be looked at: {error}") from error
    # The history of another program, or one that somebody wrote into.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StatusError(
            f"{folder / HISTORY} has events that no run writes ({type(error).__name__}: {error}): expected the output "
            "folder of a run"
        ) from error
    return rows + ([("history", f"BROKEN: {broken}; what follows is not shown")] if broken else []), table


def run_rows(folder: Path, events: Sequence[Event]) -> Rows:
    """Describe a run as pairs of a label and a text: state, how to resume it, method, rounds and checkpoints."""
    # Only the last event counts: an end event before it belongs to an attempt that was resumed.
    plan, end = plan_of(events), end_of(events[-1:])
    rows: Rows = [("run", str(folder.absolute()))]
    skipped: list[str] = []
    if is_going_on(folder):
        rows.append(("state", "going on"))
    elif end is not None and end["status"] == "completed":
        rows.append(("state", f"completed in {end['seconds']:.0f} s"))
    else:
        advice, skipped = advice_on(folder)
        if end is None:
            rows.append(("state", f"cut off; {advice}"))
        else:
            rows += [("state", f"failed after {end['seconds']:.0f} s: {end['error']}"), ("resume", advice)]
    if plan is not None:
        rows.append(("method", f"{plan['strategy']} on suite {plan['suite']}, seed {plan['seed']}"))
    done = max((event["round"] for event in events if event["event"] == "round"), default=0)
    quiet = time.time() - (folder / HISTORY).stat().st_mtime
    rows.append(("rounds", f"{done} of {plan['rounds'] if plan else '?'} done, last event {quiet:.0f} s ago"))
    rows += [("resumed", f"after round {e['round']}, {e['time']}") for e in events if e["event"] == "resume"]
    return rows + checkpoint_rows(folder, skipped)


def advice_on(folder: Path) -> tuple[str, list[str]]:
    """Say with which command a run goes on, or why it cannot; and what is wrong with checkpoints that are skipped.

    All that a resumed run does before it starts is done here too, reading the tensors included: so what is advised
    works.
    """
    skipped: list[str] = []
    path = str(folder.absolute())
    try:
        settings_of({"resume-from": path}, skipped.append)
    except (CheckpointError, HistoryError, SettingsError) as error:
        return f"it cannot be resumed: {' '.join(str(error).split())}", skipped
    # `matu run` started it if this file is there; otherwise it ran on real nodes.
    simulated = (folder / LAUNCH).is_file()
    if not simulated and "'" in path and set(path) & set('"\\'):
        return "it can be resumed, but Flower cannot take its path, which has quotes: rename the folder", skipped
    quote = '"' if "'" in path else "'"
    command = (
        f"matu run --resume {shlex.quote(path)}"
        if simulated
        else f"flwr run . SUPERLINK --run-config {shlex.quote(f'resume-from={quote}{path}{quote}')}"
    )
    where = "" if Path("pyproject.toml").is_file() else ", in the folder of the app"
    return f"go on with it{where}: {command}", skipped


def checkpoint_rows(folder: Path, skipped: Sequence[str] = ()) -> Rows:
    """List the checkpoints, newest first, with their round, time and size; `skipped` are lines about broken ones."""
    rows: Rows = []
    for path in checkpoints(folder):
        try:
            # Unless the run can be resumed, the tensors are not read: they may be gigabytes.
            found = read_checkpoint(path)
            size = path.with_suffix(".safetensors").stat().st_size
            if told := [line for line in skipped if str(path.with_suffix("")) in line]:
                raise CheckpointError(told[0].removesuffix("; trying the checkpoint before it"))
        except (CheckpointError, OSError) as error:
            rows.append(("checkpoint", f"BROKEN: {error}"))
        else:
            rows.append(("checkpoint", f"round {found.round} of {found.rounds}, {found.time}, {size / 1e6:.1f} MB"))
    return rows or [("checkpoint", "none")]


def client_table(events: Sequence[Event]) -> Table:
    """Build a table of the clients: tasks, how the last message ended, and how many rounds failed."""
    plan = plan_of(events)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("client", "tasks", "last message", "rounds failed"):
        table.add_column(name)
    for client in plan["clients"] if plan else []:
        own = [event for event in events if event["event"] == "client" and event["client"] == client["client"]]
        failed = sum(event["status"] != "ok" for event in own)
        table.add_row(client["client"], ", ".join(client["tasks"]), _last_message(own), str(failed))
    return table


def _last_message(own: Sequence[ClientEvent]) -> str:
    if not own:
        return "–"
    last = own[-1]
    if last["status"] == "ok":
        return f"ok in round {last['round']}, {sum(map(float_of, last['seconds'].values())):.1f} s of work"
    return printable(f"{last['status']} in round {last['round']}: {last['error']}")


# --- a SuperLink ---------------------------------------------------------------------------------------------------


def superlink_tables(name: str) -> list[Table]:
    """Build the tables of nodes and runs of a SuperLink, as the `flwr` command reports them.

    Raises
    ------
    StatusError
        Flower's configuration has no SuperLink of this name with an address, or it does not answer.
    """
    check_remote(name)
    nodes = ask_flower("supernode", "list", name)["nodes"]
    runs = ask_flower("list", name)["runs"]
    wanted = (
        ("nodes", nodes, ("node-id", "owner-name", "status", "status-changed-at")),
        ("runs", runs, ("run-id", "status", "status-details", "elapsed")),
    )
    return [_table(f"{title} of {name}", rows, columns) for title, rows, columns in wanted]


def check_remote(name: str) -> None:
    """Check that Flower's configuration has a remote SuperLink of this name.

    Raises
    ------
    StatusError
        The name is unknown, or it belongs to a local SuperLink, which `flwr` would start in order to ask it.
    """
    try:
        home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    except RuntimeError:
        raise StatusError("there is no home folder with Flower's configuration: set HOME or FLWR_HOME") from None
    path = home / "config.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # ValueError: not TOML, or not in UTF-8.
    except (OSError, ValueError) as error:
        raise StatusError(f"{path}, Flower's configuration, cannot be read: {error}") from error
    known = content.get("superlink", {})
    known = known if isinstance(known, dict) else {}
    addresses = {key: str(value.get("address", "")) for key, value in known.items() if isinstance(value, dict)}
    # Flower gives local SuperLinks addresses such as ":local:".
    remote = sorted(key for key, address in addresses.items() if address and not address.startswith(":"))
    if name not in remote:
        raise StatusError(
            f"{path} has no SuperLink {name!r} with an address (a local one cannot be asked without starting it); "
            f"those with an address are {remote}"
        )


def ask_flower(*arguments: str) -> dict[str, Any]:
    """Run a `flwr` command and return its JSON answer; StatusError if it fails or takes more than 60 s."""
    variables = plain(os.environ) | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    command = [str(Path(sys.executable).parent / "flwr"), *arguments, "--format", "json"]
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise StatusError(f"`flwr {' '.join(arguments)}` did not answer within 60 s") from None
    return read_answer(done, f"flwr {' '.join(arguments)}", StatusError)


def _table(title: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(row.get(column, "–")) for column in columns))
    return table
