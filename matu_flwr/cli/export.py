"""`matu export`: write a task's fine-tuned model in a format that others read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matu_flwr.cli.ui import fail


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
    from matu_flwr.models.artefacts import ArtefactError
    from matu_flwr.models.export import export_model

    try:
        for name, path in export_model(folder, task, target, "unified" if unified else "task-vector").items():
            typer.echo(f"{name:<12}{path}")
    except (ArtefactError, BackboneError) as error:
        fail(error)
