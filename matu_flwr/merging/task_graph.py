"""Which tasks point the same way (method, server steps 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from matu_flwr.merging.options import MergeOptions


class SignAgreement:
    """Counts, block by block, where the signs of each pair of T tasks agree and where both are non-zero."""

    def __init__(self, num_tasks: int) -> None:
        self.d = 0
        self.dot = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)  # Σ_i sgn τ̂^t[i] · sgn τ̂^t'[i]
        self.both = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)  # Σ_i 1[both signs non-zero]

    @classmethod
    def of(cls, signs: Tensor) -> SignAgreement:
        """Counts of a block: `signs` (T, B) int8 in {-1, 0, 1}; B < 2^24, so that float32 products count exactly."""
        counts = cls(len(signs))
        plane = signs.float()
        counts.dot += (plane @ plane.T).cpu()
        plane.abs_()
        counts.both += (plane @ plane.T).cpu()
        counts.d = signs.shape[1]
        return counts

    def add(self, other: SignAgreement) -> None:
        """Add the counts of other parameters of the same tasks."""
        self.dot += other.dot
        self.both += other.both
        self.d += other.d

    def graph(self, tasks: list[str], options: MergeOptions) -> TaskGraph:
        """The task graph of all blocks added so far."""
        z = self.dot / self.both.clamp(min=1).sqrt()
        norm = self.both.clamp(min=1) if options.similarity == "support" else max(self.d, 1)
        similarity = 0.5 * (1 + self.dot / norm)
        return TaskGraph(tasks, similarity, z, related_tasks(tasks, similarity, z, options))


@dataclass(frozen=True)
class TaskGraph:
    """Similarity of tasks and who learns from whom.

    Attributes
    ----------
    tasks : list of str
        Order of the rows and columns.
    similarity : Tensor
        S, (T, T) float64 in [0, 1], symmetric; ½ = unrelated.
    z : Tensor
        (T, T) float64: (agreements − disagreements) / √(parameters where both signs are non-zero). Standard normal for
        unrelated tasks, if parameters were independent.
    related : dict of str to list of str
        Z^t: related tasks of each task, the most similar first.
    """

    tasks: list[str]
    similarity: Tensor
    z: Tensor
    related: dict[str, list[str]]


def related_tasks(tasks: list[str], similarity: Tensor, z: Tensor, options: MergeOptions) -> dict[str, list[str]]:
    """Z^t: the κ most similar other tasks that reach ε; ties in the order of names."""
    score = z if options.epsilon_unit == "z" else similarity
    related = {}
    for row, task in enumerate(tasks):
        candidates = [
            (-float(similarity[row, column]), other)
            for column, other in enumerate(tasks)
            if column != row and float(score[row, column]) >= options.epsilon
        ]
        related[task] = [other for _, other in sorted(candidates)[: options.kappa]]
    return related


def relation_weights(graph: TaskGraph, options: MergeOptions) -> dict[str, dict[str, float]]:
    """Weight of each related task by task: S^{t,t'}, or its excess over ½, max(0, 2S − 1)."""
    index = {task: row for row, task in enumerate(graph.tasks)}
    weights: dict[str, dict[str, float]] = {}
    for task, others in graph.related.items():
        weights[task] = {}
        for other in others:
            s = float(graph.similarity[index[task], index[other]])
            weights[task][other] = s if options.relation_weight == "similarity" else max(0.0, 2 * s - 1)
    return weights
