"""`matu heads`: write a file with the zero-shot heads of a suite's tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matu_flwr.cli.ui import fail


def heads(
    out: Annotated[Path, typer.Argument(help="File to write. A run takes it with -c backbone.heads-file=FILE.")],
    suite: Annotated[str, typer.Option(help="Suite name or file.")] = "offline",
    backbone: Annotated[str, typer.Option(help="Backbone whose text tower makes the heads.")] = "vit_mini_clip_32",
    text_weights: Annotated[
        Path | None, typer.Option(help="File with the whole CLIP model for open_clip. Default: open_clip downloads it.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data sets. Default: MATU_DATA_DIR.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the run; generated tasks depend on it.")] = 0,
) -> None:
    """Write the zero-shot heads of a suite's tasks into a file, so that nodes need no text tower."""
    from matu_flwr.backbones import BackboneError, Prompts
    from matu_flwr.backbones.zero_shot import write_heads
    from matu_flwr.config import paths
    from matu_flwr.config.locations import absolute_paths
    from matu_flwr.config.settings import Settings, SettingsError
    from matu_flwr.tasks import TaskError, load_suite, load_task

    try:
        settings = Settings.from_flat(absolute_paths({"data-dir": str(data_dir or "")}, Path.cwd()))
        data, cache = paths.data_dir(settings), paths.cache_dir(settings)
        # Only the class names are used, and they are the same at every image size.
        prompts = {
            name: Prompts(
                load_task(spec, image_size=32, seed=seed, data_dir=data, cache_dir=cache).classes, spec.templates
            )
            for name, spec in load_suite(suite).tasks.items()
        }
        write_heads(out, backbone, prompts, str(text_weights) if text_weights else "")
    except (BackboneError, SettingsError, TaskError) as error:
        fail(error)
    except OSError as error:
        fail(f"cannot write {out}: {error.strerror or error}; name another file")
    typer.echo(f"{len(prompts)} heads for {backbone} written to {out}")
