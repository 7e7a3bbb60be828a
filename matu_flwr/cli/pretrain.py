"""`matu pretrain`: make the pre-trained weights of the small default backbone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from matu_flwr.cli.ui import console, fail


def pretrain(
    out: Annotated[Path, typer.Argument(help="Folder for the weights and their card.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.", min=1)] = 3000,
    batch_size: Annotated[int, typer.Option(help="Image-caption pairs per step.", min=2)] = 256,
    pool: Annotated[int, typer.Option(help="Number of scenes to draw.", min=2)] = 120_000,
    seed: Annotated[int, typer.Option(help="Seed of everything random.", min=0)] = 0,
    threads: Annotated[
        int, typer.Option(help="CPU threads; another number gives slightly different weights.", min=1)
    ] = 2,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the real data sets (see docs/backbones.md). Default: use drawn scenes only."),
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder for the decoded images of the real data sets.")] = None,
) -> None:
    """Pre-train both towers of the small default backbone on drawn scenes, and on real images if you have them."""
    import torch

    from matu_flwr.config import paths
    from matu_flwr.config.settings import Settings, SettingsError
    from matu_flwr.files import obstacle
    from matu_flwr.pretraining import card, contrastive, corpus
    from matu_flwr.tasks import TaskError

    screen = console()
    # After an hour of training it would be late to find out.
    if reason := obstacle(out.absolute()):
        fail(f"nothing can be written to {out}: {reason}; name another folder")
    torch.set_num_threads(threads)
    began = time.monotonic()
    recipe = contrastive.Recipe(steps, batch_size)
    try:
        built, sources = corpus.build(
            pool, seed, processes=threads, data_dir=data_dir, cache_dir=cache_dir or paths.cache_dir(Settings())
        )
    except (SettingsError, TaskError) as error:
        fail(error)
    if batch_size > len(built.facts):
        fail(f"batch-size = {batch_size} is larger than the corpus of {len(built.facts)} images: choose a smaller one")
    for source in sources:
        screen.print(f"{source['images']:>8,} images  {source['name']} ({source['licence']})")
    recent: list[float] = []

    def tell(step: int, loss: float) -> None:
        recent.append(loss)
        if step % max(1, steps // 20) == 0:
            window = recent[-max(1, steps // 20) :]
            pace = (time.monotonic() - began) / step
            screen.print(f"step {step:>6} of {steps}  loss {sum(window) / len(window):.3f}  {pace:.2f} s per step")

    towers = contrastive.pretrain(built, recipe, seed, tell)
    options = f"--steps {steps} --batch-size {batch_size} --pool {pool} --seed {seed} --threads {threads}"
    made = {
        "sources": sources,
        "pool": pool,
        "seed": seed,
        "command": f"matu pretrain OUT {options}" + (" --data-dir DATA" if data_dir else ""),
        "seconds": round(time.monotonic() - began),
    }
    written = card.write(towers, out, made, recipe)
    for family, found in written["zero-shot on held-out families"].items():
        screen.print(f"  {family:<24}zero-shot {found['accuracy']:.3f}, chance {found['chance']:.3f}")
    screen.print(f"{written['bytes']:,} bytes in {out}, SHA-256 {written['sha256'][:16]}…")
