"""Dealing: pairs of tasks meet evenly, holders differ by one at most."""

import itertools

import pytest

from matu_flwr.tasks import deal


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
