"""The `matu` command."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from matu_flwr.compare.command import compare
from matu_flwr.data_command import data_app
from matu_flwr.keys_command import keys_app
from matu_flwr.partition_command import partition
from matu_flwr.pretraining.command import pretrain
from matu_flwr.status_command import status

app = typer.Typer(
    help="Many-task federated fine-tuning with unified task vectors (MaTU) on Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app.command()(partition)
app.add_typer(data_app, name="data")
app.add_typer(keys_app, name="keys")
app.command()(pretrain)
app.command()(compare)
app.command()(status)


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
    nodes: Annotated[int | None, typer.Option(help="SuperNodes to simulate. Default: 10.", min=1)] = None,
    cpus: Annotated[
        int | None, typer.Option(help="CPUs per client; clients run side by side as they fit. Default: 1.", min=1)
    ] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs per client, also a part of one: 0.25.", min=0)] = None,
    experiment: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    out_dir: Annotated[
        Path | None, typer.Option(help="Output folder. Default: runs/<time>-<suite>-<strategy>.")
    ] = None,
    run_config: Annotated[
        list[str] | None, typer.Option("--run-config", "-c", help="Any setting, as in flwr run: -c matu.kappa=0")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with the run in this folder, or from one of its checkpoints.", metavar="DIR"),
    ] = None,
    app_dir: Annotated[Path, typer.Option("--app", help="Folder of the Flower app.")] = Path(),
) -> None:
    """Run a federation as a simulation on this machine: `flwr run` with the environment it needs."""
    from matu_flwr.run.checkpoint import CheckpointError
    from matu_flwr.run.checkpoint_resume import settings_of
    from matu_flwr.run.history import HistoryError
    from matu_flwr.run.launcher import LaunchError, resources_of, run_app
    from matu_flwr.settings import SettingsError, parse_run_config

    console = Console(highlight=False, markup=False, emoji=False)
    data_dir = os.environ.get("MATU_DATA_DIR", "")
    named = {"suite": suite, "strategy": strategy, "rounds": rounds, "seed": seed, "experiment": experiment}
    named |= {"resume-from": resume}
    try:
        values = parse_run_config(run_config or [])
        values |= {key: str(v) if isinstance(v, Path) else v for key, v in named.items() if v is not None}
        values |= absolute_paths(values)
        if not values.keys() & {"suite", "experiment", "resume-from"} and data_dir:
            values["suite"] = "real-12"
            console.print(f"MATU_DATA_DIR is set: suite real-12 on the files in {data_dir}", soft_wrap=True)
        settings, found = settings_of(values | ({"out-dir": str(out_dir.expanduser())} if out_dir else {}))
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(settings.suite).stem}-{settings.strategy}"
        folder = (out_dir or Path(settings.out_dir or app_dir / "runs" / name)).expanduser().absolute()
        if not found or (folder / "client-state").is_dir():  # the folder may have been moved
            values.setdefault("state-dir", str(folder / "client-state"))
        resources = resources_of(folder, nodes=nodes, cpus=cpus, gpus=gpus)
        begin = f"resuming after round {found.checkpoint.round}:" if found else "starting"
        console.print(
            f"{begin} {settings.strategy} on suite {settings.suite} with {resources['num_nodes']} simulated "
            f"SuperNodes; everything it writes goes to {folder}",
            soft_wrap=True,
            markup=False,
        )
        run_app(app_dir, folder, run_config=values, **resources)
    except (CheckpointError, HistoryError, LaunchError, SettingsError) as error:
        fail(error)


def fail(error: Exception) -> NoReturn:
    """One clear line, and exit status 1."""
    Console(stderr=True, highlight=False, markup=False, emoji=False).print(
        f"error: {error}", style="red", markup=False, soft_wrap=True
    )
    raise typer.Exit(1) from None


def absolute_paths(values: Mapping[str, bool | int | float | str]) -> dict[str, str]:
    """Those of the values that name files here, as seen from anywhere: Flower runs in a folder of its own."""
    folders = ("experiment", "data-dir", "cache-dir", "state-dir", "out-dir", "resume-from", "backbone.heads-file")
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
        fail(error)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    task: Annotated[str, typer.Argument(help="One of its tasks.")],
    target: Annotated[Path, typer.Argument(help="New folder to write.")],
    unified: Annotated[
        bool, typer.Option("--unified", help="From the one unified vector of all tasks instead of the task vector.")
    ] = False,
) -> None:
    """Write a task's fine-tuned model as a timm checkpoint, or as a PEFT adapter folder after a run with LoRA."""
    from matu_flwr.backbones import BackboneError
    from matu_flwr.export import export_model
    from matu_flwr.run.artefacts import ArtefactError

    try:
        for name, path in export_model(folder, task, target, "unified" if unified else "task-vector").items():
            typer.echo(f"{name:<12}{path}")
    except (ArtefactError, BackboneError) as error:
        fail(error)


@app.command()
def heads(
    out: Annotated[Path, typer.Argument(help="File to write; give its path to the run as backbone.heads-file.")],
    suite: Annotated[str, typer.Option(help="Suite name or file.")] = "offline",
    backbone: Annotated[str, typer.Option(help="Name of the backbone whose text tower it is.")] = "vit_mini_clip_32",
    text_weights: Annotated[
        Path | None, typer.Option(help="File of the whole CLIP model for open_clip; default: its download.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data sets; default: MATU_DATA_DIR.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the run; generated tasks depend on it.")] = 0,
) -> None:
    """Write the zero-shot heads of a suite's tasks, so that nodes need no text tower."""
    from matu_flwr import paths
    from matu_flwr.backbones import BackboneError, Prompts
    from matu_flwr.backbones.zero_shot import write_heads
    from matu_flwr.settings import Settings
    from matu_flwr.tasks import TaskError, load_suite, load_task

    settings = Settings.from_flat({"data-dir": str(data_dir) if data_dir else ""})
    folders = {"data_dir": paths.data_dir(settings), "cache_dir": paths.cache_dir(settings)}
    try:
        prompts = {
            name: Prompts(load_task(spec, image_size=32, seed=seed, **folders).classes, spec.templates)  # type: ignore[arg-type]
            for name, spec in load_suite(suite).tasks.items()
        }
        write_heads(out, backbone, prompts, str(text_weights) if text_weights else "")
    except (BackboneError, TaskError) as error:
        fail(error)
    typer.echo(f"{len(prompts)} heads for {backbone} in {out}")


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
        fail(error)
