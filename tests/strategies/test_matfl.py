"""MaT-FL's grouping: which nodes end in one group where the kinds of linkage disagree."""

import numpy as np
import pytest
import torch

from matu_flwr.config.sections import MatFLSettings
from matu_flwr.strategies.matfl import mixing
from tests.support.scripted import Scripted


def groups(distances, count):
    """Groups of nodes a, b, ... from distances by pair."""
    names = sorted({name for pair in distances for name in pair})
    similarity = torch.eye(len(names), dtype=torch.float64)
    for (one, other), distance in distances.items():
        i, j = names.index(one), names.index(other)
        similarity[i, j] = similarity[j, i] = 1 - distance
    weights = mixing(similarity, MatFLSettings(mixing="grouping", groups=count)).numpy()
    for row in weights:  # the mean of a group: equal weights that sum to one
        np.testing.assert_allclose(row[row > 0], 1 / np.count_nonzero(row))
    return sorted({"".join(name for name, weight in zip(names, row, strict=True) if weight) for row in weights})


def test_linkage_is_the_average_and_not_the_largest_distance():
    """a and b first (0.1). Then c lies 0.3 and 0.7 from them, ½ on average, less than the 0.6 to d; at most 0.7."""
    distances = {"ab": 0.1, "ac": 0.3, "bc": 0.7, "cd": 0.6, "ad": 0.95, "bd": 0.95}
    assert groups(distances, 2) == ["abc", "d"]


def test_linkage_is_the_average_and_not_the_smallest_distance():
    """a and b first (0.1). Then c lies 0.3 and 0.9 from them, 0.6 on average, more than the ½ to d; at least 0.3."""
    distances = {"ab": 0.1, "ac": 0.3, "bc": 0.9, "cd": 0.5, "ad": 0.95, "bd": 0.95}
    assert groups(distances, 2) == ["ab", "cd"]


@pytest.mark.parametrize(("count", "expected"), [(4, ["a", "b", "c", "d"]), (3, ["ab", "c", "d"]), (1, ["abcd"])])
def test_as_many_groups_as_asked_for(count, expected):
    distances = {"ab": 0.1, "ac": 0.3, "bc": 0.7, "cd": 0.6, "ad": 0.95, "bd": 0.95}
    assert groups(distances, count) == expected


def test_nodes_that_did_not_train_stay_as_they_were():
    """Everybody alone in its group: a node gets back what it sent, in the round in which it did."""
    run = Scripted(
        "matfl",
        [{"dots": 5, "stripes": 5}, {"dots": 5}],
        rounds=2,
        matfl__groups=9,
        max_failed_fraction=0.5,
        min_nodes=1,
        vector=lambda round_, client, task: [float(round_), float(client[-1]), float(len(task)), 0.0],
        fails=lambda round_, phase, client: (round_, phase, client) == (2, "train", "client-001"),
    ).run()
    found = {name: vector.tolist() for name, vector in run.strategy.nodes.items()}
    assert found == {
        ("client-000", "dots"): [2.0, 0.0, 4.0, 0.0],
        ("client-000", "stripes"): [2.0, 0.0, 7.0, 0.0],
        ("client-001", "dots"): [1.0, 1.0, 4.0, 0.0],
    }
    for client in run.strategy.clients:
        told = run.strategy.downlink_vector(client)
        assert {task: told.reconstruct(task).tolist() for task in client.tasks} == {
            task: found[client.name, task] for task in client.tasks
        }
