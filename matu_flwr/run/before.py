"""What can be known to be wrong before a run starts: its suite, and the files and folders that it needs.

Flower takes half a minute to start, and what the ServerApp then finds wrong comes back as "Exit Code: 700".
"""

from __future__ import annotations

from pathlib import Path

from matu_flwr.config import paths
from matu_flwr.config.locations import WORDS
from matu_flwr.config.settings import Scalar, Settings, SettingsError
from matu_flwr.files import obstacle
from matu_flwr.tasks.errors import TaskError
from matu_flwr.tasks.loaders.registry import check_options
from matu_flwr.tasks.loaders.sources import Request
from matu_flwr.tasks.suite import Suite, load_suite

# Missing tasks that an error names one by one.
NAMED = 5


def check_suite(settings: Settings) -> Suite:
    """Read the run's suite. Raises what `check_read` raises for it."""
    # A pipe or a device would keep the reader waiting.
    path = Path(settings.suite)
    if path.is_absolute() and path.exists() and not path.is_file():
        raise SettingsError(f"suite {path} is not a file: give the path of a YAML file")
    return load_suite(settings.suite)


def check_before(settings: Settings, state_dir: Path) -> None:
    """Check what a simulated run on this machine reads and writes, besides its output folder. Nothing is changed.

    Parameters
    ----------
    settings : Settings
        All settings of the run.
    state_dir : Path
        Folder for the clients' own files.

    Raises
    ------
    SettingsError
        Nothing can be written to the folder for decoded images or for the clients' own files; or as in `check_read`.
    TaskError
        As in `check_read`.
    """
    for key, folder in (("cache-dir", paths.cache_dir(settings)), ("state-dir", state_dir)):
        if reason := obstacle(folder):
            raise SettingsError(f"nothing can be written to {folder}: {reason}; name another folder with {key}")
    check_read(settings)


def check_read(settings: Settings) -> None:
    """Check what a simulated run on this machine reads.

    Raises
    ------
    TaskError
        The suite is unknown or cannot be read, or the files of its tasks are not there.
    SettingsError
        A file that a setting names is not there.
    """
    suite = check_suite(settings)
    if settings.data_dir and not Path(settings.data_dir).is_dir():
        raise SettingsError(f"data-dir = {settings.data_dir!r} is not a folder: name the one with the data sets")
    if settings.backbone.weights not in WORDS and not Path(settings.backbone.weights).is_file():
        raise SettingsError(
            f"backbone.weights = {settings.backbone.weights!r} is not a file: name a file with weights, or one of "
            f"{', '.join(WORDS)}"
        )
    if settings.backbone.heads_file and not Path(settings.backbone.heads_file).is_file():
        raise SettingsError(
            f"backbone.heads-file = {settings.backbone.heads_file!r} is not a file: write it with `matu heads`"
        )
    check_files(suite, settings, paths.cache_dir(settings))


def check_files(suite: Suite, settings: Settings, cache: Path) -> None:
    """Raise `TaskError` if tasks of the suite have no files. One error names the first of them."""
    missing = []
    for spec in suite.tasks.values():
        options = check_options(spec.name, spec.loader, spec.options)
        if "path" not in options:
            continue
        try:
            # The error is the one that a run would raise.
            _ = Request(spec.name, options, settings.seed, paths.data_dir(settings), cache).path
        except TaskError as error:
            missing.append((spec.name, str(error)))
    if len(missing) > 1:
        others = [name for name, _ in missing[1 : NAMED + 1]] + ["…"] * (len(missing) > NAMED + 1)
        raise TaskError(f"{missing[0][1]}; so it is with {', '.join(others)}")
    if missing:
        raise TaskError(missing[0][1])


def fewer_nodes(settings: Settings, chosen: dict[str, Scalar], nodes: int) -> dict[str, Scalar]:
    """Return what to set so that a simulation of `nodes` nodes does not wait for more.

    Parameters
    ----------
    settings : Settings
        All settings of the run.
    chosen : dict
        Those that a person chose, typed or in an experiment file, by flat key.
    nodes : int
        Number of nodes that are simulated. There will never be more.

    Returns
    -------
    dict
        `min-nodes`, lowered to `nodes` if nobody chose it and it is larger; else empty.

    Raises
    ------
    SettingsError
        A person chose a larger `min-nodes`.
    """
    if settings.min_nodes <= nodes:
        return {}
    if "min-nodes" in chosen:
        raise SettingsError(
            f"min-nodes = {settings.min_nodes} with {nodes} simulated nodes: the run would wait for nodes that never "
            f"come; lower min-nodes, or give --nodes {settings.min_nodes}"
        )
    return {"min-nodes": nodes}
