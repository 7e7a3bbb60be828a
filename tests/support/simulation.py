"""The app in Flower's simulation, as `matu run` starts it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from matu_flwr.launch.launcher import run_app

APP = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Simulation:
    """A finished run: its folder, Flower's home, its settings, and what a person saw."""

    folder: Path
    home: Path
    values: dict[str, Any]
    screen: str


def home_of(out_dir: Path) -> Path:
    """Where Flower keeps its files of a run that `simulate` starts."""
    return out_dir.with_name(f"{out_dir.name}-flower")


def simulate(values: dict[str, Any], out_dir: Path, *, num_cpus: int = 1) -> Simulation:
    """Run the app with two nodes of `num_cpus` cores each; a second call may resume the first."""
    with out_dir.with_name(f"{out_dir.name}.txt").open("a+") as file:
        console, home = Console(file=file, width=120), home_of(out_dir)
        run_app(APP, out_dir, run_config=values, num_nodes=2, num_cpus=num_cpus, home=home, console=console)
        file.seek(0)
        return Simulation(out_dir, home, values, file.read())
