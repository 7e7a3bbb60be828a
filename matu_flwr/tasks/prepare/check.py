"""Checks a suite's data: canaries, images that are in both parts, and for each task a sheet of pictures to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from matu_flwr.files import write_picture
from matu_flwr.tasks.cache import TaskData
from matu_flwr.tasks.canary import Canary, observe, verify
from matu_flwr.tasks.datasets import open_source, read_task
from matu_flwr.tasks.errors import TaskError
from matu_flwr.tasks.loaders.registry import LOADERS, SKIP_BROKEN
from matu_flwr.tasks.prepare.prepare import folder_of, require_data_dir
from matu_flwr.tasks.suite import Suite, TaskSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Largest number of classes on a contact sheet, and of images of each.
_CLASSES, _PER_CLASS = 12, 5


@dataclass(frozen=True)
class Checked:
    """The result of checking one task.

    Attributes
    ----------
    task : str
        Name of the task.
    split : str
        How the images were split into training and test images, in words.
    found : Canary or None
        The facts that were found about the whole set; None if it could not be opened.
    train, test : int
        Numbers of images that a run would use, after the caps.
    duplicates : int
        Number of these test images whose decoded pixels are exactly those of a training image.
    canary : str
        "fits", "none" if the suite has no canary for the task, or "" after an error.
    error : str
        What is wrong; "" if nothing is.
    warnings : tuple of str
        What a person should know about the files, although a run would use them.
    sheet : Path or None
        File of the contact sheet; None if none was drawn.
    """

    task: str
    split: str
    found: Canary | None = None
    train: int = 0
    test: int = 0
    duplicates: int = 0
    canary: str = ""
    error: str = ""
    warnings: tuple[str, ...] = ()
    sheet: Path | None = None


def check_suite(
    suite: Suite,
    *,
    image_size: int,
    seed: int,
    data_dir: Path | None,
    cache_dir: Path,
    sheets: Path | None,
    skip_broken: bool = False,
    done: Callable[[Checked], None] | None = None,
) -> list[Checked]:
    """Check one task after the other; a task that fails does not stop the others.

    Parameters
    ----------
    suite : Suite
        The tasks.
    image_size, seed, data_dir, cache_dir
        See `matu_flwr.tasks.load_task`.
    sheets : Path or None
        Folder for the contact sheets; None = draw none.
    skip_broken : bool
        Whether images that cannot be read are counted and left out in all tasks, as the option `skip-broken` does.
    done : callable, optional
        Called with the result of each task as soon as it is ready.

    Returns
    -------
    list of Checked
        In the order of the suite.
    """
    require_data_dir(suite, data_dir)
    results = []
    for named in suite.tasks.values():
        skips = skip_broken and SKIP_BROKEN in LOADERS[named.loader].options
        spec = replace(named, options={**named.options, SKIP_BROKEN: True}) if skips else named
        found = data = None
        state, error = "", ""
        try:
            source = open_source(spec, seed=0, data_dir=data_dir, cache_dir=cache_dir)
            found = observe(source)
            state = "none" if spec.canary is None else "fits"
            if spec.canary is not None:
                verify(spec.name, spec.canary, found, folder_of(spec, data_dir) or f"the loader {spec.loader!r}")
        except TaskError as failure:
            state, error = "", str(failure)
        sheet = None
        # Also after a canary that did not fit: that is where pictures help most.
        if found is not None:
            try:
                data = read_task(spec, image_size=image_size, seed=seed, data_dir=data_dir, cache_dir=cache_dir)
                sheet = draw_contact_sheet(data, spec, sheets / f"{spec.name}.png") if sheets else None
            except TaskError as failure:
                error = error or str(failure)
        results.append(_judged(spec, found, data, state, error, sheet, image_size))
        if done is not None:
            done(results[-1])
    return results


def _judged(
    spec: TaskSpec, found: Canary | None, data: TaskData | None, state: str, error: str, sheet: Path | None, size: int
) -> Checked:
    if data is None:
        return Checked(spec.name, spec.split, found, canary=state, error=error, sheet=sheet)
    warnings = [f"task {spec.name!r}: {note}" for note in data.notes]
    if data.duplicates:
        text = (
            f"task {spec.name!r}: {data.duplicates} of {len(data.test_images)} test images are training images too "
            f"({size} px)"
        )
        if spec.canary is not None and spec.canary.disjoint:
            advice = "expected none: put the published files there, or remove the copies from the training part"
            error = error or f"{text}, {advice}"
        else:
            warnings.append(f"{text}; some published sets have a few, but many mean that the split is wrong")
    return Checked(
        spec.name,
        spec.split,
        found,
        len(data.train_labels),
        len(data.test_labels),
        data.duplicates,
        state,
        error,
        tuple(warnings),
        sheet,
    )


def draw_contact_sheet(data: TaskData, spec: TaskSpec, path: Path) -> Path:
    """Draw a sheet with some training images of some classes, the class names, and one prompt as an example.

    Raises
    ------
    TaskError
        The file cannot be written.
    """
    # Classes are evenly spaced over all labels: if labels are shifted somewhere, the last classes show it.
    shown = np.unique(np.linspace(0, len(data.classes) - 1, min(_CLASSES, len(data.classes))).round().astype(int))
    columns = 2 if len(shown) > 6 else 1
    rows = -(-len(shown) // columns)
    width, height = 5.9 * columns, 0.72 * rows + 0.95  # inches
    figure = _figure(width, height)
    images = f"{len(data.train_labels)} training and {len(data.test_labels)} test images"
    title = f"{spec.name}: {len(data.classes)} classes, {images}"
    figure.text(0.12 / width, 1 - 0.28 / height, title, fontsize=11, fontweight="bold", va="center")
    prompt = f"prompt 1 of {len(spec.templates)}: {spec.templates[0].format(data.classes[shown[0]])}"
    prompt = _shortened(prompt, 62 * columns)
    figure.text(0.12 / width, 1 - 0.56 / height, prompt, fontsize=9, color="0.3", va="center")
    # The pixels of small images are shown as squares, not blurred.
    nearest = data.train_images.shape[1] < 65
    for place, label in enumerate(shown):
        column, row = divmod(place, rows)
        left, bottom = 5.9 * column + 0.12, height - 0.76 - 0.72 * (row + 1)
        for position, index in enumerate(_some(np.flatnonzero(data.train_labels == label))):
            axes = figure.add_axes(
                ((left + 0.7 * position) / width, bottom / height, 0.66 / width, 0.66 / height), frameon=False
            )
            axes.imshow(data.train_images[index], interpolation="nearest" if nearest else "antialiased")
            axes.set_axis_off()
        for text, indent in ((str(label), 0.0), (_wrapped(data.classes[label], 24), 0.1 + 0.09 * len(str(shown[-1])))):
            at = left + 0.7 * _PER_CLASS + 0.08 + indent
            figure.text(at / width, (bottom + 0.33) / height, text, fontsize=9, va="center")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path, figure)
    except OSError as error:
        raise TaskError(
            f"task {spec.name!r}: cannot write {path}: {error}; choose another folder for the sheets"
        ) from error
    return path


def _some(members: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """At most `_PER_CLASS` of `members`, evenly spaced."""
    return (
        members[np.unique(np.linspace(0, len(members) - 1, _PER_CLASS).round().astype(int))]
        if len(members)
        else members
    )


def _wrapped(text: str, width: int) -> str:
    """Break a text into at most two lines of about `width` characters. The end of a longer one is cut off."""
    import textwrap

    lines = textwrap.wrap(text, width) or [text]
    return "\n".join(lines[:2] if len(lines) <= 2 else [lines[0], _shortened(" ".join(lines[1:]), width)])


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _figure(width: float, height: float) -> Figure:
    """Make an empty figure; width and height are in inches."""
    # Not with pyplot, which keeps global state and may want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure
