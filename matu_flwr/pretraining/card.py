"""Writes the pre-trained weights, and beside them a JSON file, the card, which says how they were made."""

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
    """Write `<NAME>.safetensors` (float16) and the card `<NAME>.json`.

    Parameters
    ----------
    towers : Towers
        The trained towers. Their weights are rounded to float16 in place.
    folder : Path
        Where the files go; made if missing.
    made : dict
        Entries of the card that are not known here: sources, seed, pool, seconds, command, threads.
    recipe : Recipe
        The settings of the training.

    Returns
    -------
    dict
        The card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Rounded first, so that the accuracies on the card are those of the file.
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
