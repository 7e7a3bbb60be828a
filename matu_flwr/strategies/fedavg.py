"""FedAvg: one shared vector for everybody.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data. AISTATS 2017. https://arxiv.org/abs/1602.05629

The paper's clients have one task. What had to be decided for clients with different tasks:

- A client trains one backbone on all of its tasks jointly, with a head per task; steps alternate over the tasks, as
  many of each as the other methods take (`client.fit.fit_jointly`).
- A client's weight is its number of training images over all of its tasks.
- Heads are averaged per task over its holders, or as `train.heads` says, like those of the other methods.

One round:

    server   the same vector to every sampled client
    client   start there, train all tasks jointly                      -> one vector, no masks
    server   mean of the vectors, weighted by images                   -> one vector
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from matu_flwr.client.rule import Joint, Rule
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.registration import Client
from matu_flwr.merging import PAPER, ClientUpdate, TaskGraph, TaskVectors, unify
from matu_flwr.merging.averages import Block, holder_mean
from matu_flwr.merging.robust import WEIGHTED, HolderMean


class FedAvg(ManyTaskStrategy):
    """The size-weighted mean of one vector per client; see `ManyTaskStrategy` for the parameters.

    Notes
    -----
    Flower's own FedAvg expects one array record with the same keys from every client, and sends one to all; heads of
    different tasks do not fit there. Its rule, Σ n_k θ_k / Σ n_k, is kept. τ^t of every task is the same tensor.
    """

    about = "one shared vector, averaged by images"
    paper = "https://arxiv.org/abs/1602.05629"

    rule: ClassVar[type[Rule]] = Joint
    kept: ClassVar[tuple[str, ...]] = (*ManyTaskStrategy.kept, "mean")
    robust_mean = True
    mean: Tensor | None = None
    """The one vector; None while it is at θ_p."""

    def downlink_vector(self, client: Client) -> TaskVectors | None:
        """Unify equal vectors, which gives the vector itself."""
        return unify(dict.fromkeys(client.tasks, self.mean), **PAPER) if self.mean is not None else None

    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Σ n_k τ_k / Σ n_k in float64, in the order of client names."""
        self.mean = mean_of_clients(updates, self.d, self.influence.mean)
        self.task_vectors = dict.fromkeys(self.classes, self.mean)
        return None


def mean_of_clients(updates: list[ClientUpdate], d: int, mean: HolderMean = WEIGHTED) -> Tensor:
    """Mean of the one vector of every client, weighted by its images of all tasks; (d,) float32."""

    def part(update: ClientUpdate) -> tuple[int, Block]:
        task = min(update.num_examples)  # the same vector under every name
        images = sum(update.num_examples.values())
        return images, lambda start, stop: update.vectors.reconstruct_block(task, start, stop)

    return holder_mean(d, [part(update) for update in sorted(updates, key=lambda update: update.client)], mean)
