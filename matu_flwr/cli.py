"""The `matu` command."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    help="Many-task federated fine-tuning with unified task vectors (MaTU) on Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Keep `matu run` a sub-command."""


@app.command()
def run(
    suite: Annotated[
        str | None, typer.Option(help="Suite name or file. Default: real-12 if MATU_DATA_DIR is set, else offline.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="Method; see matu_flwr.strategies.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Federated rounds.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    nodes: Annotated[int, typer.Option(help="SuperNodes to simulate.", min=1)] = 10,
    cpus: Annotated[int, typer.Option(help="CPUs per client; clients run side by side as they fit.", min=1)] = 1,
    experiment: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    out_dir: Annotated[
        Path | None, typer.Option(help="Output folder. Default: runs/<time>-<suite>-<strategy>.")
    ] = None,
    run_config: Annotated[
        list[str] | None, typer.Option("--run-config", "-c", help="Any setting, as in flwr run: -c matu.kappa=0")
    ] = None,
    app_dir: Annotated[Path, typer.Option("--app", help="Folder of the Flower app.")] = Path(),
) -> None:
    """Run a federation as a simulation on this machine: `flwr run` with the environment it needs."""
    from matu_flwr.run.launcher import LaunchError, run_app
    from matu_flwr.settings import Settings, SettingsError

    console = Console(highlight=False, markup=False, emoji=False)
    data_dir = os.environ.get("MATU_DATA_DIR", "")
    named = {"suite": suite, "strategy": strategy, "rounds": rounds, "seed": seed, "experiment": experiment}
    try:
        values = parse_run_config(run_config or [])
        values |= {key: str(v) if isinstance(v, Path) else v for key, v in named.items() if v is not None}
        values |= absolute_paths(values)
        if "suite" not in values and "experiment" not in values and data_dir:
            values["suite"] = "real-12"
            console.print(f"MATU_DATA_DIR is set: suite real-12 on the files in {data_dir}", soft_wrap=True)
        settings = Settings.from_run_config(values)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(settings.suite).stem}-{settings.strategy}"
        folder = (out_dir or Path(settings.out_dir or app_dir / "runs" / name)).expanduser().absolute()
        values.setdefault("state-dir", str(folder / "client-state"))
        console.print(
            f"starting {settings.strategy} on suite {settings.suite} with {nodes} simulated SuperNodes; "
            f"everything it writes goes to {folder}",
            soft_wrap=True,
            markup=False,
        )
        run_app(app_dir, folder, run_config=values, num_nodes=nodes, num_cpus=cpus)
    except (LaunchError, SettingsError) as error:
        Console(stderr=True, highlight=False, markup=False, emoji=False).print(
            f"error: {error}", style="red", markup=False
        )
        raise typer.Exit(1) from None


def parse_run_config(items: list[str]) -> dict[str, bool | int | float | str]:
    """Values of `KEY=VALUE` items, typed as TOML types them; text needs no quotes."""
    import tomllib

    from matu_flwr.settings import SettingsError

    values: dict[str, bool | int | float | str] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise SettingsError(f"run config {item!r}: expected KEY=VALUE")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text.strip()
    return values


def absolute_paths(values: Mapping[str, bool | int | float | str]) -> dict[str, str]:
    """Those of the values that name files here, as seen from anywhere: Flower runs in a folder of its own."""
    folders = ("experiment", "data-dir", "cache-dir", "state-dir", "out-dir")
    found = {key: Path(str(values[key])).expanduser() for key in folders if values.get(key)}
    either = {key: Path(str(values[key])).expanduser() for key in ("suite", "backbone.weights") if values.get(key)}
    found |= {key: path for key, path in either.items() if path.is_file()}
    return {key: str(path.absolute()) for key, path in found.items()}


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    tensorboard: Annotated[
        Path | None, typer.Option(help="Also write scalars for TensorBoard into this folder.", metavar="DIR")
    ] = None,
) -> None:
    """Draw summary and pictures of a run again, from its history alone."""
    from matu_flwr.run.history import HistoryError, read_history
    from matu_flwr.run.report import HISTORY, write_report, write_tensorboard

    try:
        for name, path in write_report(folder).items():
            typer.echo(f"{name:<12}{path}")
        if tensorboard is not None:
            write_tensorboard(read_history(folder / HISTORY), tensorboard)
            typer.echo(f"{'tensorboard':<12}{tensorboard}")
    except HistoryError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def show(folder: Annotated[Path, typer.Argument(help="Output folder of a run.")]) -> None:
    """Print what a run printed, from its history alone."""
    from matu_flwr.run.console import Narrator
    from matu_flwr.run.history import HistoryError, read_history
    from matu_flwr.run.report import HISTORY

    console = Console(highlight=False, markup=False, emoji=False)
    narrator = Narrator()
    try:
        for event in read_history(folder / HISTORY):
            for item in narrator.tell(event):
                console.print(item, markup=False) if isinstance(item, str) else console.print(item)
    except HistoryError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
