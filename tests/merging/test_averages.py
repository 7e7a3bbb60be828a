"""Means and one-model merges: hand-worked cases, slow twins, and laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.merging import ClientUpdate, MergeError, SeparateTaskVectors, unify, without_modulators
from matu_flwr.merging.averages import mean_by_task, task_arithmetic, ties, weighted_mean
from matu_flwr.merging.blocks import BLOCK


def vectors(count, d, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return {f"t{i}": torch.randn(d, generator=chance) for i in range(count)}


def test_weighted_mean_by_hand():
    # (1·[1, 2] + 3·[5, -2]) / 4 = [16, -4] / 4
    found = weighted_mean(iter([torch.tensor([1.0, 2.0]), torch.tensor([5.0, -2.0])]), [1, 3])
    assert found.dtype == torch.float64
    assert found.tolist() == [4.0, -1.0]
    matrices = [torch.tensor([[1.0], [2.0]]), torch.tensor([[5.0], [-2.0]])]
    assert weighted_mean(matrices, [1, 3]).tolist() == [[4.0], [-1.0]]


@pytest.mark.parametrize("weights", [[1], [1, 2, 3]])
def test_a_mean_needs_a_weight_for_every_tensor(weights):
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is (shorter|longer)"):
        weighted_mean([torch.ones(2), torch.ones(2)], weights)


def test_mean_by_task_over_the_holders_of_each():
    updates = [
        ClientUpdate(SeparateTaskVectors({"a": torch.tensor([1.0]), "b": torch.tensor([7.0])}), {"a": 1, "b": 2}, "y"),
        ClientUpdate(SeparateTaskVectors({"a": torch.tensor([4.0])}), {"a": 2}, "x"),
    ]
    # a: (1·1 + 2·4) / 3 = 3; b has one holder
    assert {task: v.tolist() for task, v in mean_by_task(updates, 1).items()} == {"a": [3.0], "b": [7.0]}
    assert mean_by_task(updates[::-1], 1).keys() == {"a", "b"}


def test_the_order_of_clients_plays_no_part():
    d = BLOCK + 5
    updates = [
        ClientUpdate(SeparateTaskVectors(vectors(3, d, seed)), {"t0": seed + 1, "t1": 5, "t2": 9}, f"c{seed}")
        for seed in range(4)
    ]
    one, other = mean_by_task(updates, d), mean_by_task(updates[::-1], d)
    assert all(torch.equal(one[task], other[task]) for task in one)


def test_task_arithmetic_by_hand():
    # 0.5 · ([1, -2] + [3, 4]) = [2, 1]
    assert task_arithmetic({"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([3.0, 4.0])}, 0.5).tolist() == [2.0, 1.0]


def test_ties_by_hand():
    """keep = 0.5 of 4 parameters: the two largest of each vector.

    a = [4, -1, 3, 0] -> [4, 0, 3, 0];  b = [-1, -2, 5, 0.5] -> [0, -2, 5, 0];  c = [-6, 1, 2, 0.1] -> [-6, 0, 2, 0]
    sums: -2, -2, 10, 0 -> signs -, -, +, 0
    means of those that agree: -6 (c), -2 (b), (3 + 5 + 2)/3, 0
    """
    found = ties(
        {
            "a": torch.tensor([4.0, -1.0, 3.0, 0.0]),
            "b": torch.tensor([-1.0, -2.0, 5.0, 0.5]),
            "c": torch.tensor([-6.0, 1.0, 2.0, 0.1]),
        },
        keep=0.5,
        scale=1.0,
    )
    assert found.tolist() == pytest.approx([-6.0, -2.0, 10 / 3, 0.0])


def slow_ties(task_vectors, keep, scale):
    """One parameter after the other."""
    d = len(next(iter(task_vectors.values())))
    survivors = max(1, round(keep * d))
    least = {t: sorted((abs(x) for x in v.tolist()), reverse=True)[survivors - 1] for t, v in task_vectors.items()}
    merged = []
    for i in range(d):
        left = [float(v[i]) for t, v in sorted(task_vectors.items()) if abs(float(v[i])) >= least[t]]
        total = sum(left)
        agreeing = [x for x in left if x * total > 0]
        merged.append(scale * sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


@given(st.integers(1, 4), st.integers(1, 60), st.floats(0.05, 1), st.floats(0.1, 2), st.integers(0, 999))
def test_ties_is_its_slow_twin(count, d, keep, scale, seed):
    given_vectors = vectors(count, d, seed)
    expected = torch.tensor(slow_ties(given_vectors, keep, scale))
    torch.testing.assert_close(ties(given_vectors, keep, scale), expected, rtol=1e-5, atol=1e-6)


def test_ties_across_blocks():
    given_vectors = vectors(3, 2 * BLOCK + 17)
    expected = torch.tensor(slow_ties(given_vectors, 0.2, 1.0))
    torch.testing.assert_close(ties(given_vectors, 0.2, 1.0), expected, rtol=1e-5, atol=1e-6)


@given(st.integers(1, 50), st.floats(0.1, 2), st.integers(0, 99))
def test_ties_of_one_task_untrimmed_is_task_arithmetic(d, scale, seed):
    one = vectors(1, d, seed)
    torch.testing.assert_close(ties(one, 1.0, scale), task_arithmetic(one, scale))


@given(st.integers(2, 4), st.integers(1, 50), st.integers(0, 99))
def test_the_order_of_tasks_plays_no_part(count, d, seed):
    forwards = vectors(count, d, seed)
    backwards = dict(reversed(forwards.items()))
    assert torch.equal(ties(forwards, 0.3, 1.0), ties(backwards, 0.3, 1.0))
    assert torch.equal(task_arithmetic(forwards, 0.3), task_arithmetic(backwards, 0.3))


def test_a_share_that_keeps_nothing_is_refused():
    with pytest.raises(MergeError, match=r"keep = 0 is outside \(0, 1\]"):
        ties(vectors(1, 3), 0, 1.0)


def test_without_modulators_every_task_is_the_unified_vector():
    unified = unify(vectors(3, 40))
    plain = without_modulators(unified)
    for task in plain.tasks:
        assert torch.equal(plain.reconstruct(task), unified.vector)


def test_separate_vectors_name_a_task_that_is_not_among_them():
    with pytest.raises(MergeError, match=r"no task 'c' among these task vectors; they are of \['a', 'b'\]"):
        SeparateTaskVectors({"b": torch.ones(2), "a": torch.ones(2)}).reconstruct("c")
    update = ClientUpdate(SeparateTaskVectors({"a": torch.ones(2)}), {"a": 1}, "north")
    with pytest.raises(MergeError, match="client 'north' sent separate task vectors, expected one unified task vector"):
        update.modulated  # noqa: B018
