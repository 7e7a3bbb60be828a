"""`matu export`: write a task's fine-tuned model in the format of timm or PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matu_flwr.cli.ui import fail


def export(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    task: Annotated[str, typer.Argument(help="Name of one of the run's tasks.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; it must be new or empty.")],
    unified: Annotated[
        bool,
        typer.Option(
            "--unified", help="Use what the unified vector of all tasks keeps of the task, instead of its task vector."
        ),
    ] = False,
) -> None:
    """Write a task's fine-tuned model as a timm checkpoint, or as a PEFT adapter folder if LoRA was trained."""
    from matu_flwr.backbones import BackboneError
    from matu_flwr.models.artefacts import ArtefactError
    from matu_flwr.models.export import export_model

    try:
        for name, path in export_model(folder, task, target, "unified" if unified else "task-vector").items():
            typer.echo(f"{name:<12}{path}")
    except (ArtefactError, BackboneError) as error:
        fail(error)
