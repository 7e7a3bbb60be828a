"""FedAvg: one shared vector for everybody.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data. AISTATS 2017. https://arxiv.org/abs/1602.05629

The paper's clients all have the same task. For clients with different tasks, we had to decide three things:

- A client trains one backbone on all of its tasks, with a head per task. Steps alternate over the tasks, and each task
  gets as many steps as under the other methods (`client.fit.fit_jointly`).
- A client's weight in the mean is the number of its training images, over all of its tasks.
- The heads of a task are averaged over the task's holders, unless `train.heads` says otherwise, as under every method.

One round:

    server   send the same vector to every sampled client
    client   start from it, and train all tasks jointly                -> one vector, no masks
    server   take the mean of the vectors, weighted by images          -> one vector
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from matu_flwr.client.rule import Joint, Rule
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.registration import Client
from matu_flwr.merging import PAPER, ClientUpdate, TaskGraph, TaskVectors, unify
from matu_flwr.merging.averages import Block, holder_mean
from matu_flwr.merging.robust import WEIGHTED, HolderMean


class FedAvg(ManyTaskStrategy):
    """The mean of one vector per client, weighted by images; see `ManyTaskStrategy` for the parameters.

    Notes
    -----
    This is not Flower's own FedAvg: that one expects the same keys in the array record of every client, so heads of
    different tasks do not fit. The mean is the same, Σ n_k θ_k / Σ n_k for clients k with n_k images. All tasks share
    one tensor as their τ^t.
    """

    about = "one shared vector, averaged by images"
    paper = "https://arxiv.org/abs/1602.05629"

    rule: ClassVar[type[Rule]] = Joint
    kept: ClassVar[tuple[str, ...]] = (*ManyTaskStrategy.kept, "mean")
    robust_mean = True
    mean: Tensor | None = None
    """The vector that all tasks share, (d,) float32; None before the first merge, which means θ_p."""

    @override
    def downlink_vector(self, client: Client) -> TaskVectors | None:
        """The shared vector, as a unified vector of equal task vectors. None while it is at θ_p."""
        # Unifying equal vectors gives that vector itself.
        return unify(dict.fromkeys(client.tasks, self.mean), **PAPER) if self.mean is not None else None

    @override
    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Take the mean Σ n_k τ_k / Σ n_k, in float64 and in the order of client names."""
        self.mean = mean_of_clients(updates, self.d, self.influence.mean)
        self.task_vectors = dict.fromkeys(self.classes, self.mean)
        return None


def mean_of_clients(updates: list[ClientUpdate], d: int, mean: HolderMean = WEIGHTED) -> Tensor:
    """Mean of the one vector of every client, weighted by the client's images of all tasks.

    Parameters
    ----------
    updates : list of ClientUpdate
        In any order; they are added in the order of client names.
    d : int
        Length of the vectors.
    mean : HolderMean
        The weighted mean, or a robust one.

    Returns
    -------
    Tensor
        (d,) float32.
    """

    def part(update: ClientUpdate) -> tuple[int, Block]:
        # Any task will do: a client sends the same vector for all of them.
        task = min(update.num_examples)
        images = sum(update.num_examples.values())
        return images, lambda start, stop: update.vectors.reconstruct_block(task, start, stop)

    return holder_mean(d, [part(update) for update in sorted(updates, key=lambda update: update.client)], mean)
