"""The summary and the pictures of a run. They are made from its history alone, so they can be made again later."""

from __future__ import annotations

from pathlib import Path

from matu_flwr.events import Event
from matu_flwr.files import write_json
from matu_flwr.run.history import HISTORY, read_history
from matu_flwr.run.pictures import draw_curves, draw_task_graph
from matu_flwr.run.summary import accuracies, end_of, summarise

SUMMARY, CURVES, GRAPH = "summary.json", "curves.png", "task_graph.png"


def write_report(out_dir: Path) -> dict[str, Path]:
    """Write the summary, the accuracy curves and the task graph.

    The curves are left out if no accuracy was measured, and the task graph if the method has none.

    Returns
    -------
    dict of str to Path
        The files written, by artefact name.

    Raises
    ------
    HistoryError
        The folder holds no history, or a broken one.
    """
    events = read_history(out_dir / HISTORY)
    written = {"summary": out_dir / SUMMARY}
    write_json(written["summary"], summarise(events))
    if accuracies(events):
        written["curves"] = out_dir / CURVES
        draw_curves(events, written["curves"])
    end = end_of(events)
    if end and end["similarity"]:
        written["task graph"] = out_dir / GRAPH
        draw_task_graph(events, written["task graph"])
    return written


def write_tensorboard(events: list[Event], folder: Path) -> None:
    """Write TensorBoard scalars by round: accuracy and loss of every task, mean accuracy, bytes and seconds."""
    # Imported here because it loads torch, which the summary and the pictures do not need.
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for event in events:
            if event["event"] == "accuracy" or event["event"] == "round":
                for tag, value in scalars(event).items():
                    writer.add_scalar(tag, value, event["round"])


def scalars(event: Event) -> dict[str, float]:
    """Values of an event to plot over the rounds, by TensorBoard tag; empty if it has none."""
    if event["event"] == "accuracy":
        mark = "" if event["source"] == "clients" else "_on_server"
        found: dict[str, float | None] = {f"accuracy{mark}/{task}": value for task, value in event["accuracy"].items()}
        found |= {f"loss{mark}/{task}": value for task, value in event["loss"].items()}
        found[f"accuracy{mark}/mean"] = event["mean_accuracy"]
        # The history stores a loss that was not finite as null, and TensorBoard takes numbers only.
        return {tag: value for tag, value in found.items() if value is not None}
    if event["event"] == "round":
        counts = {"bytes/up": event["bytes_up"], "bytes/down": event["bytes_down"], "clients/failed": event["failed"]}
        seconds = {f"seconds/{activity}": value for activity, value in event["seconds"].items()}
        return counts | {tag: value for tag, value in seconds.items() if value is not None}
    return {}
