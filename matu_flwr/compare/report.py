"""A comparison as Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import io
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matu_flwr.compare.results import CellResult, Row, as_dict
from matu_flwr.files import write_json, write_picture, write_text
from matu_flwr.run.pictures import figure_of, spaced

NAMES = {"md": "comparison.md", "csv": "comparison.csv", "png": "comparison.png", "json": "comparison.json"}


LEGEND = (
    "Mean accuracy: test accuracy of the model that a client with the task receives after the last round, mean over "
    "tasks; ± is the standard deviation over seeds (a seed also decides the partition). To the first: difference to "
    "{first} with the same seed, mean ± standard deviation. p: Wilcoxon's signed-rank test over tasks, not corrected "
    "for the number of methods. Normalised: accuracy divided by that of central-individual, task by task. MB: measured "
    "bytes per client and round. Bits: bits of vectors and masks that a client sends, per parameter, task and round. "
    "Graph: share of the tasks, among those with a known related task, whose most similar task is related."
)


def write_comparison(
    rows: Sequence[Row], results: Sequence[CellResult], settings: Mapping[str, Any], command: str, out_dir: Path
) -> dict[str, Path]:
    """Write the comparison as Markdown, CSV, PNG and JSON. Returns the files by kind: "md", "csv", "png", "json"."""
    facts = {
        "suite": settings["suite"],
        "command": command,
        "settings": dict(settings),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("matu-flwr", "flwr", "torch", "timm")},
        "date": datetime.now(UTC).date().isoformat(),
    }
    files = {kind: out_dir / name for kind, name in NAMES.items()}
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(files["json"], facts | as_dict(rows, results))
    write_text(files["csv"], csv_of(rows))
    write_text(files["md"], markdown(rows, results, facts))
    draw_pareto(rows, str(settings["suite"]), files["png"])
    return files


def markdown(rows: Sequence[Row], results: Sequence[CellResult], facts: Mapping[str, Any]) -> str:
    """Format the comparison as Markdown: a table of methods with a legend, a table of tasks, failures and facts."""
    seeds = sorted({result.seed for result in results})
    head = [
        "method",
        "mean accuracy",
        "to the first",
        "p",
        "normalised",
        "worst task",
        "MB up",
        "MB down",
        "bits",
        "graph",
        "seconds",
    ]
    lines = [
        f"# {_plain(str(facts['suite']))}: {len(rows)} methods, seeds {', '.join(map(str, seeds))}",
        "",
        _line(head),
        _line(["---", *["---:"] * 4, "---", *["---:"] * 5]),
    ]
    for row in rows:
        if row.mean is None:
            lines.append(_line([row.name, "failed", *[""] * 9]))
            continue
        spread = f" ± {_share(row.spread)}" if row.spread is not None else ""
        missing = f" ({row.failed} of {row.seeds + row.failed} seeds failed)" if row.failed else ""
        lines.append(
            _line(
                [
                    row.name,
                    f"{_share(row.mean)}{spread}{missing}",
                    _difference(row),
                    "" if row.p_value is None else f"{row.p_value:.2g}",
                    _share(row.normalised),
                    f"{row.worst_task} {_share(row.worst)}",
                    f"{row.mb_up:.2f}",
                    f"{row.mb_down:.2f}",
                    f"{row.bits:.1f}",
                    "" if row.nearest is None else f"{row.nearest:.0%}",
                    f"{row.seconds:.0f}",
                ]
            )
        )
    lines += [
        "",
        LEGEND.format(first=results[0].name),
        "",
    ]
    if tasks := sorted({task for row in rows for task in row.tasks}):
        shown = [row for row in rows if row.tasks]
        lines += [_line(["task", *(row.name for row in shown)]), _line(["---", *["---:"] * len(shown)])]
        lines += [_line([task, *(_share(row.tasks.get(task)) for row in shown)]) for task in tasks]
        lines.append("")
    for result in results:
        if result.error:
            lines += [f"{result.name}, seed {result.seed}, failed: {_plain(result.error[:400])}", ""]
    used = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    lines += [f"`{facts['command']}`", "", f"{facts['machine']}; {used}; {facts['date']}.", ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """Escape what Markdown takes for markup, a cell's end or HTML: names of tasks and errors are text."""
    return re.sub(r"([\\`*\[\]<>|$])", r"\\\1", " ".join(text.split()))


def _difference(row: Row) -> str:
    if row.difference is None:
        return ""
    spread = "" if row.difference_spread is None else f" ± {_share(row.difference_spread)}"
    return f"{row.difference:+.3f}".replace("0.", ".") + spread


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.3f}"


def csv_of(rows: Sequence[Row]) -> str:
    """Format the comparison as CSV: one line per method; its accuracy on each task is a column."""
    tasks = sorted({task for row in rows for task in row.tasks})
    columns = [item.name for item in fields(Row) if item.name != "tasks"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *(f"accuracy/{task}" for task in tasks)])
    for row in rows:
        values = [getattr(row, column) for column in columns]
        numbers = ["" if value is None else value for value in values]
        writer.writerow([*numbers, *(row.tasks.get(task, "") for task in tasks)])
    return text.getvalue()


def draw_pareto(rows: Sequence[Row], suite: str, path: Path) -> None:
    """Draw accuracy against the megabytes that a client sends per round, as a PNG file.

    A line joins the methods for which no other method has both a higher accuracy and less to send (Pareto front).
    """
    shown = [row for row in rows if row.mean is not None and row.mb_up is not None]
    figure, axes = figure_of(7.2, max(5.4, 0.25 * len(shown)))
    axes.grid(color="0.92")
    axes.set_xlabel("MB up per client and round")
    axes.set_ylabel("mean test accuracy")
    axes.set_title(
        f"{suite}: accuracy and communication (bars: standard deviation over seeds)", loc="left", fontsize=11
    )
    if shown:
        _points(axes, shown)
    # "tight" makes the picture as wide as the longest name beside the axes.
    write_picture(path, figure, bbox_inches="tight")


def _points(axes: Any, shown: Sequence[Row]) -> None:
    from matplotlib import colormaps

    points = {row.name: (float(row.mb_up or 0), float(row.mean or 0)) for row in shown}
    # tab20 alternates dark and light shades. All the dark ones come first, because they are easier to tell apart.
    colours = {row.name: colormaps["tab20"]((2 * i) % 20 + (2 * i) // 20) for i, row in enumerate(shown)}
    for row in shown:
        axes.errorbar(*points[row.name], yerr=row.spread or 0, fmt="o", color=colours[row.name], capsize=3)
    # Go from the fewest bytes upwards: a method is on the front if it is more accurate than all before it.
    best = -1.0
    front = []
    for x, y in sorted(points.values(), key=lambda point: (point[0], -point[1])):
        if y > best:
            front.append((x, y))
            best = y
    axes.plot(*zip(*front, strict=True), color="0.6", linewidth=1, zorder=0, drawstyle="steps-post")
    low, high = min(y for _, y in points.values()), max(y for _, y in points.values())
    margin = max(0.08 * (high - low), 0.01)
    low, high = low - margin, high + margin
    axes.set_ylim(low, high)
    axes.set_xlim(left=-0.03 * max(x for x, _ in points.values()) - 0.01)
    places = spaced(
        {name: (y - low) / (high - low) for name, (_, y) in points.items()}, gap=min(0.045, 1.1 / len(points))
    )
    for name, at in places.items():
        axes.annotate(
            f"{name} {points[name][1]:.3f}".replace(" 0.", " ."),
            points[name],
            xytext=(1.06, at),
            textcoords="axes fraction",
            color="0.15",
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.8, "relpos": (0, 0.5)},
        )
