"""The command `matu compare`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from matu_flwr.cli.ui import console, fail

# What is compared if nothing is named: MaTU and the simplest methods to compare it with.
SMALL = "matu,pertask-fedavg,fedavg,individual"


def compare(
    strategies: Annotated[
        str,
        typer.Option(help="Methods, comma-separated, or 'all'. Variants: matu:paper, METHOD:KEY=VALUE+KEY=VALUE."),
    ] = SMALL,
    suite: Annotated[str | None, typer.Option(help="Suite name or file. Default: offline.")] = None,
    seeds: Annotated[
        int, typer.Option(help="Number of seeds; each method runs once per seed, from --seed upwards.", min=1)
    ] = 3,
    seed: Annotated[int | None, typer.Option(help="First seed. Default: 0.", min=0)] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of federated training.")] = None,
    nodes: Annotated[int, typer.Option(help="Number of SuperNodes to simulate.", min=1)] = 10,
    cpus: Annotated[int, typer.Option(help="CPUs per client.", min=1)] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs per client; 0.25 lets four clients share one.", min=0)] = 0.0,
    side_by_side: Annotated[
        int,
        typer.Option(
            help="Runs at the same time. A single run already uses all cores if it has enough clients.", min=1
        ),
    ] = 1,
    out_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the comparison; the same folder again continues it. Default: comparisons/SUITE."),
    ] = None,
    run_config: Annotated[
        list[str] | None,
        typer.Option(
            "--run-config", "-c", help="Any setting, e.g. -c fedprox.mu=0.01; options of a method go to its runs only."
        ),
    ] = None,
    app_dir: Annotated[Path, typer.Option("--app", help="Folder of the Flower app.")] = Path(),
) -> None:
    """Run several methods on the same tasks with the same seeds, and write a comparison. Finished runs are kept."""
    from matu_flwr.config.locations import absolute_paths, expanded
    from matu_flwr.config.methods import CLASSES, check_method
    from matu_flwr.config.settings import Scalar, Settings, SettingsError, asked_for, parse_run_config
    from matu_flwr.run.before import check_before, check_read, fewer_nodes
    from matu_flwr.tasks import TaskError

    screen = console()
    listed = [name.strip() for name in strategies.split(",") if name.strip()]
    names = list(CLASSES) if strategies == "all" else listed
    try:
        values = parse_run_config(run_config or [])
        named = {"suite": suite, "seed": seed, "rounds": rounds}
        values |= {key: value for key, value in named.items() if value is not None}
        values |= absolute_paths(values, Path.cwd())
        settings = Settings.from_flat(asked_for(values))
        # A wrong name or file is told at once. Only then the rest is imported, which takes seconds.
        if not names:
            raise SettingsError(f"--strategies {strategies!r} names no method: name one or more, or 'all'")
        for name in names:
            check_method(name.partition(":")[0])
        check_read(settings)
    except (SettingsError, TaskError) as error:
        fail(error)

    from matu_flwr.compare.cells import plan_cells, run_cells
    from matu_flwr.compare.one_run import run_in_process
    from matu_flwr.compare.report import write_comparison
    from matu_flwr.compare.results import read_cell, rows_of
    from matu_flwr.launch.flower import LaunchError
    from matu_flwr.launch.launcher import check_cpus, check_start, claimed

    try:
        cells = plan_cells(names, seeds, values)
        app_dir = expanded("--app", str(app_dir)).absolute()
        named_dir = expanded("--out-dir", str(out_dir)) if out_dir else None
        target = (named_dir or app_dir / "comparisons" / Path(settings.suite).stem).absolute()
        # All that can be wrong is looked for before anything is made.
        check_start(app_dir, target, resuming=False)
        check_cpus(cpus)
        # Seeds change nothing of it.
        for cell in cells[: len(names)]:
            chosen = Settings.from_run_config(cell.values)
            fewer_nodes(chosen, asked_for(cell.values), nodes)
            check_before(chosen, Path(chosen.state_dir) if chosen.state_dir else target)

        def run(folder: Path, cell_values: dict[str, Scalar]) -> None:
            # A cell that was cut off starts again from its beginning, so checkpoints would only cost time and space.
            unasked: dict[str, Scalar] = {"state-dir": str(folder / "client-state"), "keep-checkpoints": 0}
            chosen = asked_for(cell_values)
            unasked |= fewer_nodes(Settings.from_run_config(cell_values), chosen, nodes)
            arguments = {
                "app_dir": str(app_dir),
                "home": str(target / ".flwr"),
                "run_config": {**{k: v for k, v in unasked.items() if k not in chosen}, **cell_values},
                "num_nodes": nodes,
                "num_cpus": cpus,
                "num_gpus": gpus,
            }
            run_in_process(folder, arguments, shown=side_by_side == 1)

        target.mkdir(parents=True, exist_ok=True)
        # A second command would remove the unfinished cells of the first.
        with claimed(target, "a comparison"):
            failed = run_cells(
                cells, target, run, side_by_side=side_by_side, say=lambda text: screen.print(text, soft_wrap=True)
            )
    except (LaunchError, SettingsError, TaskError) as error:
        fail(error)
    except OSError as error:
        fail(f"the comparison cannot be started or continued: {error}")
    except KeyboardInterrupt:
        screen.print(f"stopped by you; give the same command again to continue in {target}", soft_wrap=True)
        raise typer.Exit(130) from None
    results = [read_cell(cell, target, failed.get(cell, "")) for cell in cells]
    # The report lists what all cells have in common, so the seed is set back to its default.
    common = settings.model_copy(update={"seed": Settings().seed}).flat()
    options = {"--strategies": strategies, "--suite": suite or settings.suite, "--seeds": seeds}
    options |= {"--seed": settings.seed, "--nodes": nodes}
    options |= {"--rounds": rounds} if rounds is not None else {}
    # The report names the command that makes this comparison again.
    text = [f"{key} {shlex.quote(str(value))}" for key, value in options.items()]
    command = " ".join(["matu compare", *text, *(f"-c {shlex.quote(item)}" for item in run_config or [])])
    files = write_comparison(rows_of(results), results, common, command, target)
    typer.echo(files["md"].read_text(encoding="utf-8"))
    for kind, path in files.items():
        screen.print(f"{kind:<6}{path}", soft_wrap=True)
    if any(result.error for result in results):
        raise typer.Exit(1)
