"""FedAvg: one shared vector for everybody.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data. AISTATS 2017. https://arxiv.org/abs/1602.05629

The paper's clients have one task. What had to be decided for clients with different tasks:

- A client trains one backbone on all of its tasks jointly, with a head per task; steps alternate over the tasks, as
  many of each as the other methods take (`local.fit.fit_jointly`).
- A client's weight is its number of training images over all of its tasks.
- Heads are averaged per task over its holders, or as `train.heads` says, like those of the other methods.

One round:

    server   the same vector to every sampled client
    client   start there, train all tasks jointly                      -> one vector, no masks
    server   mean of the vectors, weighted by images                   -> one vector
"""

from __future__ import annotations

import torch

from matu_flwr.merging import ClientUpdate, TaskGraph, UnifiedTaskVector, unify
from matu_flwr.merging.unify import blocks
from matu_flwr.strategies.base import ManyTaskStrategy
from matu_flwr.strategies.registration import Client


class FedAvg(ManyTaskStrategy):
    """The size-weighted mean of one vector per client; see `ManyTaskStrategy` for the parameters.

    Notes
    -----
    Flower's own FedAvg expects one array record with the same keys from every client, and sends one to all; heads of
    different tasks do not fit there. Its rule, Σ n_k θ_k / Σ n_k, is kept. τ^t of every task is the same tensor.
    """

    def downlink_vector(self, client: Client) -> UnifiedTaskVector | None:
        """Unify equal vectors, which gives the vector itself; None while it is at θ_p."""
        if not self.task_vectors:
            return None
        return unify({task: self.task_vectors[task] for task in client.tasks})

    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Σ n_k τ_k / Σ n_k in float64, block by block, in the order of client names."""
        images = {update.client: sum(update.num_examples.values()) for update in updates}
        total = sum(images.values())
        mean = torch.empty(self.model.d)
        for start, stop in blocks(self.model.d):
            part = torch.zeros(stop - start, dtype=torch.float64)
            for update in sorted(updates, key=lambda update: update.client):
                part += update.unified.vector[start:stop].double() * (images[update.client] / total)
            mean[start:stop] = part
        self.task_vectors = dict.fromkeys(self.classes, mean)
        return None
