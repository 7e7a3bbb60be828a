"""Weights and their card: one safetensors file in float16, and what it was made of."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from matu_flwr import digests
from matu_flwr.backbones.mini_clip import NAME
from matu_flwr.files import replacing, write_json
from matu_flwr.pretraining.contrastive import Recipe, Towers
from matu_flwr.pretraining.evaluation import zero_shot_accuracy
from matu_flwr.pretraining.scenes import FONTS, KINDS


def write(towers: Towers, folder: Path, made: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Write `<NAME>.safetensors` and `<NAME>.json`; returns the card.

    The towers are rounded to float16 first, so that the card's accuracies are those of the file.

    Parameters
    ----------
    towers : Towers
        Changed in place: rounded.
    folder : Path
        Made if missing.
    made : dict
        What the card says beside what is found here: sources, seed, pool, seconds, command, threads.
    recipe : Recipe
        Of the training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = {key: tensor.half().contiguous() for key, tensor in towers.state_dict().items()}
    towers.load_state_dict({key: tensor.float() for key, tensor in half.items()})
    path = folder / f"{NAME}.safetensors"
    with replacing(path) as temporary:
        save_file(half, temporary)
    card = {
        "name": NAME,
        "sha256": digests.of_file(path),
        "bytes": path.stat().st_size,
        "parameters": {part: sum(p.numel() for p in getattr(towers, part).parameters()) for part in ("vision", "text")},
        "data": {**made, "kinds of scenes": {kind: share for kind, (_, share) in KINDS.items()}, "fonts": list(FONTS)},
        "recipe": asdict(recipe),
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "date": datetime.now(UTC).date().isoformat(),
        "zero-shot on held-out families": zero_shot_accuracy(towers.vision, towers.text),
    }
    write_json(path.with_suffix(".json"), card)
    return card
