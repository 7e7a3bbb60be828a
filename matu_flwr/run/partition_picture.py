"""`partition.json` and `partition.png`: how many images of each task and label each client holds.

The picture is drawn from the numbers in the file alone. This module does not import Flower, because
`matu data partition` uses it when no federation exists yet.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matu_flwr.files import write_json, write_picture
from matu_flwr.run.pictures import blank_figure, group_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Polygon = list[tuple[float, float]]

PARTITION, PARTITION_PICTURE = "partition.json", "partition.png"

# Largest number of clients for which every cell has a histogram. With more, the cells are too small.
MOST_HISTOGRAMS = 40
# Largest number of clients that are named. With more, neither names nor numbers can be read.
MOST_NAMES = 200

# Sizes in inches.
CELL_WIDTH = 0.62
HISTOGRAM_HEIGHT, ROW_HEIGHT = 0.42, 0.13
TALLEST = MOST_NAMES * ROW_HEIGHT
TOTALS_WIDTH, TOTALS_HEIGHT = 1.7, 0.95
TITLE_LINE = 0.18
# Average width of a letter in the names and in the title.
LETTER = 0.068

# Sizes as shares of a cell.
# Margin at every side, so that neighbouring cells stay apart.
EDGE = 0.06
# Height of the line with the number, above the bars.
NUMBER = 0.36
# Smallest height of a bar, so that even a single image can be seen.
LEAST = 0.03

# Bars at least this wide, in points, get a gap between them. A gap would swallow narrower ones.
POINTS_WITH_GAP = 3


def write_partition(found: Mapping[str, Any], out_dir: Path) -> dict[str, str]:
    """Write `partition.json` and `partition.png`, each replaced in one step; returns their paths by artefact name."""
    out_dir.mkdir(parents=True, exist_ok=True)
    text, picture = out_dir / PARTITION, out_dir / PARTITION_PICTURE
    write_json(text, found)
    draw_partition(found, picture)
    return {"partition": str(text), "partition image": str(picture)}


def draw_partition(manifest: Mapping[str, Any], path: Path) -> None:
    """Draw a table of clients (rows) by tasks (columns).

    A cell shows how many training images of the task the client holds, and below the number one bar per label. All
    bars of a column have the same scale. If the labels are not known, a single bar shows the number, and all cells
    have the same scale. Totals are at the right (clients) and at the bottom (tasks). Above 40 clients a heat map of
    the numbers takes the place of the bars, and above 200 clients the numbers are left out too.

    Parameters
    ----------
    manifest : mapping
        The partition, as `matu_flwr.tasks.partition.manifest` builds it.
    path : Path
        The PNG file; it is replaced in one step.
    """
    tasks, clients = list(manifest["tasks"]), manifest["clients"]
    counts = np.zeros((len(clients), len(tasks)), dtype=np.int64)  # training images
    for row, client in enumerate(clients):
        for task, held in client["tasks"].items():
            counts[row, tasks.index(task)] = held["train"]
    colours = group_colours(tasks, {task: entry["group"] for task, entry in manifest["tasks"].items()})

    row_height = HISTOGRAM_HEIGHT if len(clients) <= MOST_HISTOGRAMS else min(ROW_HEIGHT, TALLEST / len(clients))
    named = len(clients) <= MOST_NAMES
    left = LETTER * max(len(client["client"]) for client in clients) + 0.2
    names = LETTER * max(map(len, tasks)) * math.sin(math.radians(40)) + 0.2
    width = left + CELL_WIDTH * len(tasks) + TOTALS_WIDTH
    title = [line for text in _title(manifest, counts) for line in textwrap.wrap(text, int(width / LETTER))]
    top = TITLE_LINE * len(title) + names
    height = top + row_height * len(clients) + TOTALS_HEIGHT

    figure = blank_figure(width, height)
    # The grid and its totals share one pair of axes. A unit is one cell, and rows are counted downwards.
    axes = figure.add_axes((left / width, 0, 1 - left / width, 1 - top / height))
    axes.set_xlim(0, len(tasks) + TOTALS_WIDTH / CELL_WIDTH)
    axes.set_ylim(len(clients) + TOTALS_HEIGHT / row_height, 0)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)

    if len(clients) <= MOST_HISTOGRAMS:
        _histograms(axes, manifest, tasks, counts, colours)
    else:
        _heat_map(axes, counts, numbers=named)
    _names(axes, tasks, [client["client"] for client in clients] if named else [])
    _client_totals(axes, counts, numbers=named, small=len(clients) > MOST_HISTOGRAMS)
    _task_totals(axes, manifest, counts, colours, 1 / row_height)
    figure.text(0.12 / width, 1 - 0.02 / height, "\n".join(title), va="top", fontsize=9.5, linespacing=1.3)
    write_picture(path, figure, bbox_inches="tight", pad_inches=0.12)


def _title(manifest: Mapping[str, Any], counts: NDArray[np.int64]) -> list[str]:
    """Say in the title how the data were dealt, and how to read the picture."""
    part, known = manifest["partition"], manifest["fingerprint"] is not None
    num_clients, num_tasks = counts.shape
    each = {len(client["tasks"]) for client in manifest["clients"]}
    range_ = f"{min(each)}" if len(each) == 1 else f"{min(each)} to {max(each)}"
    dealt = {
        "even": "evenly",
        "dirichlet": f"by Dirichlet({part['task-alpha']:g}) popularity",
        "ring": "as neighbours in a ring",
    }[part["deal"]]
    split = {
        "dirichlet": f"by Dirichlet({part['alpha']:g}) over labels",
        "iid": "evenly, regardless of their labels",
    }[part["split"]]
    several = "" if range_ == "1" else "s"
    size = f"{num_tasks} tasks, {num_clients} clients, {range_} task{several} each"
    lines = [f"{manifest['suite']}, seed {manifest['seed']}: {size}"]
    if known:
        lines += [f"Tasks dealt {dealt}, images split {split}", f"Fingerprint {manifest['fingerprint'][:16]}"]
    else:
        lines += ["Only the numbers of images are known, not their labels"]
    if num_clients > MOST_HISTOGRAMS:
        return [*lines, "Number and shade: training images" if num_clients <= MOST_NAMES else "Shade: training images"]
    if known:
        return [*lines, "Number: training images; bars: images per label, one scale per column"]
    return [*lines, "Number and bar: training images"]


def _histograms(
    axes: Axes, manifest: Mapping[str, Any], tasks: list[str], counts: NDArray[np.int64], colours: Mapping[str, Any]
) -> None:
    from matplotlib.collections import PolyCollection

    largest = max(1, counts.max())
    frames: list[Polygon] = []
    bars: list[Polygon] = []
    paints: list[Any] = []
    for column, task in enumerate(tasks):
        num_classes = len(manifest["tasks"][task]["classes"])
        holders = [
            (row, client["tasks"][task]) for row, client in enumerate(manifest["clients"]) if task in client["tasks"]
        ]
        most = max((max(held["labels"].values(), default=1) for _, held in holders if held["labels"]), default=1)
        for row, held in holders:
            frames.append(_box(column + EDGE, row + EDGE, 1 - 2 * EDGE, 1 - 2 * EDGE))
            axes.text(column + 0.5, row + 0.23, f"{held['train']}", ha="center", va="center", fontsize=7.5)
            floor, room, reach = row + 1 - EDGE, 1 - 2 * EDGE, 1 - 2 * EDGE - NUMBER
            if held["labels"] is None:
                found = [_box(column + EDGE, floor - 0.6 * reach, room * held["train"] / largest, 0.6 * reach)]
            else:
                step = room / num_classes
                gap = 0.15 * step if step * CELL_WIDTH > POINTS_WITH_GAP / 72 else 0.0
                found = [
                    _box(
                        column + EDGE + int(label) * step + gap / 2,
                        floor,
                        step - gap,
                        -max(LEAST, reach * count / most),
                    )
                    for label, count in held["labels"].items()
                ]
            bars += found
            paints += [colours[task]] * len(found)
    axes.add_collection(PolyCollection(frames, facecolors="0.955", edgecolors="none"))
    axes.add_collection(PolyCollection(bars, facecolors=paints, edgecolors="none"))
    _rules(axes, *counts.shape)


def _heat_map(axes: Axes, counts: NDArray[np.int64], *, numbers: bool) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    num_clients, num_tasks = counts.shape
    # Shaded by the square root: in a linear scale, one task ten times as large would make all others look alike.
    shade = np.ma.masked_equal(np.sqrt(counts / max(1, counts.max())), 0)
    blues = LinearSegmentedColormap.from_list("blues", ["#e3edf7", "#08519c"])
    axes.imshow(
        shade, cmap=blues, vmin=0, vmax=1, extent=(0, num_tasks, num_clients, 0), aspect="auto", interpolation="nearest"
    )
    _rules(axes, num_clients, num_tasks)
    for row, column in zip(*np.nonzero(counts), strict=True) if numbers else []:
        axes.text(
            column + 0.5,
            row + 0.53,
            f"{counts[row, column]}",
            ha="center",
            va="center",
            fontsize=6.5,
            color="white" if shade[row, column] > 0.55 else "0.1",
        )


def _rules(axes: Axes, num_clients: int, num_tasks: int) -> None:
    """Draw the lines between rows and columns."""
    for lines, direction in ((range(num_clients + 1), "h"), (range(num_tasks + 1), "v")):
        draw, end = (axes.hlines, num_tasks) if direction == "h" else (axes.vlines, num_clients)
        draw(list(lines), 0, end, color="0.88", linewidth=0.5, zorder=0.5 if direction == "h" else 0.6)


def _names(axes: Axes, tasks: list[str], clients: list[str]) -> None:
    small = len(clients) > MOST_HISTOGRAMS
    axes.set_yticks(np.arange(len(clients)) + 0.5, clients, fontsize=6.5 if small else 8.5)
    axes.set_xticks([])
    for column, task in enumerate(tasks):
        axes.annotate(
            task,
            (column + 0.4, 0),
            (0, 4),
            textcoords="offset points",
            rotation=40,
            ha="left",
            va="bottom",
            rotation_mode="anchor",
            fontsize=8.5,
            annotation_clip=False,
        )


def _client_totals(axes: Axes, counts: NDArray[np.int64], *, numbers: bool, small: bool) -> None:
    """Draw a bar and a number per client, to the right of the grid."""
    start, longest = counts.shape[1] + 0.2, 0.9
    totals = counts.sum(axis=1)
    lengths = longest * totals / max(1, totals.max())
    axes.barh(np.arange(len(totals)) + 0.5, lengths, 0.75 if small else 0.55, start, color="0.72")
    for row, total in enumerate(totals) if numbers else []:
        held = int((counts[row] > 0).sum())
        axes.text(
            start + lengths[row] + 0.08,
            row + 0.53,
            f"{total} in {held} task{'' if held == 1 else 's'}",
            va="center",
            fontsize=6.5 if small else 7.5,
        )


def _task_totals(
    axes: Axes, manifest: Mapping[str, Any], counts: NDArray[np.int64], colours: Mapping[str, Any], inch: float
) -> None:
    """Draw below the grid, per task, a bar, its number of images, and its number of holders.

    `inch` is one inch in rows of the grid.
    """
    num_clients = counts.shape[0]
    most = max(1, *(entry["train"] for entry in manifest["tasks"].values()))
    floor, tallest = num_clients + 0.42 * inch, 0.34 * inch
    for column, (task, entry) in enumerate(manifest["tasks"].items()):
        images, holders = entry["train"], len(entry["holders"])
        axes.bar(column + 0.5, -tallest * images / most, 0.5, floor, color=colours[task])
        text = f"{images}\n{holders} holder{'s' if holders > 1 else ''}"
        axes.text(column + 0.5, floor + 0.04 * inch, text, ha="center", va="top", fontsize=7, linespacing=1.25)
    axes.annotate(
        "all clients",
        (0, floor + 0.11 * inch),
        (-4, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=8.5,
        annotation_clip=False,
    )
    total = int(counts.sum())
    axes.text(counts.shape[1] + 0.2, floor + 0.11 * inch, f"{total} images in total", va="center", fontsize=8.5)


def _box(x: float, y: float, width: float, height: float) -> Polygon:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
