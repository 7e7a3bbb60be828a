"""What is pre-trained on: a pool of drawn scenes, and training parts of real data sets where they are at hand."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from matu_flwr.pretraining.captions import caption
from matu_flwr.pretraining.scenes import SIZE, Facts, draw_scene
from matu_flwr.seeds import generator
from matu_flwr.tasks import load_suite, load_task

CHUNK = 2048  # scenes of one random stream: the pool does not depend on the number of processes


@dataclass(frozen=True)
class RealSet:
    """A data set whose training images are used: words for it, its licence, and how many images at most."""

    words: str
    licence: str
    most: int


# Freely licensed, and none of them in the suite real-12: that suite shows what carries over to data never seen.
REAL_SETS = {
    "fashion_mnist": RealSet("a photo of clothes", "MIT", 6000),
    "omniglot": RealSet("a handwritten character", "MIT", 3000),
    "pneumonia_xray": RealSet("a chest x-ray", "CC BY 4.0", 2000),
    "monkeys10": RealSet("a photo of a monkey", "CC0", 2000),
}
REAL_SUITE = "real-20"


@dataclass(frozen=True)
class Corpus:
    """Images with what is true of each.

    Attributes
    ----------
    images : ndarray
        (N, 32, 32, 3) uint8, RGB.
    facts : list of frozenset of str
        N; see `matu_flwr.pretraining.scenes`.
    vocabulary : dict of str to int
        Every fact, numbered.
    known : Tensor
        (N, K) float32, 1 where a fact is true of an image.
    """

    images: npt.NDArray[np.uint8]
    facts: list[Facts]
    vocabulary: dict[str, int]
    known: Tensor

    def captions(self, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> tuple[list[str], Tensor]:
        """Fresh captions of some images, and of which of these images each is true: (B captions, B images) bool."""
        texts, stated = [], torch.zeros(len(rows), len(self.vocabulary))
        for place, row in enumerate(rows):
            text, said = caption(self.facts[row], rng)
            texts.append(text)
            stated[place, [self.vocabulary[fact] for fact in said]] = 1
        return texts, stated @ self.known[torch.from_numpy(rows)].T >= stated.sum(dim=1, keepdim=True)


def drawn(count: int, seed: int, processes: int = 1) -> tuple[npt.NDArray[np.uint8], list[Facts]]:
    """`count` scenes: (count, 32, 32, 3) uint8 and their facts."""
    chunks = [(seed, start, min(CHUNK, count - start)) for start in range(0, count, CHUNK)]
    if processes == 1:
        parts = [_chunk(*chunk) for chunk in chunks]
    else:
        with ProcessPoolExecutor(processes) as pool:
            parts = list(pool.map(_chunk, *zip(*chunks, strict=True)))
    return np.concatenate([images for images, _ in parts]), [facts for _, found in parts for facts in found]


def _chunk(seed: int, start: int, count: int) -> tuple[npt.NDArray[np.uint8], list[Facts]]:
    rng = generator(seed, "pretraining", "scenes", start)
    scenes = [draw_scene(rng) for _ in range(count)]
    return np.stack([scene.image for scene in scenes]), [scene.facts for scene in scenes]


def real(data_dir: Path, cache_dir: Path, seed: int) -> tuple[npt.NDArray[np.uint8], list[Facts], list[dict[str, Any]]]:
    """Training images of `REAL_SETS`, their facts, and a line per set for the card. Test images are not touched."""
    images, facts, sources = [], [], []
    for name, chosen in REAL_SETS.items():
        spec = replace(load_suite(REAL_SUITE).tasks[name], max_train=chosen.most)
        data = load_task(spec, image_size=SIZE, seed=seed, data_dir=data_dir, cache_dir=cache_dir)
        images.append(np.asarray(data.train_images))
        words = [name.replace("_", " ") for name in data.classes]
        facts += [
            frozenset({"kind=photo", f"set={chosen.words}", f"name={words[label]}"}) for label in data.train_labels
        ]
        sources.append({"name": name, "images": len(data.train_labels), "licence": chosen.licence, "part": "train"})
    return np.concatenate(images), facts, sources


def build(
    pool: int, seed: int, *, processes: int = 1, data_dir: Path | None = None, cache_dir: Path | None = None
) -> tuple[Corpus, list[dict[str, Any]]]:
    """The corpus, and where it comes from.

    Parameters
    ----------
    pool : int
        Drawn scenes.
    seed : int
        Of everything drawn.
    processes : int
        That draw side by side.
    data_dir, cache_dir : Path, optional
        Folder of the real data sets, and one for their decoded images; without the first, drawn scenes alone.
    """
    images, facts = drawn(pool, seed, processes)
    sources: list[dict[str, Any]] = [{"name": "drawn scenes", "images": pool, "licence": "Apache-2.0"}]
    if data_dir is not None and cache_dir is not None:
        more, more_facts, more_sources = real(data_dir, cache_dir, seed)
        images, facts, sources = np.concatenate([images, more]), facts + more_facts, sources + more_sources
    vocabulary = {fact: index for index, fact in enumerate(sorted(frozenset().union(*facts)))}
    known = torch.zeros(len(facts), len(vocabulary))
    for row, found in enumerate(facts):
        known[row, [vocabulary[fact] for fact in found]] = 1
    return Corpus(images, facts, vocabulary, known), sources
