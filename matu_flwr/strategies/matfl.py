"""MaT-FL: the models of different tasks are mixed, the more the more similar their weights have become.

Cai, Chen, Liu, Zhang, Xu: Many-Task Federated Learning: A New Problem Setting and A Simple Baseline. CVPR Workshops
2023.

The paper's clients have one task each. Here a client may have several, so what is mixed are nodes: (client, task)
pairs. θ_i is the backbone of node i, and δ_i = θ_i − mean_j θ_j is how it differs from the mean of all nodes.

- `matfl.mixing = grouping` clusters the δ_i into `matfl.groups` groups (agglomerative clustering, cosine distance,
  average linkage) and gives every node the mean of its group.
- `matfl.mixing = soft` gives node i a weighted mean of all nodes, W_ij ∝ max(cos(δ_i, δ_j) + `matfl.threshold`, 0).

Every node gets a vector of its own back. So as much travels as under per-task FedAvg, and the server keeps one vector
per node. Heads are averaged per task, as under the other methods. In the paper they (its decoders) stay with their
nodes: `train.heads = local` does that.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from matu_flwr.client.rule import Rule, Separate
from matu_flwr.config.sections import MatFLSettings
from matu_flwr.config.settings import Settings
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.model_info import ModelInfo
from matu_flwr.federation.registration import Client
from matu_flwr.merging import ClientUpdate, SeparateTaskVectors, TaskGraph, TaskVectors
from matu_flwr.merging.blocks import blocks

NodeName = tuple[str, str]
"""Client and task."""


class MaTFL(ManyTaskStrategy):
    """Mix the vectors of similar nodes; see `ManyTaskStrategy` for the parameters.

    Every holder of a task has its own model of it. So the server has no single model to test or to write out.
    """

    about = "models mixed by the similarity of their weights"
    section = "matfl"

    rule: ClassVar[type[Rule]] = Separate
    kept: ClassVar[tuple[str, ...]] = (*ManyTaskStrategy.kept, "nodes")

    def __init__(self, settings: Settings, model: ModelInfo, **arguments: Any) -> None:
        super().__init__(settings, model, **arguments)
        self.nodes: dict[NodeName, Tensor] = {}

    @override
    def downlink_vector(self, client: Client) -> TaskVectors | None:
        """The mixed vectors of the client's nodes. None while it has none, before its first round."""
        if not any((client.name, task) in self.nodes for task in client.tasks):
            return None
        origin = torch.zeros(self.d)
        return SeparateTaskVectors({task: self.nodes.get((client.name, task), origin) for task in client.tasks})

    @override
    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Mix the nodes that trained in this round. The others stay as they were."""
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
    """Cosine similarity of δ_i = θ_i − mean_j θ_j for every two nodes.

    Parameters
    ----------
    vectors : list of Tensor
        θ_i − θ_p of n nodes, (d,) float32 each. θ_p cancels out in δ_i.

    Returns
    -------
    Tensor
        (n, n) float64, symmetric: 1 on the diagonal, 0 where one of the two δ is zero.
    """
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
    """Weights W, (n, n) float64, from the cosines, (n, n) float64. Every row sums to one."""
    if options.mixing == "soft":
        weights = (similarity + options.threshold).clamp(min=0)
    else:
        from sklearn.cluster import AgglomerativeClustering

        count = len(similarity)
        if count <= options.groups:
            # Every node is a group of its own: scikit-learn cannot make more groups than there are nodes.
            return torch.eye(count, dtype=torch.float64)
        clustering = AgglomerativeClustering(n_clusters=options.groups, metric="precomputed", linkage="average")
        groups = torch.as_tensor(clustering.fit_predict((1 - similarity).numpy()))
        weights = (groups[:, None] == groups[None, :]).double()
    mixed: Tensor = weights / weights.sum(dim=1, keepdim=True)
    return mixed


def mix(vectors: list[Tensor], weights: Tensor) -> Tensor:
    """The weighted sum Σ_j W_j θ_j, (d,) float32, computed in float64 block by block; `weights` is (n,) float64."""
    mixed = torch.empty_like(vectors[0])
    for start, stop in blocks(mixed.numel()):
        block = torch.zeros(stop - start, dtype=torch.float64)
        for weight, vector in zip(weights.tolist(), vectors, strict=True):
            if weight:
                block += weight * vector[start:stop].double()
        mixed[start:stop] = block
    return mixed
