"""What a run prints on the screen and into the log, made from the events of its history.

`Narrator` turns events into lines and tables. `render_lines` turns those into plain text for a log or a pipe.
`ConsoleFollower` prints them while the run goes on, with a progress display if there is a terminal.
"""

from __future__ import annotations

import json
import re
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from matu_flwr.events import AccuracyEvent, EndEvent, Event, PlanEvent, Privacy, RoundEvent
from matu_flwr.run.summary import accuracies, end_of, float_of, last_privacy, mean, plan_of
from matu_flwr.texts import printable

# Width of tables, in characters, if there is no terminal whose width could be used.
WIDTH = 118
# Characters of a line that tells of one client or task.
LINE = 1200
# Characters of a fingerprint that are shown.
SHORT = 12


def megabytes(count: float) -> str:
    """Format a number of bytes in kB, MB or GB (powers of 1000)."""
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    if count < 1e9:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e9:.2f} GB"


def accuracy(value: float | None) -> str:
    """Format an accuracy in [0, 1] with three digits (.875); a dash means that it was not measured."""
    if value is None:
        return "–"
    # Only a perfect accuracy is shown as 1.00: .9996 must not be rounded up to it.
    return f"{min(value, 0.999):.3f}".removeprefix("0") if value < 1 else "1.00"


# --- before the first round ----------------------------------------------------------------------------------------


def plan_view(plan: PlanEvent) -> RenderableType:
    """Show what was decided before the first round: backbone, tasks, who holds them, expected bytes and memory."""
    backbone, predicted = plan["backbone"], plan["predicted"]
    up = list(predicted["bytes_up_per_client"].values())
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    preset = f", preset {plan['preset']}" if plan["preset"] else ""
    facts.add_row("strategy", f"{plan['strategy']}{preset}, {plan['rounds']} rounds, seed {plan['seed']}")
    facts.add_row("suite", f"{plan['suite']}: {len(plan['tasks'])} tasks, {len(plan['clients'])} clients")
    facts.add_row(
        "backbone",
        f"{backbone['name']} at {backbone['image_size']} px, {weights_view(backbone['weights'])}, "
        f"{backbone['heads']} heads, θ_p {backbone['fingerprint'][:SHORT]}…",
    )
    share = "" if backbone["d"] == backbone["total"] else f" of {backbone['total']:,}"
    facts.add_row(
        "trained", f"{backbone['trainable']}: d = {backbone['d']:,}{share} parameters in {backbone['tensors']} tensors"
    )
    facts.add_row("layout", layout_view(backbone["parts"]))
    if max(up):
        least, most = megabytes(min(up)), megabytes(max(up))
        span = most if least == most else f"{least} to {most}"
        facts.add_row("predicted", f"{span} up per client and round, as much down")
    else:
        facts.add_row("predicted", "clients and server exchange nothing but test results")
    facts.add_row(
        "memory",
        f"server about {megabytes(predicted['server_memory_bytes'])}, the tensors of one client about "
        f"{megabytes(predicted['client_memory_bytes'])}",
    )
    # Histories of earlier releases do not have this field.
    if changed := plan.get("changed"):
        facts.add_row("settings", settings_view(changed))
    for note in plan["notes"]:
        facts.add_row("note", note)
    tasks = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name, justify in (("task", "left"), ("group", "left"), ("classes", "right"), ("train", "right")):
        tasks.add_column(name, justify=justify)  # type: ignore[arg-type]  # rich wants a literal, this is a str
    tasks.add_column("test", justify="right")
    tasks.add_column("holders (training images)")
    held = {client["client"]: client["tasks"] for client in plan["clients"]}
    for task in plan["tasks"]:
        holders = ", ".join(f"{name} ({held[name][task['name']]})" for name in task["holders"])
        numbers = [str(number) for number in (task["classes"], task["train"], task["test"])]
        tasks.add_row(task["name"], task["group"] or "–", *numbers, holders)
    return Group(facts, Text(), tasks)


def settings_view(changed: dict[str, Any]) -> str:
    """List the settings that differ from their defaults, written as `-c` takes them; text is quoted only if needed."""
    return ", ".join(f"{key} = {_toml(value)}" for key, value in sorted(changed.items()))


def _toml(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str) and value and not re.search(r"[\s,]", value) else text


def weights_view(weights: str) -> str:
    """Say in words where the pre-trained weights θ_p come from."""
    return {"pretrained": "pre-trained", "random": "random weights"}.get(weights, f"weights {weights}")


def layout_view(parts: dict[str, int]) -> str:
    """List the parts of a task vector with their lengths; equal neighbours, such as blocks, become one entry."""
    groups: list[tuple[list[str], int]] = []
    for name, length in parts.items():
        if groups and groups[-1][1] == length and "." in name:
            groups[-1][0].append(name)
        else:
            groups.append(([name], length))
    return ", ".join(
        f"{names[0]} {length:,}"
        if len(names) == 1
        else f"{names[0]}–{names[-1].rpartition('.')[2]} {len(names)} × {length:,}"
        for names, length in groups
    )


# --- one line per round --------------------------------------------------------------------------------------------


def round_line(rounds: int, number: int, tested: AccuracyEvent | None, finished: RoundEvent | None) -> str:
    """Describe one round: the accuracy after it, and what it cost. Round 0 is the state before any training."""
    text = f"round {number:>{len(str(rounds))}}/{rounds}"
    if tested:
        worst = f"worst {accuracy(tested['worst_accuracy'])} {tested['worst_task']}"
        text += f"  accuracy {accuracy(tested['mean_accuracy'])}  {worst:<32}"
    if finished:
        text += f"  up {megabytes(finished['bytes_up']):>8}  down {megabytes(finished['bytes_down']):>8}"
        text += f"  {float_of(finished['seconds']['total']):5.1f} s"
        if finished["failed"]:
            text += f"  {finished['failed']} of {finished['clients']} clients failed"
        if finished["tasks_without_holder"]:
            text += f"  unchanged: {', '.join(finished['tasks_without_holder'])}"
        if finished.get("rolled_back"):
            text += f"  rolled back: {', '.join(sorted(finished['rolled_back']))}"
        if few := finished.get("too_few"):
            text += f"  too few replies: {', '.join(f'{task} ({count})' for task, count in few.items())}"
        if finished.get("clipped"):
            text += f"  clipped: {', '.join(sorted(set().union(*finished['clipped'].values())))}"
        if finished.get("privacy"):
            text += f"  ε {most_spent(finished['privacy']):.3g}"
    return text.rstrip()


def most_spent(privacy: Privacy) -> float:
    """Return the largest ε (privacy loss so far) over all clients and tasks; 0 if there are none."""
    return max((float_of(value) for tasks in privacy["epsilon"].values() for value in tasks.values()), default=0.0)


def privacy_view(privacy: Privacy) -> list[str]:
    """List ε (privacy loss so far) by client and task, under a line that says what δ is and whom ε protects."""
    lines = [f"differential privacy at δ = {privacy['delta']:g}: ε for {privacy['relation']}"]
    for client, tasks in privacy["epsilon"].items():
        spent = ", ".join(f"{task} {float_of(value):.3g}" for task, value in tasks.items())
        lines.append(f"  {client:<16}{spent}  (all its tasks {float_of(privacy['epsilon_all_tasks'][client]):.3g})")
    return lines


class Narrator:
    """Turns events into lines and tables.

    There is one line per round. It comes one round late: clients test a round's outcome when they receive it.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.rounds = 0
        self._finished: dict[int, RoundEvent] = {}

    def tell(self, event: Event) -> list[str | RenderableType]:
        """Take the next event. Returns the lines and tables to show now."""
        self.events.append(event)
        if event["event"] == "plan":
            self.rounds = event["rounds"]
            return [plan_view(event), ""]
        if event["event"] == "round":
            told: list[str | RenderableType] = [
                "  " + printable(f"task {task} keeps what it had before round {event['round']}: {reason}", LINE)
                for task, reason in event.get("rolled_back", {}).items()
            ]
            # Nobody tests this round, so there is no accuracy to wait for.
            if not event.get("tested", True):
                return [*told, round_line(self.rounds, event["round"], None, event)]
            self._finished[event["round"]] = event
            return told
        elif event["event"] == "accuracy" and event["source"] == "clients":
            return [round_line(self.rounds, event["round"], event, self._finished.pop(event["round"], None))]
        elif event["event"] == "client" and event["status"] != "ok":
            said = f"{event['client']} {event['status']} in round {event['round']}: {event['error']}"
            return ["  " + printable(said, LINE)]
        elif event["event"] == "resume":
            return [f"resumed after round {event['round']}, {event['time']}"]
        elif event["event"] == "end":
            # Rounds whose accuracy never came, because the run stopped early.
            untold = [round_line(self.rounds, number, None, done) for number, done in sorted(self._finished.items())]
            return [*untold, "", *end_view(self.events)]
        return []


# --- at the end ----------------------------------------------------------------------------------------------------


def task_table(events: list[Event]) -> Table:
    """Build the table of tasks: accuracy before and after training, number of clients that hold it, related tasks."""
    plan, end = plan_of(events), end_of(events)
    assert plan is not None, "a history with an accuracy has a plan before it"
    by_round, on_server = accuracies(events), accuracies(events, "server")
    last = max(by_round, default=0)
    server = on_server[max(on_server)] if on_server else {}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("task")
    for name in ("round 0", "final", *(["on server"] if server else []), "holders"):
        table.add_column(name, justify="right")
    table.add_column("related tasks (z)")
    strength = _z_by_pair(end)
    for task in plan["tasks"]:
        name = task["name"]
        related = ", ".join(
            f"{other} ({strength[name, other]:.0f})" if (name, other) in strength else other
            for other in (end["related"] if end else {}).get(name, [])
        )
        cells = [accuracy(by_round.get(0, {}).get(name)), accuracy(by_round.get(last, {}).get(name))]
        if server:
            cells.append(accuracy(server.get(name)))
        table.add_row(name, *cells, str(len(task["holders"])), related or "–")
    ends = [mean(by_round.get(0, {})), mean(by_round.get(last, {})), *([mean(server)] if server else [])]
    table.add_row("mean", *map(accuracy, ends), "", "", style="bold")
    return table


def end_view(events: list[Event]) -> list[str | RenderableType]:
    """Show the results when the run is over: the table of tasks, the privacy spent, and where the files are."""
    plan, end = plan_of(events), end_of(events)
    shown: list[str | RenderableType] = []
    if plan is not None and accuracies(events):
        shown += [task_table(events), ""]
    spent = last_privacy(events)
    if spent:
        shown += [*privacy_view(spent), ""]
    if end is None:
        return [*shown, "the run has not ended: its history has no end event"]
    if end["status"] == "completed":
        memory = megabytes(end["peak_memory_bytes"])
        shown.append(f"completed in {end['seconds']:.0f} s, peak memory of the server process {memory}")
    else:
        shown.append(f"FAILED after {end['seconds']:.0f} s: {end['error']}")
        shown.append("the work so far is kept:")
    shown += [f"  {name:<16}{path}" for name, path in end["artefacts"].items()]
    return shown


def _z_by_pair(end: EndEvent | None) -> dict[tuple[str, str], float]:
    if not end or not end["similarity"]:
        return {}
    order, z = end["similarity"]["order"], end["similarity"]["z"]
    return {(a, b): z[i][j] for i, a in enumerate(order) for j, b in enumerate(order)}


# --- where it is shown ---------------------------------------------------------------------------------------------


def render_lines(shown: list[str | RenderableType]) -> list[str]:
    """Turn lines and tables into plain lines of text, without colours."""
    lines: list[str] = []
    for item in shown:
        if isinstance(item, str):
            lines += item.splitlines() or [""]
        else:
            console = Console(
                width=WIDTH, no_color=True, force_terminal=False, highlight=False, markup=False, emoji=False
            )
            with console.capture() as capture:
                console.print(item)
            lines += [line.rstrip() for line in capture.get().splitlines()]
    return lines


class ConsoleFollower:
    """Shows events as they come: with a live progress display in a terminal, as plain lines otherwise.

    Use it as a context manager, so that the display is removed even after an exception.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False, emoji=False)
        self._narrator = Narrator()
        self._progress: Progress | None = None
        self._rounds: Any = None
        self._clients: Any = None

    def __enter__(self) -> ConsoleFollower:
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self._progress.start()
            self._rounds = self._progress.add_task("starting Flower", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, event: Event) -> None:
        """Show the next event."""
        shown = self._narrator.tell(event)
        if self._progress is None:
            for line in render_lines(shown):
                self.console.print(line, markup=False, soft_wrap=True)
            return
        self._advance(event, self._progress)
        if event["event"] == "end":
            self._progress.stop()
        for item in shown:
            self.console.print(item, markup=False) if isinstance(item, str) else self.console.print(item)

    def _advance(self, event: Event, progress: Progress) -> None:
        if event["event"] == "plan":
            progress.update(self._rounds, description="rounds ", total=event["rounds"], completed=0)
            self._clients = progress.add_task("clients", total=len(event["clients"]), completed=0)
        elif self._clients is None:
            # Nodes can be refused before there is a plan, and then there is no progress bar of clients yet.
            return
        elif event["event"] == "client":
            closing = " (closing test)" if event["phase"] == "evaluate" else ""
            progress.update(self._clients, advance=1, description=f"clients{closing}")
        elif event["event"] == "round":
            progress.update(self._rounds, completed=event["round"])
            progress.update(self._clients, completed=0)
