"""Pictures of a run: accuracy over the rounds, and the task graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matu_flwr.events import Event
from matu_flwr.files import replacing
from matu_flwr.run.summary import accuracies, end_of, plan_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_curves(events: list[Event], path: Path) -> None:
    """Accuracy of every task over the rounds, coloured by group, the mean in black; names stand at the line ends."""
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
        style = ("-", "--", ":", "-.")[seen.setdefault(groups.get(task, ""), 0) % 4]  # tells tasks of a group apart
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
    axes.set_ylabel("test accuracy of the model a holder receives")
    axes.grid(axis="y", color="0.9")
    if plan:
        axes.set_title(
            f"{plan['strategy']} on {plan['suite']}: {len(plan['tasks'])} tasks, {len(plan['clients'])} clients, "
            f"seed {plan['seed']}",
            fontsize=11,
            loc="left",
        )
    figure.subplots_adjust(left=0.07, right=0.78, top=0.93, bottom=0.1)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def spaced(values: dict[str, float], gap: float) -> dict[str, float]:
    """Positions near `values` in [0, 1], at least `gap` apart where there is room, in the order of the values."""
    names = sorted(values, key=lambda name: (values[name], name))
    gap = min(gap, 1 / max(len(names) - 1, 1))
    at = np.array([values[name] for name in names])
    # Less i gaps, "at least a gap apart" is "not falling": labels that would overlap form a block around their mean.
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
    """Heat map of the similarity of tasks, ordered so that similar tasks are neighbours.

    Colour and upper number of a cell are S, the lower number its standard score. Colours are scaled to the largest
    distance from ½ off the diagonal: unrelated tasks are white even where the distances are thousandths. A frame
    marks tasks of one known group, a dot tasks that share a client: those are moved alike by their unified vector.
    """
    from matplotlib.patches import Rectangle

    plan, end = plan_of(events), end_of(events)
    if end is None or not end["similarity"]:
        raise ValueError("this history has no task graph to draw")
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
    axes.set_facecolor("0.85")  # the diagonal: not "unrelated"
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
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def similar_neighbours(similarity: NDArray[np.float64]) -> list[int]:
    """Order of rows that puts similar tasks side by side: average linkage with optimal leaf order."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(similarity) < 3:
        return list(range(len(similarity)))
    distance = similarity.max() - similarity
    np.fill_diagonal(distance, 0)
    condensed = squareform(distance, checks=False)
    return [int(i) for i in leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))]


def group_colours(tasks: list[str], groups: dict[str, str]) -> dict[str, Any]:
    """One colour per related group; a task without a group has its own."""
    from matplotlib import colormaps

    kinds = sorted({groups.get(task) or task for task in tasks})
    # tab20's dark shades first: neighbouring light and dark shades of one hue are hard to tell apart
    palette = [colormaps["tab20"](i) for i in [*range(0, 20, 2), *range(1, 20, 2)] if i not in (14, 15)]
    return {task: palette[kinds.index(groups.get(task) or task) % len(palette)] for task in tasks}


def blank_figure(width: float, height: float) -> Figure:
    """A figure of so many inches, without pyplot: nothing global, no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def figure_of(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, open at the top and on the right."""
    figure = blank_figure(width, height)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes
