"""Dealing: pairs of tasks meet evenly, holders differ by one at most."""

import itertools

import numpy as np
import pytest

from matu_flwr.tasks import deal
from matu_flwr.tasks.partition.dealing import _by_popularity


def meetings(tasks, hands):
    """Clients that hold both, by pair."""
    return [sum(set(pair) <= set(hand) for hand in hands) for pair in itertools.combinations(tasks, 2)]


@pytest.mark.parametrize("seed", range(20))
def test_tasks_meet_those_that_they_have_met_least(seed):
    """Six clients with two of four tasks each: all six pairs once, whatever the seed.

    By hand: ab, cd; then a takes one that it has not met, say c, which leaves bd; then ad and bc.
    """
    hands = deal("abcd", 6, min_tasks=2, max_tasks=2, seed=seed)
    assert meetings("abcd", hands) == [1] * 6


@pytest.mark.parametrize("seed", range(10))
def test_even_hands_by_hand(seed):
    """Two clients of three seats over six tasks share nothing: fewest holders come before least met."""
    one, other = deal("abcdef", 2, min_tasks=3, max_tasks=3, seed=seed)
    assert sorted(one + other) == list("abcdef")


@pytest.mark.parametrize("how", ["even", "dirichlet", "ring"])
def test_numbers_of_tasks_are_drawn_from_the_whole_range(how):
    drawn = {
        len(hand) for seed in range(10) for hand in deal("abcdef", 12, min_tasks=2, max_tasks=4, seed=seed, how=how)
    }
    assert drawn == {2, 3, 4}
    most = {len(hand) for seed in range(20) for hand in deal("abc", 6, min_tasks=1, max_tasks=9, seed=seed, how=how)}
    assert most == {1, 2, 3}  # no client has more than all tasks, and some have all


class Dice:
    """A generator that gives what it is told, and says what it was asked for."""

    def __init__(self, gammas, exponentials, gumbels):
        self.gammas, self.exponentials, self.gumbels = gammas, exponentials, iter(gumbels)
        self.shapes = []

    def standard_gamma(self, shape, size):
        self.shapes.append(shape)
        return np.array(self.gammas[:size], dtype=float)

    def standard_exponential(self, size):
        return np.array(self.exponentials[:size], dtype=float)

    def gumbel(self, size):
        return np.array(next(self.gumbels)[:size], dtype=float)

    def choice(self, values):
        return values[0]


def test_popularity_by_hand():
    """α = ½: log p = log Gamma(1.5) − 2 E for three tasks: log 1 − 0.2, log 1 − 2, log e^1 − 0.4."""
    dice = Dice([1, 1, np.e], [0.1, 1.0, 0.2], [[0, 0, 0], [0.9, 0, 0], [0, 2.7, 0]])
    # log p = -0.2, -2, 0.6; with the noise of the second client 0.7, -2, 0.6; of the third -0.2, 0.7, 0.6
    hands = _by_popularity(np.array([1, 2, 2]), 3, 0.5, dice)
    assert dice.shapes == [1.5]
    assert hands == [[2], [0, 2], [1, 2]]


def test_an_orphan_takes_the_place_of_the_task_with_the_most_holders():
    """Four tasks in six seats: the third is held by three, nobody drew the fourth."""
    dice = Dice([1, 1, 1, 1], [0, 0, 0, 0], [[0, 0, 3, -9], [3, 0, 2, -9], [0, 3, 2, -9]])
    hands = _by_popularity(np.array([1, 2, 2]), 4, 1.0, dice)
    assert hands == [[3], [0, 2], [1, 2]]  # of the first client that has it
