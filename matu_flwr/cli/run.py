"""`matu run`: simulate a federation on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from matu_flwr.cli.ui import console, fail


def run(
    suite: Annotated[
        str | None, typer.Option(help="Suite name or file. Default: real-12 if MATU_DATA_DIR is set, else offline.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="Method. Default: matu. A wrong name prints all methods.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of federated training.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Number of SuperNodes to simulate. Default: 10.", min=1)] = None,
    cpus: Annotated[
        int | None, typer.Option(help="CPUs per client; as many clients run at once as fit. Default: 1.", min=1)
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(help="GPUs per client; 0.25 lets four clients share one.", min=0)
    ] = None,
    experiment: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    out_dir: Annotated[
        Path | None, typer.Option(help="Output folder. Default: runs/<time>-<suite>-<strategy>.")
    ] = None,
    run_config: Annotated[
        list[str] | None,
        typer.Option(
            "--run-config",
            "-c",
            help="Any setting, e.g. -c matu.kappa=0; it wins over the experiment file.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Resume the run in this folder, or from one of its checkpoints.", metavar="DIR"),
    ] = None,
    app_dir: Annotated[Path, typer.Option("--app", help="Folder of the Flower app.")] = Path(),
) -> None:
    """Simulate a federation on this machine: start Flower, run the app, and show the progress."""
    from matu_flwr.config.locations import absolute_paths, expanded
    from matu_flwr.config.methods import check_method
    from matu_flwr.config.paths import run_folder_name
    from matu_flwr.config.settings import Settings, SettingsError, asked_for, named, parse_run_config
    from matu_flwr.files import exclusive_folder
    from matu_flwr.run.before import check_before, check_read, fewer_nodes
    from matu_flwr.tasks import TaskError

    screen = console()
    data_dir = os.environ.get("MATU_DATA_DIR", "")
    typed = {"suite": suite, "strategy": strategy, "rounds": rounds, "seed": seed, "experiment": experiment}
    typed |= {"resume-from": resume, "out-dir": out_dir}
    try:
        values = parse_run_config(run_config or [])
        values |= {key: str(v) if isinstance(v, Path) else v for key, v in typed.items() if v is not None}
        values |= absolute_paths(values, Path.cwd())
        if not values.keys() & {"suite", "experiment", "resume-from"} and data_dir:
            values["suite"] = "real-12"
            screen.print(f"MATU_DATA_DIR is set: using suite real-12 with the files in {data_dir}", soft_wrap=True)
        # A wrong name or file is told at once. Only then the rest is imported, which takes seconds.
        if "resume-from" not in values:
            settings = Settings.from_flat(asked_for(values))
            check_method(settings.strategy)
            check_read(settings)
    except (SettingsError, TaskError) as error:
        fail(error)

    from matu_flwr.launch.flower import LaunchError
    from matu_flwr.launch.launcher import check_cpus, check_start, resources_of, run_app
    from matu_flwr.run.checkpoint import CheckpointError
    from matu_flwr.run.history import HistoryError
    from matu_flwr.run.resume import settings_of
    from matu_flwr.strategies import prepared

    try:
        asked, found = settings_of(values)
        settings = prepared(asked)
        app_dir = expanded("--app", str(app_dir)).absolute()
        new = app_dir / "runs" / run_folder_name(settings)
        folder = Path(settings.out_dir) if settings.out_dir else new
        # The clients' state lies in the run's folder, unless a setting says otherwise. For a resumed run the folder is
        # looked up again, because it may have been moved since.
        inside = (folder / "client-state").is_dir() if found else not settings.state_dir
        # All that can be wrong is looked for before anything is made.
        check_start(app_dir, folder, resuming=found is not None)
        resources = resources_of(folder, nodes=nodes, cpus=cpus, gpus=gpus)
        check_cpus(resources["num_cpus"])
        values |= fewer_nodes(settings, named(values), resources["num_nodes"])
        check_before(settings, state_dir=folder if inside else Path(settings.state_dir))
        if not settings.out_dir:
            # Another run may have been started in the same second.
            folder = exclusive_folder(new)
        if inside:
            values.setdefault("state-dir", str(folder / "client-state"))
        values.pop("out-dir", None)
        begin = f"resuming after round {found.checkpoint.round}:" if found else "starting"
        screen.print(
            f"{begin} {settings.strategy} on suite {settings.suite} with {resources['num_nodes']} simulated "
            f"SuperNodes; everything it writes goes to {folder}",
            soft_wrap=True,
            markup=False,
        )
        run_app(app_dir, folder, run_config=values, **resources)
    except (CheckpointError, HistoryError, LaunchError, SettingsError, TaskError) as error:
        fail(error)
    except OSError as error:
        fail(f"the run cannot be started: {error}")
