"""The images for pre-training: drawn scenes, and training images of real data sets if a data folder is given."""

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

# Scenes that share one stream of random numbers. So the scenes do not depend on the number of processes.
CHUNK = 2048


@dataclass(frozen=True)
class RealSet:
    """A real data set whose training images are used.

    Attributes
    ----------
    words : str
        What its pictures are, as a caption says it.
    licence : str
        Its licence.
    most : int
        Largest number of images to use.
    """

    words: str
    licence: str
    most: int


# All have free licences. None is in the suite real-12, which therefore shows how the weights do on unseen data sets.
REAL_SETS = {
    "fashion_mnist": RealSet("a photo of clothes", "MIT", 6000),
    "omniglot": RealSet("a handwritten character", "MIT", 3000),
    "pneumonia_xray": RealSet("a chest x-ray", "CC BY 4.0", 2000),
    "monkeys10": RealSet("a photo of a monkey", "CC0", 2000),
}
REAL_SUITE = "real-20"


@dataclass(frozen=True)
class Corpus:
    """Images, and the facts that are true of each.

    Attributes
    ----------
    images : ndarray
        (N, 32, 32, 3) uint8, RGB.
    facts : list of frozenset of str
        The facts of each of the N images; see `matu_flwr.pretraining.scenes`.
    vocabulary : dict of str to int
        All K different facts, each with its column of `known`.
    known : Tensor
        (N, K) float32: 1 where a fact is true of an image, else 0.
    """

    images: npt.NDArray[np.uint8]
    facts: list[Facts]
    vocabulary: dict[str, int]
    known: Tensor

    def captions(self, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> tuple[list[str], Tensor]:
        """Write a new caption for each of some images, and say which of these images it is true of.

        Parameters
        ----------
        rows : ndarray of int64, shape (B,)
            The images.
        rng : numpy.random.Generator
            Chooses facts and words.

        Returns
        -------
        texts : list of str
            B captions.
        truth : Tensor
            (B captions, B images) bool.
        """
        texts, stated = [], torch.zeros(len(rows), len(self.vocabulary))
        for place, row in enumerate(rows):
            text, said = caption(self.facts[row], rng)
            texts.append(text)
            stated[place, [self.vocabulary[fact] for fact in said]] = 1
        # A caption is true of an image if the image has all of the facts that it states.
        return texts, stated @ self.known[torch.from_numpy(rows)].T >= stated.sum(dim=1, keepdim=True)


def drawn(count: int, seed: int, processes: int = 1) -> tuple[npt.NDArray[np.uint8], list[Facts]]:
    """Draw `count` scenes: images (count, 32, 32, 3) uint8, and the facts of each."""
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
    """Load the training images of `REAL_SETS`, with the facts of each and an entry of the card for each set.

    Test images are not used.
    """
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
    """Make the corpus.

    Parameters
    ----------
    pool : int
        Number of scenes to draw.
    seed : int
        Seed of the scenes, and of the choice among real images.
    processes : int
        Number of processes that draw at the same time.
    data_dir, cache_dir : Path, optional
        Folder of the real data sets, and a folder for decoded images. If one is missing, only scenes are used.

    Returns
    -------
    corpus : Corpus
        Scenes first, then real images.
    sources : list of dict
        For the card: name, number of images and licence of each source.
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
