"""The cells of a comparison. A cell is one run: one method with one seed. A finished cell is not run again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from matu_flwr.config.removed import without_removed
from matu_flwr.config.settings import (
    DEFAULTS,
    PRESETS,
    Scalar,
    Settings,
    SettingsError,
    asked_for,
    check_keys,
    parse_run_config,
)
from matu_flwr.events import EndEvent
from matu_flwr.files import write_json
from matu_flwr.run import summary
from matu_flwr.run.history import HISTORY, HistoryError, read_history
from matu_flwr.strategies import method, prepared
from matu_flwr.strategies.registry import METHODS

CELL = "cell.json"
Run = Callable[[Path, dict[str, Scalar]], None]
"""Runs one cell: output folder and run-config values."""


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes
    ----------
    name : str
        Method as the user named it: a strategy, or a variant of one (see `variant`).
    seed : int
        Seed of the run.
    values : dict
        Run-config values of the run, by key.
    """

    name: str
    seed: int
    values: dict[str, Scalar] = field(hash=False)

    def folder(self, out_dir: Path) -> Path:
        """Return the output folder of the run."""
        return out_dir / "cells" / f"{re.sub(r'[^A-Za-z0-9.=+-]', '-', self.name)}-seed{self.seed}"


def variant(name: str) -> tuple[str, dict[str, Scalar]]:
    """Split the name of a variant into its strategy and its run-config values.

    A name is `STRATEGY`, `matu:PRESET` or `STRATEGY:KEY=VALUE`. Several parts after the colon are joined with `+`. A
    key without a section is an option of the method itself. Examples: `matu:paper+kappa=0`, `fedprox:mu=0.1`,
    `fedavg:train.lr=1e-4`. Values of the variant win over those for all cells. The values of a preset are the weakest,
    as everywhere.

    Raises
    ------
    SettingsError
        The strategy, a preset or a key is unknown.
    """
    strategy, _, parts = name.partition(":")
    section = method(strategy).section
    values: dict[str, Scalar] = {}
    for part in filter(None, parts.split("+")):
        if "=" in part:
            for key, value in parse_run_config([part]).items():
                values[f"{section}.{key}" if section and "." not in key and key not in DEFAULTS else key] = value
        elif strategy == "matu" and part in PRESETS:
            values["matu.preset"] = part
        else:
            raise SettingsError(
                f"strategy {name!r}: {part!r} is neither KEY=VALUE nor a preset of matu; the presets are "
                f"{', '.join(sorted(PRESETS))}"
            )
    check_keys(values)
    return strategy, values


def plan_cells(names: Sequence[str], seeds: int, values: Mapping[str, Scalar]) -> list[Cell]:
    """List all cells, seed after seed, and check the settings of each before anything runs.

    Parameters
    ----------
    names : sequence of str
        Strategies and variants of strategies.
    seeds : int
        Number of seeds. The first is the value of `seed`, the next ones follow it.
    values : mapping
        Run-config values for all cells. Options of one method go to the cells of that method only.

    Raises
    ------
    SettingsError
        A strategy or preset is unknown, a name is given twice, or a method refuses the settings.
    """
    first_seed = Settings.from_flat(asked_for(values)).seed
    sections = {entry.section: name for name, entry in METHODS.items() if entry.section}
    for key in values:
        owner = sections.get(key.rpartition(".")[0])
        if owner is not None and owner not in {name.partition(":")[0] for name in names}:
            raise SettingsError(f"setting {key!r} is an option of strategy {owner!r}, which is not in this comparison")
    if len(set(names)) < len(names):
        raise SettingsError(f"strategies {', '.join(names)}: a name is given twice; give each once")
    cells = []
    for seed in range(first_seed, first_seed + seeds):
        for name in names:
            strategy, changed = variant(name)
            entry = method(strategy)
            own = {
                key: value
                for key, value in values.items()
                if sections.get(key.rpartition(".")[0], strategy) == strategy or key.rpartition(".")[0] == entry.section
            }
            own |= changed | {"strategy": strategy, "seed": seed}
            prepared(Settings.from_run_config(own))
            cells.append(Cell(name, seed, own))
    return cells


def end_of(folder: Path) -> EndEvent | None:
    """Return the end event of a cell's run; None if the run has not started or has not ended."""
    try:
        return summary.end_of(read_history(folder / HISTORY))
    except HistoryError:
        return None


def is_finished(cell: Cell, out_dir: Path) -> bool:
    """Tell whether a cell was completed with exactly these settings.

    Raises
    ------
    SettingsError
        The cell was completed with other settings, which this release may not even know. So its result cannot be
        compared with the new ones.
    """
    folder = cell.folder(out_dir)
    end = end_of(folder)
    if end is None or end["status"] != "completed":
        return False
    try:
        stored = without_removed(json.loads((folder / CELL).read_text(encoding="utf-8")))
    except SettingsError as error:
        raise SettingsError(f"{folder} cannot be compared: {error}, or name another --out-dir") from None
    before, now = _meaning(stored), _meaning(cell.values)
    if before != now:
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        raise SettingsError(
            f"{folder} was run with other settings ({', '.join(changed)}): name another --out-dir, or remove that "
            "folder"
        )
    return True


def _meaning(values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return a cell's values with every preset replaced by the settings that it stands for."""
    # Without the preset's name, because earlier releases wrote the settings only.
    return {key: value for key, value in asked_for(values).items() if key != "matu.preset"}


def run_cells(
    cells: Sequence[Cell], out_dir: Path, run: Run, *, side_by_side: int, say: Callable[[str], None]
) -> dict[Cell, str]:
    """Run the cells that are not finished, `side_by_side` at a time; a failed cell does not stop the others.

    Returns
    -------
    dict of Cell to str
        The reason of failure, by cell that failed.
    """
    waiting = [cell for cell in cells if not is_finished(cell, out_dir)]
    if len(waiting) < len(cells):
        say(f"{len(cells) - len(waiting)} of {len(cells)} cells are finished already")
    failed: dict[Cell, str] = {}
    stopped = Event()

    def one(number_and_cell: tuple[int, Cell]) -> None:
        if stopped.is_set():
            return
        number, cell = number_and_cell
        folder = cell.folder(out_dir)
        try:
            # Remove what an interrupted or failed run has left: a run needs a new folder.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(folder / CELL, dict(sorted(cell.values.items())))
            say(f"cell {number}/{len(waiting)}: {cell.name}, seed {cell.seed}")
            run(folder, cell.values)
        # Any error ends this cell only.
        except Exception as error:
            failed[cell] = " ".join(str(error).split())
            say(f"cell {number}/{len(waiting)}: {cell.name}, seed {cell.seed} failed: {failed[cell][:300]}")
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(side_by_side) as pool:
        try:
            # `map` returns at once. `list` waits for all cells, and raises what has interrupted one of them.
            list(pool.map(one, enumerate(waiting, 1)))
        except KeyboardInterrupt:
            # The terminal sends Ctrl-C to the running cells too. Those that still wait must not begin.
            stopped.set()
            raise
    return failed
