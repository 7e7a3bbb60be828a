"""Contrastive pre-training of an image tower and a text tower (Radford et al., 2021).

A caption can be true of several images of a batch. Each of these pairs counts as a match (Yang et al., 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matu_flwr.backbones.mini_clip import MEAN, STD, TextTower, vision_tower
from matu_flwr.client.images import normalise
from matu_flwr.pretraining.corpus import Corpus
from matu_flwr.seeds import derive_seed, generator

MAX_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True)
class Recipe:
    """The settings of pre-training.

    Attributes
    ----------
    steps : int
        Number of optimiser steps.
    batch_size : int
        Images per step, each with a caption.
    lr : float
        Largest learning rate.
    weight_decay : float
        Weight decay of matrices; vectors and scalars have none.
    warmup : float
        Share of the steps in which the learning rate rises.
    clip_norm : float
        Largest L2 norm of the gradient.
    shift : int
        Largest shift of an image, in pixels.
    """

    steps: int
    batch_size: int
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip_norm: float = 1.0
    shift: int = 2


class Towers(nn.Module):
    """The image tower, the text tower, and the logarithm of the factor for cosines (the logit scale)."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = vision_tower()
        self.text = TextTower()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def contrastive_loss(images: Tensor, texts: Tensor, truth: Tensor, logit_scale: Tensor) -> Tensor:
    """Mean of two cross-entropies: of the images for each text, and of the texts for each image.

    The target is the uniform distribution over all partners that match.

    Parameters
    ----------
    images, texts : Tensor
        Embeddings, (B, E) float32, each row of length 1.
    truth : Tensor
        (B texts, B images) bool: whether a text is true of an image. The diagonal is true.
    logit_scale : Tensor
        Scalar that cosines are multiplied by.

    Returns
    -------
    Tensor
        Scalar float32.
    """
    logits = logit_scale * texts @ images.T  # (B texts, B images)
    positives = truth.float()
    by_text = -(F.log_softmax(logits, dim=1) * positives).sum(dim=1) / positives.sum(dim=1)
    by_image = -(F.log_softmax(logits, dim=0) * positives).sum(dim=0) / positives.sum(dim=0)
    return (by_text.mean() + by_image.mean()) / 2


def augment(images: Tensor, shift: int, rng: torch.Generator) -> Tensor:
    """Shift each image by up to `shift` pixels, and change its brightness and contrast a little.

    (B, S, S, 3) uint8 -> (B, S, S, 3) float32 in [0, 255]. Images are not turned, mirrored or recoloured:
    captions speak of directions, letters and colours, and must stay true.
    """
    count, size = images.shape[:2]
    padded = F.pad(images.permute(0, 3, 1, 2).float(), [shift] * 4, mode="replicate")
    offset = torch.randint(0, 2 * shift + 1, (count, 2), generator=rng)
    rows = offset[:, :1] + torch.arange(size)  # (B, S)
    columns = offset[:, 1:] + torch.arange(size)
    moved = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, S, S, 3)
    gain = 1 + 0.15 * (2 * torch.rand(count, 1, 1, 1, generator=rng) - 1)
    bias = 20 * (2 * torch.rand(count, 1, 1, 1, generator=rng) - 1)
    return (moved * gain + bias).clamp_(0, 255)


def pretrain(corpus: Corpus, recipe: Recipe, seed: int, progress: Callable[[int, float], None]) -> Towers:
    """Train both towers. The same corpus, recipe, seed and number of CPU threads give the same weights.

    Parameters
    ----------
    corpus : Corpus
        Images and facts.
    recipe : Recipe
        The settings.
    seed : int
        Seed of the initial weights, the order of images, the captions and the augmentation.
    progress : callable
        Called after each step with its number, from 1, and its loss.

    Returns
    -------
    Towers
        In evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "pretraining", "weights"))
        towers = Towers()
    decayed = [p for p in towers.parameters() if p.ndim > 1]
    others = [p for p in towers.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    rng = generator(seed, "pretraining", "batches")
    noise = torch.Generator().manual_seed(derive_seed(seed, "pretraining", "augmentation"))
    order = rng.permutation(len(corpus.facts))
    for step in range(1, recipe.steps + 1):
        if len(order) < recipe.batch_size:
            order = rng.permutation(len(corpus.facts))
        rows, order = order[: recipe.batch_size], order[recipe.batch_size :]
        texts, truth = corpus.captions(rows, rng)
        pixels = augment(torch.from_numpy(corpus.images[rows]), recipe.shift, noise)
        seen = F.normalize(towers.vision(normalise(pixels, MEAN, STD)), dim=-1)
        loss = contrastive_loss(seen, towers.text.encode(texts), truth, towers.logit_scale.exp())
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * rate(step, recipe.steps, recipe.warmup)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(towers.parameters(), recipe.clip_norm)
        optimizer.step()
        # The scale stays at 100 or below, as in CLIP.
        with torch.no_grad():
            towers.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        progress(step, loss.item())
    return towers.eval()


def rate(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate at a step; the first step is 1.

    It rises to 1 in the first `warmup` share of the steps, then falls to 0 along a cosine.
    """
    rising = warmup * steps
    if step <= rising:
        return step / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
