"""Measures zero-shot accuracy on families of generated tasks whose drawings are not used in pre-training.

The family "shapes" is left out, because pre-training draws figures with the same outlines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from matu_flwr.backbones.mini_clip import MEAN, STD, TextTower
from matu_flwr.backbones.zero_shot import Prompts, zero_shot_head
from matu_flwr.client.images import normalise
from matu_flwr.pretraining.scenes import SIZE
from matu_flwr.seeds import generator
from matu_flwr.tasks.loaders.generated import FAMILIES, draw_images, draw_labels

TEMPLATES = {
    "digits": ("the digit {}", "the number {}", "a photo of the number: {}"),
    "letters": ("the letter {}", "a letter {}", "the capital letter {}"),
    "orientations": ("lines at {}", "stripes at {}", "a pattern of lines at an angle of {}"),
    "colours": ("a {} surface", "something {}", "a {} thing"),
    "counts": ("{} things", "{} marks", "{} shapes"),
}
# Images of each family and style.
IMAGES = 600


def zero_shot_accuracy(vision: nn.Module, text: TextTower, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Measure the accuracy on newly drawn images of each "family/style", beside that of chance."""
    found: dict[str, dict[str, Any]] = {}
    for name in TEMPLATES:
        family = FAMILIES[name]
        head = zero_shot_head(_Encoder(text), Prompts(family.classes, TEMPLATES[name]))
        for style in family.styles:
            rng = generator(seed, "pretraining", "held-out", name, style)
            labels = draw_labels(family, IMAGES, rng)
            images = torch.from_numpy(draw_images(family, style, labels, SIZE, rng))
            with torch.inference_mode():
                logits = head(vision(normalise(images, MEAN, STD)))
            accuracy = float((logits.argmax(dim=1).numpy() == labels).mean())
            found[f"{name}/{style}"] = {"accuracy": round(accuracy, 4), "chance": round(1 / len(family.classes), 4)}
    return found


class _Encoder:
    """The text tower with a logit scale of 1. The scale does not change which class has the largest score."""

    fingerprint, logit_scale = "", 1.0

    def __init__(self, text: TextTower) -> None:
        self.text = text

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        return self.text.encode(texts)
