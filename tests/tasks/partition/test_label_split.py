"""The Dirichlet split by hand: where labels are cut, and how short parts are filled up."""

import numpy as np
import pytest

from matu_flwr.seeds import generator
from matu_flwr.tasks import TaskError, split_by_label, split_evenly
from matu_flwr.tasks.partition.label_split import _dirichlet_parts, _fill_up, check_enough


class Dice:
    """A generator that shuffles nothing and gives these portions."""

    def __init__(self, portions=()):
        self.portions = portions

    def permutation(self, values):
        return np.asarray(values)

    def dirichlet(self, concentrations):
        assert concentrations.tolist() == [0.5] * len(self.portions)
        return np.array(self.portions)


@pytest.mark.parametrize(
    ("portions", "sizes"),
    [
        ((0.38, 0.38, 0.24), [4, 4, 2]),  # of ten: cuts at 3.8 and 7.6, the nearest are 4 and 8
        ((0.32, 0.32, 0.36), [3, 3, 4]),  # 3.2 and 6.4
        ((0.0, 1.0, 0.0), [0, 10, 0]),
    ],
)
def test_labels_are_cut_at_the_nearest_place(portions, sizes):
    labels = np.repeat([7, 3], 10)
    parts = _dirichlet_parts(labels, 3, 0.5, Dice(portions))
    starts = np.cumsum([0, *sizes])
    for part, start, size in zip(parts, starts, sizes, strict=False):
        of_three, of_seven = np.arange(10, 20)[start : start + size], np.arange(10)[start : start + size]
        assert part.tolist() == [*of_three, *of_seven]


@pytest.mark.parametrize("seed", range(5))
def test_law_with_an_endless_alpha_all_holders_get_as_many_of_every_label(seed):
    """Thirty of each of four labels to three holders: portions are ⅓ ± a millionth, so ten each."""
    labels = np.repeat(np.arange(4), 30)
    for part in split_by_label(labels, 3, alpha=1e12, seed=seed, min_examples=1):
        assert np.bincount(labels[part]).tolist() == [10] * 4


@pytest.mark.parametrize(
    ("sizes", "least", "expected"),
    [
        ([7, 6, 0], 4, [4, 5, 4]),  # three of the seven, then one of the six: no giver goes below four
        ([0, 9, 3], 4, [4, 4, 4]),
        ([1, 1, 10], 4, [4, 4, 4]),
        ([5, 3], 4, [4, 4]),
        ([4, 4], 4, [4, 4]),
        ([8, 0], 0, [8, 0]),
    ],
)
def test_a_giver_keeps_enough_for_itself(sizes, least, expected):
    cuts = np.cumsum(sizes)[:-1]
    found = _fill_up(np.split(np.arange(sum(sizes)), cuts), least, Dice())
    assert [len(part) for part in found] == expected
    assert sorted(np.concatenate(found).tolist()) == list(range(sum(sizes)))


def test_just_enough_is_enough():
    check_enough(12, 3, 4)
    parts = split_by_label(np.repeat([0, 1], 6), 3, alpha=0.01, seed=0, min_examples=4)
    assert [len(part) for part in parts] == [4, 4, 4]


def test_an_even_split_is_a_shuffle_of_its_own_cut_in_parts():
    order = generator(5, "split-evenly").permutation(7)
    found = split_evenly(7, 3, seed=5)
    assert [part.tolist() for part in found] == [sorted(order[:3]), sorted(order[3:5]), sorted(order[5:])]
    with pytest.raises(TaskError, match=r"^num_holders is 0: expected 1 or more$"):
        split_evenly(7, 0, seed=5)


def test_a_split_by_label_takes_the_first_draw_that_is_large_enough():
    """The slow way: draw until every part has enough; the seed is the split's own."""
    labels = np.arange(60) % 3
    chance, draws = generator(9, "split-by-label"), 0
    while True:
        draws += 1
        parts = _dirichlet_parts(labels, 4, 0.3, chance)
        if min(map(len, parts)) >= 8:
            break
    assert draws > 1
    found = split_by_label(labels, 4, alpha=0.3, seed=9, min_examples=8)
    assert [part.tolist() for part in found] == [sorted(part) for part in parts]
