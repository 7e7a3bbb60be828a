"""MaT-FL: models of different tasks, mixed by how alike their weights have become.

Cai, Chen, Liu, Zhang, Xu: Many-Task Federated Learning: A New Problem Setting and A Simple Baseline. CVPR Workshops
2023.

A node of the mixing is a (client, task) pair, because the paper's clients have one task each. δ_i = θ_i − mean_j θ_j
over the backbone. `matfl.mixing = grouping` clusters the δ (agglomerative, cosine distance, average linkage) into
`matfl.groups` and gives every node the mean of its group; `soft` gives node i the mean with weights
W_ij ∝ max(cos(δ_i, δ_j) + th, 0). Every node gets a vector of its own back: as much travels as under per-task FedAvg,
and the server keeps one vector per node. Heads are averaged per task, as under the other methods; the paper's decoders
stay with their nodes, which is `train.heads = local`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from matu_flwr.client.rule import Rule, Separate
from matu_flwr.config.sections import MatFLSettings
from matu_flwr.config.settings import Settings
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.model_info import ModelInfo
from matu_flwr.federation.registration import Client
from matu_flwr.merging import ClientUpdate, SeparateTaskVectors, TaskGraph, TaskVectors
from matu_flwr.merging.blocks import blocks

NodeName = tuple[str, str]  # client, task


class MaTFL(ManyTaskStrategy):
    """Mixing among similar nodes; the server has no one model of a task, so there is no server test and no artefact."""

    about = "models mixed by the similarity of their weights"
    section = "matfl"

    rule: ClassVar[type[Rule]] = Separate
    kept: ClassVar[tuple[str, ...]] = (*ManyTaskStrategy.kept, "nodes")

    def __init__(self, settings: Settings, model: ModelInfo, **arguments: Any) -> None:
        super().__init__(settings, model, **arguments)
        self.nodes: dict[NodeName, Tensor] = {}

    def downlink_vector(self, client: Client) -> TaskVectors | None:
        """The client's nodes, mixed; None before the first round."""
        if not any((client.name, task) in self.nodes for task in client.tasks):
            return None
        origin = torch.zeros(self.d)
        return SeparateTaskVectors({task: self.nodes.get((client.name, task), origin) for task in client.tasks})

    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Mix the nodes that trained in this round; the others stay as they were."""
        trained = {
            (update.client, task): update.vectors.reconstruct(task)
            for update in sorted(updates, key=lambda update: update.client)
            for task in sorted(update.num_examples)
        }
        names, vectors = list(trained), list(trained.values())
        weights = mixing(cosines(vectors), self.settings.matfl)
        for row, name in enumerate(names):
            self.nodes[name] = mix(vectors, weights[row])
        return None


def cosines(vectors: list[Tensor]) -> Tensor:
    """Cosine similarity of δ_i = θ_i − mean_j θ_j, (n, n) float64; 1 on the diagonal, 0 where a δ is zero."""
    gram = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for start, stop in blocks(vectors[0].numel()):
        part = torch.stack([vector[start:stop] for vector in vectors]).double()  # (n, B)
        part -= part.mean(dim=0)
        gram += part @ part.T
    norms = gram.diagonal().clamp(min=0).sqrt()
    scale = norms[:, None] * norms[None, :]
    similarity = torch.where(scale > 0, gram / scale.clamp(min=1e-300), 0.0).clamp(-1, 1)
    similarity = (similarity + similarity.T) / 2
    similarity.fill_diagonal_(1.0)
    return similarity


def mixing(similarity: Tensor, options: MatFLSettings) -> Tensor:
    """W, (n, n) float64, from the cosines: every row sums to one."""
    if options.mixing == "soft":
        weights = (similarity + options.threshold).clamp(min=0)
    else:
        from sklearn.cluster import AgglomerativeClustering

        count = len(similarity)
        if count <= options.groups:
            return torch.eye(count, dtype=torch.float64)
        clustering = AgglomerativeClustering(n_clusters=options.groups, metric="precomputed", linkage="average")
        groups = torch.as_tensor(clustering.fit_predict((1 - similarity).numpy()))
        weights = (groups[:, None] == groups[None, :]).double()
    mixed: Tensor = weights / weights.sum(dim=1, keepdim=True)
    return mixed


def mix(vectors: list[Tensor], weights: Tensor) -> Tensor:
    """Σ_j W_j θ_j, (d,) float32, in float64 per block."""
    mixed = torch.empty_like(vectors[0])
    for start, stop in blocks(mixed.numel()):
        block = torch.zeros(stop - start, dtype=torch.float64)
        for weight, vector in zip(weights.tolist(), vectors, strict=True):
            if weight:
                block += weight * vector[start:stop].double()
        mixed[start:stop] = block
    return mixed
