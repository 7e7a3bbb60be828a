"""Robust means over holders: by hand, against a slow twin, and their laws."""

import math
import statistics

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from matu_flwr.merging import ClientUpdate, HolderMean, MergeError, MergeOptions, SeparateTaskVectors, aggregate
from matu_flwr.merging.averages import holder_mean, mean_by_task
from tests.merging import slow_twin
from tests.merging.cases import (
    block_size,
    block_sizes,
    grid,
    laws,
    moderate,
    options,
    replies,
    same_result,
    single,
    to_floats,
    to_tensor,
    to_twin,
    twins,
)

MEDIAN, TRIMMED = HolderMean("median"), HolderMean("trimmed", 0.2)
means = st.one_of(st.just(MEDIAN), st.builds(HolderMean, st.just("trimmed"), st.sampled_from([0.05, 0.1, 0.2, 0.4])))


def slow_mean(values, mean):
    """One parameter over its holders: by `statistics`, or by sorting and cutting."""
    if mean.kind == "median":
        return statistics.median(values)
    n, k = len(values), 0
    while k < mean.trim * n - 1e-9 and 2 * (k + 1) < n:
        k += 1
    return math.fsum(sorted(values)[k : n - k]) / (n - 2 * k)


def slow_task(task, updates, options_, mean):
    """τ̂ of one task and the directions, parameter by parameter."""
    holders = [to_twin(u) for u in updates if task in u.num_examples]
    signs = [slow_twin.client_signs(r.vectors, task, options_) for r in holders]
    vectors = [slow_twin.reconstruct(r.vectors, task) for r in holders]
    tau, direction = [], []
    for i in range(len(vectors[0])):
        vote = sum(s[i] for s in signs)
        mask = slow_twin.aggregated_mask_at(abs(vote) / len(holders), options_)
        tau.append(mask * slow_mean([v[i] for v in vectors], mean))
        direction.append(slow_twin.sgn(vote if options_.signs == "complete" else tau[-1]))
    return tau, direction


# ---------------------------------------------------------------- by hand


def test_by_hand():
    """Five holders of one parameter each: 1, 2, 3, 4 and a hostile 1000. Median 3; trimmed (k = 1) (2 + 3 + 4) / 3."""
    updates = [single(name, "t", [value]) for name, value in zip("abcde", [1, 2, 3, 4, 1000], strict=True)]
    plain = MergeOptions.paper(agreement="none", kappa=0)
    assert aggregate(updates, plain, mean=MEDIAN).task_vectors["t"].tolist() == [3.0]
    assert aggregate(updates, plain, mean=TRIMMED).task_vectors["t"].tolist() == [3.0]
    assert aggregate(updates, plain).task_vectors["t"].tolist() == [202.0]


@pytest.mark.parametrize(
    ("mean", "left_out"),
    [
        (MEDIAN, [0, 0, 1, 1, 2, 2, 3]),
        (TRIMMED, [0, 0, 1, 1, 1, 2, 2]),  # ⌈.2 n⌉ is 1 1 1 1 1 2 2, but never all that there is
        (HolderMean("trimmed", 0.45), [0, 0, 1, 1, 2, 2, 3]),
    ],
)
def test_how_many_are_left_out(mean, left_out):
    assert [mean.left_out(n) for n in range(1, 8)] == left_out


def test_a_share_that_should_be_whole_is_not_rounded_up():
    assert 0.07 * 100 > 7
    assert HolderMean("trimmed", 0.07).left_out(100) == 7


@pytest.mark.parametrize("mean", [MEDIAN, TRIMMED])
def test_one_holder_is_taken_as_it_is_and_two_are_averaged_without_weights(mean):
    plain = MergeOptions.paper(agreement="none", kappa=0)
    one = [single("a", "t", [1.0, -8.0], examples=7)]
    assert aggregate(one, plain, mean=mean).task_vectors["t"].tolist() == [1.0, -8.0]
    two = [*one, single("b", "t", [3.0, 1000.0], examples=1)]
    assert aggregate(two, plain, mean=mean).task_vectors["t"].tolist() == [2.0, 496.0]


@pytest.mark.parametrize("trim", [0.0, 0.5, -1.0])
def test_trim_has_a_range(trim):
    with pytest.raises(
        MergeError, match=rf"^trim = {trim} is outside \(0, 0.5\): it is the share left out at each end"
    ):
        HolderMean("trimmed", trim)


def test_a_vector_with_nan_is_refused_by_name():
    updates = [single("a", "t", [1.0]), single("b", "t", [math.nan])]
    with pytest.raises(MergeError, match=r"^client 'b': the unified vector has NaN or infinity$"):
        aggregate(updates, mean=MEDIAN)


# ---------------------------------------------------------------- the slow twin


@twins
@given(
    replies(values=moderate, scale=st.sampled_from([1.0, 2.0**-20]), max_clients=7, max_tasks=2),
    options(kappa=0),
    means,
)
def test_pass_one_is_the_slow_twin(updates, options_, mean):
    with block_size(8):
        merged = aggregate(updates, options_, mean=mean)
    for task in merged.tasks:
        tau, _ = slow_task(task, updates, options_, mean)
        size = max((abs(x) for u in updates for x in to_floats(u.vectors.vector)), default=0.0)
        torch.testing.assert_close(
            merged.task_vectors[task].double(), torch.tensor(tau, dtype=torch.float64), rtol=1e-5, atol=1e-5 * size
        )


@twins
@given(replies(values=grid, scale=st.just(1.0), max_clients=6), options(epsilon_unit="similarity"), means, block_sizes)
def test_the_task_graph_reads_the_robust_directions(updates, options_, mean, size):
    with block_size(size):
        merged = aggregate(updates, options_, mean=mean)
    directions = {task: slow_task(task, updates, options_, mean)[1] for task in merged.tasks}
    d = updates[0].vectors.d
    for i, a in enumerate(merged.tasks):
        for j, b in enumerate(merged.tasks):
            if i == j or options_.similarity == "support":
                continue
            agreement = sum(x * y for x, y in zip(directions[a], directions[b], strict=True))
            assert float(merged.similarity[i, j]) == pytest.approx((1 + agreement / d) / 2, abs=1e-12)


@twins
@given(
    st.integers(1, 9).flatmap(lambda n: st.lists(st.lists(moderate, min_size=5, max_size=5), min_size=n, max_size=n)),
    means,
)
def test_separate_vectors_are_the_slow_twin_too(rows, mean):
    updates = [
        ClientUpdate(SeparateTaskVectors({"t": to_tensor(row)}), {"t": 10**k}, f"c{k}") for k, row in enumerate(rows)
    ]
    with block_size(8):
        found = mean_by_task(reversed(updates), 5, mean)["t"]
    expected = [slow_mean(list(column), mean) for column in zip(*rows, strict=True)]
    torch.testing.assert_close(found, to_tensor(expected), rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- laws


@laws
@given(replies(max_clients=6), options(), means, st.randoms(use_true_random=False))
def test_the_order_of_clients_plays_no_part(updates, options_, mean, chance):
    shuffled = list(updates)
    chance.shuffle(shuffled)
    assert same_result(aggregate(shuffled, options_, mean=mean), aggregate(updates, options_, mean=mean))


@laws
@given(replies(max_clients=6), options(), means)
def test_images_play_no_part(updates, options_, mean):
    equal = [ClientUpdate(u.vectors, dict.fromkeys(u.num_examples, 1), u.client) for u in updates]
    assert same_result(aggregate(equal, options_, mean=mean), aggregate(updates, options_, mean=mean))


rows = st.integers(3, 9).flatmap(lambda n: st.lists(st.lists(moderate, min_size=4, max_size=4), min_size=n, max_size=n))
anything = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4)


@laws
@given(rows, means, st.data())
def test_hostile_holders_cannot_leave_the_range_of_the_honest(honest, mean, data):
    """As many as are left out at each end, with any values at all."""
    bad = data.draw(st.integers(0, 4))
    n = len(honest) + bad
    assume(bad <= mean.left_out(n))
    hostile = [data.draw(anything) for _ in range(bad)]
    found = mean.of(torch.stack([to_tensor(row) for row in [*honest, *hostile]]))
    truth = torch.stack([to_tensor(row) for row in honest]).double()
    slack = 1e-9 * truth.abs().amax(dim=0)
    assert bool((found >= truth.amin(dim=0) - slack).all())
    assert bool((found <= truth.amax(dim=0) + slack).all())


@laws
@given(moderate, anything, st.integers(2, 8))
def test_the_median_of_equal_vectors_is_unchanged_by_one_outlier(value, outlier, equals):
    stacked = torch.stack([torch.full((4,), value)] * equals + [to_tensor(outlier)])
    assert torch.equal(MEDIAN.of(stacked), torch.full((4,), value, dtype=torch.float64))


@laws
@given(rows, means)
def test_how_far_out_an_outlier_is_plays_no_part(honest, mean):
    """The largest value of all may be any larger one."""
    truth = torch.stack([to_tensor(row) for row in honest])
    top = truth.abs().max() + 1
    one, other = (mean.of(torch.cat([truth, (top * far).expand(1, 4)])) for far in (1, 1e20))
    assert torch.equal(one, other)


@laws
@given(replies(max_clients=1), options(), means)
def test_of_one_client_every_mean_is_the_weighted_one(updates, options_, mean):
    robust, weighted = aggregate(updates, options_, mean=mean), aggregate(updates, options_)
    assert robust.tasks == weighted.tasks
    for task in robust.tasks:
        torch.testing.assert_close(robust.task_vectors[task], weighted.task_vectors[task], rtol=1e-6, atol=0)


def test_the_weighted_mean_is_still_the_default():
    parts = [(3, lambda a, b: torch.ones(b - a)), (1, lambda a, b: torch.full((b - a,), 5.0))]
    assert torch.equal(holder_mean(4, parts, HolderMean()), torch.full((4,), 2.0))
    assert torch.equal(holder_mean(4, parts, MEDIAN), torch.full((4,), 3.0))
