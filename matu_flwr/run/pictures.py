"""Pictures of a run: the accuracy over the rounds, and the task graph (how similar the tasks are)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matu_flwr.events import Event
from matu_flwr.files import write_picture
from matu_flwr.run.summary import accuracies, end_of, plan_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_curves(events: list[Event], path: Path) -> None:
    """Draw the accuracy of every task over the rounds as a PNG file, replaced in one step.

    A line has the colour of its task's group, and its name and last value at its right end. The mean is black.
    """
    by_round = accuracies(events)
    rounds = sorted(by_round)
    plan = plan_of(events)
    groups = {task["name"]: task["group"] for task in plan["tasks"]} if plan else {}
    tasks = sorted({task for accuracy in by_round.values() for task in accuracy}, key=lambda t: (groups.get(t, ""), t))
    colours = group_colours(tasks, groups)

    figure, axes = figure_of(10, 5.6)
    ends: dict[str, float] = {}
    seen: dict[str, int] = {}
    for task in tasks:
        where = [r for r in rounds if task in by_round[r]]
        values = [by_round[r][task] for r in where]
        # Tasks of one group share a colour, so the dashes tell them apart.
        style = ("-", "--", ":", "-.")[seen.setdefault(groups.get(task, ""), 0) % 4]
        seen[groups.get(task, "")] += 1
        axes.plot(where, values, style, color=colours[task], linewidth=1.4, alpha=0.9)
        ends[task] = values[-1]
    means = [float(np.mean(list(by_round[r].values()))) for r in rounds]
    axes.plot(rounds, means, color="black", linewidth=2.6)
    ends["mean"] = means[-1]
    axes.set_xlim(0, max(rounds[-1], 1))
    axes.set_ylim(0, 1)
    for name, at in spaced(ends, gap=0.034).items():
        weight = "bold" if name == "mean" else "normal"
        label = f"{name} {ends[name]:.2f}".replace(" 0.", " .")
        axes.annotate(
            label,
            (1.025, at),
            xycoords="axes fraction",
            color=colours.get(name, "black"),
            fontweight=weight,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
        axes.plot(
            [1, 1.02],
            [ends[name], at],
            color=colours.get(name, "black"),
            linewidth=0.7,
            transform=axes.transAxes,
            clip_on=False,
        )
    axes.set_xlabel("rounds of training")
    axes.set_ylabel("test accuracy of the model that a client receives")
    axes.grid(axis="y", color="0.9")
    if plan:
        axes.set_title(
            f"{plan['strategy']} on {plan['suite']}: {len(plan['tasks'])} tasks, {len(plan['clients'])} clients, "
            f"seed {plan['seed']}",
            fontsize=11,
            loc="left",
        )
    figure.subplots_adjust(left=0.07, right=0.78, top=0.93, bottom=0.1)
    write_picture(path, figure)


def spaced(values: dict[str, float], gap: float) -> dict[str, float]:
    """Move labels apart so that they do not overlap, and keep each as close to its value as possible.

    Parameters
    ----------
    values : dict of str to float
        Where the labels should be, in [0, 1], by name.
    gap : float
        Smallest distance between two labels. It is made smaller if there is no room for all of them.

    Returns
    -------
    dict of str to float
        Positions in [0, 1], in the order of the values.
    """
    names = sorted(values, key=lambda name: (values[name], name))
    gap = min(gap, 1 / max(len(names) - 1, 1))
    at = np.array([values[name] for name in names])
    # Subtract i gaps from label i: labels at least one gap apart then form a sequence that never falls. Neighbours
    # that break this rule are merged into a block, which is put at their mean (isotonic regression).
    blocks: list[list[float]] = []
    for i, value in enumerate(at):
        block = [value - i * gap]
        while blocks and np.mean(blocks[-1]) > np.mean(block):
            block = blocks.pop() + block
        blocks.append(block)
    level = np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])
    at = np.clip(level, 0, 1 - gap * (len(at) - 1)) + gap * np.arange(len(at))
    return dict(zip(names, at.tolist(), strict=True))


def draw_task_graph(events: list[Event], path: Path) -> None:
    """Draw a heat map of the similarity of tasks, ordered so that similar tasks are neighbours.

    The colour and the upper number of a cell are the similarity S of two tasks (method, server step 3). The lower
    number is its standard score. S = ½ means unrelated and is white. The colours reach as far as the largest distance
    from ½, so that differences show even if they are thousandths. A frame marks two tasks of one known group. A dot
    marks two tasks that share a client: their similarity is partly due to the unified vector that both came from.

    Raises
    ------
    ValueError
        The history has no task graph.
    """
    from matplotlib.patches import Rectangle

    plan, end = plan_of(events), end_of(events)
    if end is None or not end["similarity"]:
        raise ValueError("this history has no task graph to draw: its end event has no similarity")
    names: list[str] = end["similarity"]["order"]
    groups = {task["name"]: task["group"] for task in plan["tasks"]} if plan else {}
    holders = {task["name"]: set(task["holders"]) for task in plan["tasks"]} if plan else {}
    similarity = np.array(end["similarity"]["values"])
    z = np.array(end["similarity"]["z"])
    order = similar_neighbours(similarity)
    names = [names[i] for i in order]
    similarity, z = similarity[np.ix_(order, order)], z[np.ix_(order, order)]
    size = len(names)
    shown = similarity.copy()
    np.fill_diagonal(shown, np.nan)
    reach = float(np.nanmax(np.abs(shown - 0.5))) if size > 1 else 0.5

    figure, axes = figure_of(2.6 + 0.72 * size, 1.9 + 0.6 * size)
    image = axes.imshow(shown, cmap="RdBu_r", vmin=0.5 - max(reach, 1e-6), vmax=0.5 + max(reach, 1e-6), aspect="auto")
    # The diagonal is left out of the image and shows this grey; white would read as "unrelated".
    axes.set_facecolor("0.85")
    digits = 2 if reach > 0.1 else 3 if reach > 0.01 else 4
    for i in range(size):
        for j in range(size):
            if i == j:
                continue
            dark = abs(similarity[i, j] - 0.5) > 0.55 * reach
            text = f"{similarity[i, j]:.{digits}f}".removeprefix("0") + f"\n{round(z[i, j]):+d}σ"
            axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color="white" if dark else "0.2")
            if holders.get(names[i], set()) & holders.get(names[j], set()):
                axes.plot(j + 0.38, i - 0.36, ".", color="black", markersize=5)
            if groups.get(names[i]) and groups.get(names[i]) == groups.get(names[j]):
                axes.add_patch(
                    Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, fill=False, edgecolor="black", linewidth=1.6)
                )
    colours = group_colours(names, groups)
    axes.set_xticks(range(size), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(size), names, fontsize=9)
    for label, name in [
        *zip(axes.get_xticklabels(), names, strict=True),
        *zip(axes.get_yticklabels(), names, strict=True),
    ]:
        label.set_color(colours[name])
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label(
        "similarity S, mean over the first third of the rounds; ½ = unrelated\n"
        "σ: standard score if parameters were independent",
        fontsize=8.5,
    )
    title = f"{plan['strategy']} on {plan['suite']}: " if plan else ""
    axes.set_title(
        f"{title}tasks whose updates point the same way (frame: known group; dot: they share a client)",
        fontsize=10,
        loc="left",
    )
    # While it is drawn, and not now: only then are names known to be no formulas.
    figure.set_layout_engine("tight")
    write_picture(path, figure)


def similar_neighbours(similarity: NDArray[np.float64]) -> list[int]:
    """Order rows of a similarity matrix (T, T) so that similar tasks are side by side.

    The order is that of the leaves of an average-linkage clustering, in optimal leaf order.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    # One or two tasks have no order to choose, and scipy's linkage refuses a single one.
    if len(similarity) < 3:
        return list(range(len(similarity)))
    distance = similarity.max() - similarity
    np.fill_diagonal(distance, 0)
    condensed = squareform(distance, checks=False)
    return [int(i) for i in leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))]


def group_colours(tasks: list[str], groups: dict[str, str]) -> dict[str, Any]:
    """Give each group of related tasks one colour (RGBA, by task); a task without a group gets its own."""
    from matplotlib import colormaps

    kinds = sorted({groups.get(task) or task for task in tasks})
    # The dark shades of tab20 come first, because the light and the dark shade of one hue are hard to tell apart.
    # Shades 14 and 15 are greys and are left out.
    palette = [colormaps["tab20"](i) for i in [*range(0, 20, 2), *range(1, 20, 2)] if i not in (14, 15)]
    return {task: palette[kinds.index(groups.get(task) or task) % len(palette)] for task in tasks}


def blank_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this width and height in inches.

    It is made without pyplot, which keeps global state and may look for a display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def figure_of(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes, without the frame lines at the top and on the right; sizes in inches."""
    figure = blank_figure(width, height)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes
