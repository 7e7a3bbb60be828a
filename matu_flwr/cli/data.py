"""The commands `matu data prepare` and `matu data check`: get the data sets of a suite, and check them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from matu_flwr.cli.ui import console, fail, print_error

data_app = typer.Typer(
    help="Get the data sets of a suite, check them, and see how they would be dealt to clients.", no_args_is_help=True
)

SuiteArgument = Annotated[str, typer.Argument(help="Suite name or file.", metavar="SUITE")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the data sets. Default: MATU_DATA_DIR.")]
CacheDir = Annotated[Path | None, typer.Option(help="Folder for decoded images. Default: the one that a run uses.")]
ImageSize = Annotated[int, typer.Option(help="Side of the decoded images, in pixels.", min=8)]
Seed = Annotated[
    int, typer.Option(help="Seed of the run that will use the images; it decides which ones a limited task takes.")
]


@data_app.command()
def prepare(
    suite: SuiteArgument,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    image_size: ImageSize = 32,
    seed: Seed = 0,
) -> None:
    """Download data sets, say where to put those that cannot be downloaded, and write decoded images for runs."""
    from matu_flwr.tasks import TaskError, load_suite
    from matu_flwr.tasks.prepare import Prepared, prepare_suite

    screen = console()
    table = Table("task", *(_right(name) for name in ("train", "test", "classes", "MB", "seconds")), "status")

    def row(result: Prepared) -> None:
        data = result.data
        sizes = [str(len(data.train_labels)), str(len(data.test_labels)), str(len(data.classes))] if data else [""] * 3
        size = f"{result.megabytes:.1f}" if data else ""
        table.add_row(result.task, *sizes, size, f"{result.seconds:.1f}", "ready" if data else "failed")

    folders = _folders(data_dir, cache_dir)
    try:
        loaded = load_suite(suite)
        with _bars(screen) as bars:

            def progress(task: str, file: str):  # type: ignore[no-untyped-def]
                bar = bars.add_task(f"{task}: {file}", total=None)
                return lambda have, total: bars.update(bar, completed=have, total=total or None)

            results = prepare_suite(
                loaded,
                image_size=image_size,
                seed=seed,
                data_dir=folders[0],
                cache_dir=folders[1],
                progress=progress,
                done=row,
            )
    except TaskError as error:
        fail(error)
    screen.print(table)
    for result in results:
        if result.data and result.data.remarks:
            screen.print(f"warning: task {result.task!r}: {result.data.remarks}", style="yellow", soft_wrap=True)
    failed = [result for result in results if result.error]
    for result in failed:
        print_error(result.error)
    if places := [result for result in failed if result.to_place]:
        screen.print("files that these tasks need, and where to put them:")
        for result in places:
            screen.print(f"  {result.task}: {result.to_place}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


@data_app.command()
def check(
    suite: SuiteArgument,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    image_size: ImageSize = 64,
    seed: Seed = 0,
    sheets: Annotated[
        Path | None, typer.Option(help="Folder for the contact sheets. Default: contact-sheets/SUITE in the cache.")
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Count images that cannot be read, instead of stopping at the first.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Also print the numbers found, as canaries to put into a suite file.")
    ] = False,
) -> None:
    """Look at the files as a run would use them: counts, canaries, oddities, images in both parts, contact sheets."""
    import yaml

    from matu_flwr.tasks import TaskError, load_suite
    from matu_flwr.tasks.prepare import Checked, check_suite

    screen = console()
    table = Table("task", *(_right(name) for name in ("train", "test", "classes", "duplicates")), "canary")

    def row(result: Checked) -> None:
        found = result.found
        sizes = [""] * 4
        if found:
            used = (_used(result.train, found.train), _used(result.test, found.test))
            sizes = [*used, str(found.classes), str(result.duplicates)]
        table.add_row(result.task, *sizes, result.canary or "FAILED")

    data, cache = _folders(data_dir, cache_dir)
    target = (sheets or cache / "contact-sheets" / Path(suite).stem).expanduser().absolute()
    try:
        results = check_suite(
            load_suite(suite),
            image_size=image_size,
            seed=seed,
            data_dir=data,
            cache_dir=cache,
            sheets=target,
            skip_broken=skip_broken,
            done=row,
        )
    except TaskError as error:
        fail(error)
    screen.print(table)
    screen.print("how images were divided into training and test images:")
    for result in results:
        screen.print(f"  {result.task}: {result.split or 'the suite does not say'}", soft_wrap=True)
    for result in results:
        for warning in result.warnings:
            screen.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    for result in results:
        if result.error:
            print_error(result.error)
    if any(result.sheet for result in results):
        screen.print(f"contact sheets: {target}", soft_wrap=True)
    if record:
        found = {
            # Only if all images were looked at can it be said that no image is in both parts.
            result.task: {
                "canary": result.found.model_copy(update={"total": None, "disjoint": _disjoint(result)}).described()
            }
            for result in results
            if result.found
        }
        typer.echo(yaml.safe_dump(found, sort_keys=False, width=1000).rstrip())
    if any(result.error for result in results):
        raise typer.Exit(1)


def _used(used: int, whole: int | None) -> str:
    """How many images a run would use, and of how many."""
    return str(used) if used == whole else f"{used} of {whole}"


def _disjoint(result) -> bool | None:  # type: ignore[no-untyped-def]
    whole = result.found and (result.train, result.test) == (result.found.train, result.found.test)
    return True if whole and not result.duplicates else None


def _folders(data_dir: Path | None, cache_dir: Path | None) -> tuple[Path | None, Path]:
    """Return the data folder and the cache folder: those of a run, unless the command names others."""
    from matu_flwr.config import paths
    from matu_flwr.config.locations import absolute_paths
    from matu_flwr.config.settings import Settings, SettingsError

    named = {key: str(path) for key, path in (("data-dir", data_dir), ("cache-dir", cache_dir)) if path}
    try:
        settings = Settings.from_flat(absolute_paths(named, Path.cwd()))
        return paths.data_dir(settings), paths.cache_dir(settings)
    except SettingsError as error:
        fail(error)


def _bars(console: Console) -> Progress:
    columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    return Progress(*columns, console=console, transient=True)


def _right(name: str):  # type: ignore[no-untyped-def]
    from rich.table import Column

    return Column(name, justify="right")
