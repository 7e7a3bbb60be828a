"""Norm clipping: by hand, against a slow twin, and its laws."""

import math
import random

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from matu_flwr.merging import ClientUpdate, ClipOptions, MergeError, SeparateTaskVectors, clip_updates
from matu_flwr.merging.clipping import lower_median, reference_norm, task_norms
from tests.merging.cases import (
    block_size,
    block_sizes,
    laws,
    moderate,
    packed,
    replies,
    reply,
    to_tensor,
    to_twin,
    twins,
)
from tests.merging.slow_twin import reconstruct


def slow_norms(update):
    """‖τ̄^t‖₂ from the reconstructed vector, value by value."""
    twin = to_twin(update)
    return {
        task: math.sqrt(math.fsum(value * value for value in reconstruct(twin.vectors, task)))
        for task in update.num_examples
    }


def slow_limit(updates, options):
    """C, from sorted lists."""
    limit = options.norm or math.inf
    if options.factor:
        middles = []
        for update in updates:
            found = sorted(slow_norms(update).values())
            middles.append(found[(len(found) - 1) // 2])
        middles.sort()
        limit = min(limit, options.factor * middles[(len(middles) - 1) // 2])
    return limit


def close(a, b):
    return a == pytest.approx(b, rel=1e-6, abs=1e-300)


clip_options = st.builds(
    ClipOptions, st.sampled_from([0.0, 0.0, 0.5, 2.0, 1e3]), st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0])
)
sizes = st.sampled_from([1.0, 1.0, 2.0**-20, 2.0**20])


# ---------------------------------------------------------------- by hand


def test_norm_by_hand():
    """τ = (3, −4, 12, 0), m = 1101, λ = 2, λ₋ = ½: τ̄ = (6, −8, −6, 0), ‖τ̄‖ = √136."""
    update = reply("a", [3, -4, 12, 0], {"t": "1101"}, {"t": 2.0})
    update.vectors.opposites["t"] = 0.5
    assert task_norms(update.vectors) == {"t": pytest.approx(math.sqrt(136), rel=1e-15)}
    assert task_norms(packed(update).vectors) == task_norms(update.vectors)


def test_an_absolute_bound_by_hand():
    """‖τ̄‖ = ‖(6, −8)‖ = 10, C = 5: λ and λ₋ are halved; the other client's norm is 5, and it is the same object."""
    long = reply("a", [3, -4], {"t": "11"}, {"t": 2.0})
    long.vectors.opposites["t"] = 7.0  # no cleared bit: plays no part in the norm
    short = reply("b", [3, -4], {"t": "11"}, {"t": 1.0})
    clipped, ratios = clip_updates([long, short], ClipOptions(norm=5.0))
    assert (clipped[0].vectors.rescalers, clipped[0].vectors.opposites) == ({"t": 1.0}, {"t": 3.5})
    assert clipped[0].vectors.vector is long.vectors.vector
    assert clipped[1] is short
    assert ratios == {"a": {"t": 0.5}}


def test_the_reference_is_a_median_of_medians():
    """A client of many tasks has one vote: medians 1, 2, 50 (of 50, 50, 50, 60), R = 2."""
    norms = {"a": {"s": 1.0}, "b": {"s": 2.0, "t": 3.0}, "c": {"s": 50.0, "t": 50.0, "u": 50.0, "v": 60.0}}
    assert reference_norm(norms) == 2.0
    assert ClipOptions(factor=3.0).limit(norms) == 6.0
    assert ClipOptions(norm=4.0, factor=3.0).limit(norms) == 4.0
    assert ClipOptions().limit(norms) == math.inf


def test_lower_median():
    assert [lower_median(v) for v in ([7.0], [1.0, 9.0], [3.0, 1.0, 2.0], [4.0, 1.0, 2.0, 3.0])] == [7, 1, 2, 2]


def test_one_vector_of_a_client_is_one_contribution():
    """Read under the first task's name, whatever a client says of the others; all of them are scaled alike."""
    update = reply("a", [3, 4], {"s": "11", "t": "10"}, {"s": 2.0, "t": 1.0})
    clipped, ratios = clip_updates([update], ClipOptions(norm=5.0), one_vector=True)
    assert ratios == {"a": {"s": 0.5, "t": 0.5}}
    assert clipped[0].vectors.rescalers == {"s": 1.0, "t": 0.5}


def test_separate_vectors_are_scaled_themselves():
    whole, half = to_tensor([1.0, 1.0]), to_tensor([6.0, -8.0]).bfloat16()
    update = ClientUpdate(SeparateTaskVectors({"s": whole, "t": half}), {"s": 1, "t": 1}, "a")
    clipped, ratios = clip_updates([update], ClipOptions(norm=5.0))
    assert ratios == {"a": {"t": 0.5}}
    assert clipped[0].vectors.vectors["s"] is whole
    assert clipped[0].vectors.vectors["t"].tolist() == [3.0, -4.0]
    assert half.tolist() == [6.0, -8.0]


@pytest.mark.parametrize(
    ("values", "text"), [((-1.0, 0.0), "clip norm = -1.0"), ((0.0, math.inf), "clip factor = inf")]
)
def test_a_bound_is_a_finite_number_from_zero(values, text):
    with pytest.raises(MergeError, match=f"^{text}: expected a finite number ≥ 0; 0 = no such bound$"):
        ClipOptions(*values)


# ---------------------------------------------------------------- the slow twin


@twins
@given(replies(values=moderate, scale=sizes), clip_options, block_sizes)
def test_clipping_is_what_the_slow_twin_does(updates, options, size):
    with block_size(size):
        clipped, ratios = clip_updates(updates, options)
        limit = slow_limit(updates, options)
        for before, after in zip(updates, clipped, strict=True):
            for task, norm in slow_norms(before).items():
                assert close(task_norms(before.vectors)[task], norm)
                expected = 1.0 if norm <= limit else limit / norm
                assert close(ratios.get(before.client, {}).get(task, 1.0), expected)
                assert close(after.vectors.rescalers[task], expected * before.vectors.rescalers[task])
                wanted = before.vectors.reconstruct(task).double() * expected
                torch.testing.assert_close(
                    after.vectors.reconstruct(task).double(), wanted, rtol=1e-5, atol=1e-6 * max(norm, 1e-30)
                )


# ---------------------------------------------------------------- laws


@laws
@given(replies(scale=sizes), clip_options)
def test_clipping_never_lengthens_and_keeps_to_the_bound(updates, options):
    limit = options.limit({u.client: task_norms(u.vectors) for u in updates})
    for before, after in zip(updates, clip_updates(updates, options)[0], strict=True):
        old, new = task_norms(before.vectors), task_norms(after.vectors)
        for task in old:
            assert new[task] <= old[task] * (1 + 1e-12)
            assert new[task] <= limit * (1 + 1e-12)


@laws
@given(replies(scale=sizes), clip_options, st.randoms(use_true_random=False))
def test_the_order_of_clients_plays_no_part(updates, options, chance: random.Random):
    shuffled = list(updates)
    chance.shuffle(shuffled)
    by_name = {u.client: u.vectors.rescalers for u in clip_updates(shuffled, options)[0]}
    assert by_name == {u.client: u.vectors.rescalers for u in clip_updates(updates, options)[0]}


@laws
@given(replies(scale=sizes), st.sampled_from([2.0**-10, 0.25, 4.0, 2.0**10]))
def test_a_relative_bound_does_not_know_the_unit(updates, unit):
    """All vectors times c: the same ratios. (Powers of two, so that nothing is rounded.)"""
    scaled = [ClientUpdate(_times(u.vectors, unit), u.num_examples, u.client) for u in updates]
    options = ClipOptions(factor=1.0)
    assert clip_updates(scaled, options)[1] == clip_updates(updates, options)[1]


def _times(unified, factor):
    return type(unified)(unified.vector * factor, unified.masks, unified.rescalers, unified.opposites)


@laws
@given(
    st.lists(st.floats(0.0, 1e6), min_size=1, max_size=9),
    st.lists(st.floats(0.0, 1e30), max_size=9),
)
def test_up_to_half_of_hostile_clients_cannot_raise_the_reference_above_the_largest_honest_norm(honest, hostile):
    assume(len(hostile) <= len(honest))
    norms = {f"h{i}": {"t": n} for i, n in enumerate(honest)} | {f"x{i}": {"t": n} for i, n in enumerate(hostile)}
    assert reference_norm(norms) <= max(honest)


@laws
@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=9), st.lists(st.floats(0.0, 1e30), max_size=8))
def test_fewer_than_half_cannot_push_it_below_the_smallest(honest, hostile):
    assume(len(hostile) < len(honest))
    norms = {f"h{i}": {"t": n} for i, n in enumerate(honest)} | {f"x{i}": {"t": n} for i, n in enumerate(hostile)}
    assert reference_norm(norms) >= min(honest)


@laws
@given(replies(scale=sizes))
def test_without_a_bound_nothing_is_touched(updates):
    clipped, ratios = clip_updates(updates, ClipOptions())
    assert ratios == {}
    assert all(after is before for before, after in zip(updates, clipped, strict=True))
