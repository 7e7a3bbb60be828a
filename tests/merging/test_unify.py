"""Elect, mask, rescale: four-number cases by hand, the slow twin, and the laws of the operator."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.merging import (
    MAX_MAGNITUDE,
    MAX_RESCALER,
    PAPER,
    ClientUpdate,
    MergeError,
    MergeOptions,
    UnifiedTaskVector,
    aggregate,
    as_sent,
    unify,
)
from matu_flwr.merging.blocks import blocks
from matu_flwr.merging.inputs import as_vector
from matu_flwr.merging.quantise import dequantise, quantise
from tests.merging import slow_twin
from tests.merging.cases import (
    HUGE,
    TINY,
    block_size,
    block_sizes,
    grid,
    integers,
    laws,
    task_vectors,
    to_floats,
    to_tensor,
    to_tensors,
    twins,
)

# ---------------------------------------------------------------- by hand


def test_two_tasks_by_hand():
    #   a        1    -2     3    .5      ‖a‖₁ = 6.5
    #   b       -3    -1     1   -.5      ‖b‖₁ = 5.5
    #   sum     -2    -3     4     0      σ = - - + 0
    #   μ        3     2     3     0      (at 0 only b agrees; at 3 nobody is asked)
    #   m^a      0     1     1     0      ‖m^a ⊙ τ‖₁ = 2 + 3     = 5   λ^a = 6.5 / 5 = 1.3
    #   m^b      1     1     1     0      ‖m^b ⊙ τ‖₁ = 3 + 2 + 3 = 8   λ^b = 5.5 / 8 = .6875
    unified = unify({"a": to_tensor([1, -2, 3, 0.5]), "b": to_tensor([-3, -1, 1, -0.5])}, **PAPER)
    assert unified.vector.tolist() == [-3, -2, 3, 0]
    assert unified.masks["a"].tolist() == [False, True, True, False]
    assert unified.masks["b"].tolist() == [True, True, True, False]
    assert unified.rescalers == pytest.approx({"a": 1.3, "b": 0.6875}, rel=1e-15)
    assert unified.reconstruct("a").tolist() == pytest.approx([0, -2.6, 3.9, 0], rel=1e-6)
    assert unified.reconstruct("b").tolist() == [-2.0625, -1.375, 2.0625, 0]


def test_magnitude_comes_only_from_tasks_that_agree_with_the_elected_sign():
    #   a        2    -1     4     0      ‖a‖₁ = 7
    #   b        2    -1    -1     0      ‖b‖₁ = 4
    #   c       -3     1     1    -1      ‖c‖₁ = 6
    #   sum      1    -1     4    -1      σ = + - + -
    #   μ        2     1     4     1      (not 3 at 0: c is larger there, but lost the election)
    #   m^a      1     1     1     0      kept 2 + 1 + 4 = 7   λ^a = 1
    #   m^b      1     1     0     0      kept 2 + 1     = 3   λ^b = 4 / 3
    #   m^c      0     0     1     1      kept 4 + 1     = 5   λ^c = 6 / 5
    unified = unify(
        {"a": to_tensor([2, -1, 4, 0]), "b": to_tensor([2, -1, -1, 0]), "c": to_tensor([-3, 1, 1, -1])}, **PAPER
    )
    assert unified.vector.tolist() == [2, -1, 4, -1]
    assert unified.masks["a"].tolist() == [True, True, True, False]
    assert unified.masks["b"].tolist() == [True, True, False, False]
    assert unified.masks["c"].tolist() == [False, False, True, True]
    assert unified.rescalers == pytest.approx({"a": 1, "b": 4 / 3, "c": 1.2}, rel=1e-15)


def test_a_task_that_loses_every_election_has_an_empty_mask_and_rescaler_zero():
    unified = unify({"big": to_tensor([5, -5, 5, -5]), "lost": to_tensor([-1, 1, -1, 1])}, **PAPER)
    assert not unified.masks["lost"].any()
    assert unified.rescalers == {"big": 1.0, "lost": 0.0}
    assert not unified.reconstruct("lost").any()


def test_an_all_zero_task_has_an_empty_mask_and_rescaler_zero():
    unified = unify({"zero": torch.zeros(4), "a": to_tensor([1, 0, -2, 3])}, **PAPER)
    assert unified.vector.tolist() == [1, 0, -2, 3]
    assert not unified.masks["zero"].any()
    assert unified.rescalers == {"a": 1.0, "zero": 0.0}
    alone = unify({"zero": torch.zeros(4)}, **PAPER)
    assert alone.rescalers == {"zero": 0.0}
    assert not alone.masks["zero"].any()
    assert not alone.reconstruct("zero").any()


def test_rescaler_is_one_ratio_over_the_flat_vector_and_not_a_mean_over_blocks():
    # First block: a keeps 8 · 4 of its own 8 · 1. Second block: alone with 8 · 4 of 8 · 4. Flat: 40 / 64 = .625; the
    # mean of the two ratios would be also .625 with equal norms, so the second block is 8 · 2: 24 / 48 = .5.
    a = to_tensor([1.0] * 8 + [2.0] * 8)
    b = to_tensor([4.0] * 8 + [0.0] * 8)
    with block_size(8):
        unified = unify({"a": a, "b": b}, **PAPER)
    assert unified.rescalers == {"a": 0.5, "b": 1.0}  # the mean of ratios would be (.25 + 1) / 2 = .625


def test_masks_survive_products_that_underflow():
    # 1e-30 · 1e-30 is 0 in float32: a mask from the product τ^t ⊙ τ would be empty.
    unified = unify({"a": to_tensor([1e-30, -TINY, 2e-40]), "b": to_tensor([1e-30, TINY, 1e-40])}, **PAPER)
    assert unified.masks["a"].tolist() == [True, False, True]
    assert unified.rescalers["a"] == pytest.approx(1, rel=1e-6)


def test_the_election_does_not_overflow():
    big = 1e30  # no float32 is larger of those that unify takes; their sum is taken in float64
    unified = unify({"a": to_tensor([big, big]), "b": to_tensor([big, -big]), "c": to_tensor([-big, -big])}, **PAPER)
    assert to_floats(unified.vector) == to_floats(to_tensor([big, -big]))
    assert unified.rescalers == {"a": 2.0, "b": 1.0, "c": 2.0}


def test_the_election_sums_in_float64_in_the_order_of_names():
    # 2^24 + 1 is no float32: a float32 sum elects 0 here, the float64 sum +1.
    vectors = {"a": to_tensor([2.0**24]), "b": to_tensor([1.0]), "c": to_tensor([-(2.0**24)])}
    assert unify(vectors, **PAPER).vector.tolist() == [2.0**24]
    # Beyond float64 the order of names decides, not the order of the mapping: (1e30 + 1) - 1e30 = 0 but
    # (1e30 - 1e30) + 1 = 1.
    for order in (["a", "b", "c"], ["c", "a", "b"], ["b", "c", "a"]):
        values = {"a": 1e30, "b": 1.0, "c": -1e30}
        assert unify({name: to_tensor([values[name]]) for name in order}, **PAPER).vector.tolist() == [0]
        values = {"a": 1e30, "b": -1e30, "c": 1.0}
        assert unify({name: to_tensor([values[name]]) for name in order}, **PAPER).masks["c"].tolist() == [True]


def test_cleared_bits_by_hand():
    #   a        1    -2     3    .5
    #   b       -3    -1     1   -.5
    #   σ        -     -     +     0      as above
    #   μ        2    1.5    2     0      mean of |a| and |b|
    #   m^a      0     1     1     0      set: 2 + 3 of 1.5 + 2 -> λ^a = 5 / 3.5      cleared: 1 of 2 -> λ₋^a = .5
    #   m^b      1     1     1     0      set: 3 + 1 + 1 of 2 + 1.5 + 2 -> λ^b = 5 / 5.5        none cleared: λ₋^b = 0
    vectors = {"a": to_tensor([1, -2, 3, 0.5]), "b": to_tensor([-3, -1, 1, -0.5])}
    unified = unify(vectors)  # what a run does by default
    assert unified.vector.tolist() == [-2, -1.5, 2, 0]
    assert unified.masks["a"].tolist() == [False, True, True, False]
    assert unified.rescalers == pytest.approx({"a": 5 / 3.5, "b": 5 / 5.5}, rel=1e-15)
    assert unified.opposites == {"a": 0.5, "b": 0.0}
    assert unified.reconstruct("a").tolist() == pytest.approx([1, -7.5 / 3.5, 10 / 3.5, 0], rel=1e-6)
    assert unify(vectors, reconstruction="masked").rescalers == pytest.approx({"a": 6.5 / 3.5, "b": 1}, rel=1e-15)


# ---------------------------------------------------------------- the slow twin

operators = {
    "magnitude": st.sampled_from(["max", "mean"]),
    "reconstruction": st.sampled_from(["masked", "complete"]),
}


@twins
@given(vectors=task_vectors(), parameters=block_sizes, **operators)
def test_unify_is_its_slow_twin(vectors, parameters, magnitude, reconstruction):
    twin = slow_twin.unify(vectors, magnitude, reconstruction)
    with block_size(parameters):
        unified = unify(to_tensors(vectors), magnitude=magnitude, reconstruction=reconstruction)
        reconstructed = {task: to_floats(unified.reconstruct(task)) for task in vectors}
    assert to_floats(unified.vector) == twin.vector
    assert {task: mask.tolist() for task, mask in unified.masks.items()} == twin.masks
    assert unified.rescalers == pytest.approx(twin.rescalers, rel=1e-12, abs=0)
    assert unified.opposites == pytest.approx(twin.opposites or {}, rel=1e-12, abs=0)
    for task in vectors:
        expected = slow_twin.reconstruct(twin, task)
        rescalers = [found[task] for found in (twin.rescalers, twin.opposites) if found and found[task]]
        # λ and λ · τ are float32 numbers on their way: beyond its range there is nothing to compare.
        if all(1e-30 < rescaler < 1e30 for rescaler in rescalers) and max(map(abs, expected), default=0) < 3e38:
            assert reconstructed[task] == pytest.approx(expected, rel=1e-6, abs=(1 + sum(rescalers)) * TINY)


@twins
@given(vectors=task_vectors(values=grid), parameters=block_sizes, **operators)
def test_unify_is_its_slow_twin_where_ties_are_common(vectors, parameters, magnitude, reconstruction):
    twin = slow_twin.unify(vectors, magnitude, reconstruction)
    with block_size(parameters):
        unified = unify(to_tensors(vectors), magnitude=magnitude, reconstruction=reconstruction)
    assert to_floats(unified.vector) == twin.vector
    assert {task: mask.tolist() for task, mask in unified.masks.items()} == twin.masks
    assert unified.rescalers == pytest.approx(twin.rescalers, rel=1e-12, abs=0)


# ---------------------------------------------------------------- laws


@laws
@given(vectors=task_vectors(max_tasks=1), parameters=block_sizes)
def test_one_task_is_its_own_unified_vector(vectors, parameters):
    (values,) = vectors.values()
    tau = to_tensor(values)
    with block_size(parameters):
        unified = unify({"only": tau}, **PAPER)
    assert torch.equal(unified.vector, tau)
    assert torch.equal(unified.masks["only"], tau != 0)
    assert unified.rescalers == {"only": 1.0 if tau.any() else 0.0}
    assert torch.equal(unified.reconstruct("only"), tau)
    assert unified.vector.data_ptr() != tau.data_ptr() or not values


@laws
@given(vectors=task_vectors(), data=st.data())
def test_order_of_tasks_does_not_matter(vectors, data):
    shuffled = data.draw(st.permutations(sorted(vectors)))
    a, b = unify(to_tensors(vectors), **PAPER), unify(to_tensors({name: vectors[name] for name in shuffled}), **PAPER)
    assert torch.equal(a.vector, b.vector)
    assert a.rescalers == b.rescalers
    assert all(torch.equal(a.masks[task], b.masks[task]) for task in vectors)


@laws
@given(vectors=task_vectors(values=integers), c=st.one_of(st.integers(1, 1000).map(float), st.integers(-40, 40)))
def test_positive_scaling_scales_the_vector_and_leaves_the_modulators(vectors, c):
    c = c if isinstance(c, float) else 2.0**c
    plain = unify(to_tensors(vectors), **PAPER)
    scaled = unify({task: tau * c for task, tau in to_tensors(vectors).items()}, **PAPER)
    assert torch.equal(scaled.vector, plain.vector * c)
    assert all(torch.equal(scaled.masks[task], plain.masks[task]) for task in vectors)
    assert scaled.rescalers == pytest.approx(plain.rescalers, rel=1e-12)


@laws
@given(vectors=task_vectors())
def test_negation_negates_the_vector_and_leaves_the_modulators(vectors):
    plain, negated = (
        unify(to_tensors(vectors), **PAPER),
        unify({task: -tau for task, tau in to_tensors(vectors).items()}, **PAPER),
    )
    assert torch.equal(negated.vector, -plain.vector)
    assert negated.rescalers == plain.rescalers
    assert all(torch.equal(negated.masks[task], plain.masks[task]) for task in vectors)


@laws
@given(vectors=task_vectors())
def test_a_zero_task_changes_nothing_for_the_others(vectors):
    without = unify(to_tensors(vectors), **PAPER)
    d = without.d
    with_zero = unify({**to_tensors(vectors), "another": torch.zeros(d)}, **PAPER)
    assert torch.equal(with_zero.vector, without.vector)
    assert with_zero.rescalers == {**without.rescalers, "another": 0.0}
    assert all(torch.equal(with_zero.masks[task], without.masks[task]) for task in vectors)


@laws
@given(vectors=task_vectors(max_tasks=1), copies=st.integers(2, 5))
def test_tasks_that_are_equal_lose_nothing(vectors, copies):
    (values,) = vectors.values()
    tau = to_tensor(values)
    unified = unify({f"copy{k}": tau for k in range(copies)}, **PAPER)
    assert all(torch.equal(unified.reconstruct(task), tau) for task in unified.tasks)


@laws
@given(vectors=task_vectors())
def test_every_elected_parameter_is_the_largest_of_its_voters(vectors):
    """τ[i] belongs to some task; every task with the bit is at most as large; cleared bits did not agree."""
    taus = to_tensors(vectors)
    unified = unify(taus, **PAPER)
    masks = torch.stack([unified.masks[task] for task in taus])
    assert torch.equal(masks.any(dim=0), unified.vector != 0)
    stacked = torch.stack([taus[task] for task in taus])
    assert torch.equal(masks, (stacked.sign() == unified.vector.sign()) & (unified.vector != 0))
    assert bool((stacked.abs() <= unified.vector.abs())[masks].all())
    assert bool(((stacked == unified.vector) & masks).any(dim=0)[unified.vector != 0].all())


@laws
@given(vectors=task_vectors(values=integers))
def test_reconstruction_keeps_the_l1_norm_of_a_task(vectors):
    unified = unify(to_tensors(vectors), **PAPER)
    for task, tau in to_tensors(vectors).items():
        norm = tau.abs().sum().item() if unified.masks[task].any() else 0
        assert unified.reconstruct(task).abs().sum().item() == pytest.approx(norm, rel=1e-5)


@laws
@given(vectors=task_vectors(), data=st.data())
def test_parameters_are_treated_alike(vectors, data):
    """Permuting the parameters permutes vector and masks, and leaves the rescalers."""
    d = len(next(iter(vectors.values())))
    order = torch.tensor(data.draw(st.permutations(range(d))), dtype=torch.long)
    plain, permuted = (
        unify(to_tensors(vectors), **PAPER),
        unify({t: tau[order] for t, tau in to_tensors(vectors).items()}, **PAPER),
    )
    assert torch.equal(permuted.vector, plain.vector[order])
    assert all(torch.equal(permuted.masks[t], plain.masks[t][order]) for t in vectors)
    assert permuted.rescalers == pytest.approx(plain.rescalers, rel=1e-12)


@laws
@given(vectors=task_vectors(), parameters=block_sizes)
def test_inputs_and_the_unified_vector_are_left_alone(vectors, parameters):
    taus = to_tensors(vectors)
    with block_size(parameters):
        unified = unify(taus, **PAPER)
        before = unified.vector.clone()
        first = {task: unified.reconstruct(task) for task in taus}
        again = {task: unified.reconstruct(task) for task in taus}
    assert all(to_floats(taus[task]) == vectors[task] for task in taus)
    assert torch.equal(unified.vector, before), "reconstruct wrote into the unified vector"
    for task in taus:
        assert torch.equal(first[task].nan_to_num(), again[task].nan_to_num())
        assert first[task].data_ptr() != unified.vector.data_ptr() or unified.d == 0, "a new vector, says its docstring"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reconstruct_makes_a_new_float32_vector(dtype):
    vector = torch.tensor([2.0, -4.0, 8.0], dtype=dtype)
    unified = UnifiedTaskVector(vector, {"a": torch.tensor([True, False, True])}, {"a": 0.5})
    assert unified.reconstruct("a").tolist() == [1, 0, 4]
    assert unified.reconstruct("a").dtype == torch.float32
    assert unified.vector.tolist() == [2, -4, 8]


@laws
@given(vectors=task_vectors(values=integers), parameters=st.sampled_from([8, 16]))
def test_reconstruct_block_is_a_part_of_reconstruct(vectors, parameters):
    unified = unify(to_tensors(vectors), **PAPER)
    for task in vectors:
        whole = unified.reconstruct(task)
        for start in range(0, unified.d, parameters):
            stop = min(start + parameters, unified.d)
            assert torch.equal(unified.reconstruct_block(task, start, stop), whole[start:stop])


# "For T independent Gaussian vectors the mean λ is about .94/.84/.76/.66 and the mask density .75/.67/.62/.56".
# d = 40 000: the standard error of a density is below .0025, that of a mean λ smaller.
@pytest.mark.parametrize(
    ("num_tasks", "rescaler", "density"), [(2, 0.94, 0.75), (4, 0.84, 0.67), (8, 0.76, 0.62), (30, 0.66, 0.56)]
)
def test_gaussian_tasks(num_tasks, rescaler, density):
    generator = torch.Generator().manual_seed(num_tasks)
    unified = unify({f"task{k}": torch.randn(40_000, generator=generator) for k in range(num_tasks)}, **PAPER)
    masks = torch.stack(list(unified.masks.values()))
    assert sum(unified.rescalers.values()) / num_tasks == pytest.approx(rescaler, abs=0.01)
    assert masks.double().mean().item() == pytest.approx(density, abs=0.01)


@laws
@given(vectors=task_vectors(values=integers), magnitude=st.sampled_from(["max", "mean"]))
def test_complete_reconstruction_keeps_signs_and_l1_norms(vectors, magnitude):
    """Over σ ≠ 0: the L1 norm over set bits and over cleared ones, and the sign of what is not zero."""
    unified = unify(to_tensors(vectors), magnitude=magnitude, reconstruction="complete")
    for task, tau in to_tensors(vectors).items():
        found, mask, elected = unified.reconstruct(task), unified.masks[task], unified.vector != 0
        assert torch.equal(found[mask].sign(), tau[mask].sign())
        assert bool((found[~mask] * tau[~mask] >= 0).all())
        for where in (mask, ~mask & elected):
            assert found[where].abs().sum().item() == pytest.approx(tau[where].abs().sum().item(), rel=1e-5)


# Relative error of independent Gaussian vectors. The numbers are those of the definition in numpy on a million
# parameters: .498/.693/.801 and .375/.504/.555.
@pytest.mark.parametrize(("num_tasks", "masked", "complete"), [(2, 0.498, 0.375), (4, 0.693, 0.504), (8, 0.801, 0.555)])
def test_what_the_channel_loses_of_gaussian_tasks(num_tasks, masked, complete):
    generator = torch.Generator().manual_seed(num_tasks)
    taus = {f"task{k}": torch.randn(40_000, generator=generator) for k in range(num_tasks)}

    def error(**operator):
        unified = unify(taus, **operator)
        return sum(float((unified.reconstruct(t) - tau).norm() / tau.norm()) for t, tau in taus.items()) / num_tasks

    assert error(**PAPER) == pytest.approx(masked, abs=0.01)
    assert error() == pytest.approx(complete, abs=0.01)


def test_any_number_of_threads_gives_the_same_bits():
    generator = torch.Generator().manual_seed(0)
    taus = {f"task{k}": torch.randn(100_003, generator=generator) for k in range(3)}
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(unify(taus))
    finally:
        torch.set_num_threads(threads)
    assert results[0].rescalers == results[1].rescalers
    assert torch.equal(results[0].vector, results[1].vector)


@pytest.mark.parametrize("d", [0, 1, 7, 8, 9, 16, 17])
def test_blocks_cover_every_parameter_once(d):
    with block_size(8):
        covered = [i for start, stop in blocks(d) for i in range(start, stop)]
        assert all(start % 8 == 0 and 0 < stop - start <= 8 for start, stop in blocks(d))
    assert covered == list(range(d))


def test_names_and_length():
    unified = unify({"b": torch.ones(3), "a": torch.ones(3)})
    assert unified.tasks == ["a", "b"]
    assert unified.d == 3
    assert unified.vector.dtype == torch.float32
    assert unified.masks["a"].dtype == torch.bool


# ---------------------------------------------------------------- refusals

FINE = torch.ones(4)


@pytest.mark.parametrize(
    ("vectors", "text"),
    [
        ({}, "no tasks"),
        ({"a": FINE, "b": to_tensor([0, 1, float("nan"), 2])}, "task vector 'b' has nan at parameter 2"),
        ({"a": to_tensor([float("inf"), 0, 0, 0]), "b": FINE}, "task vector 'a' has inf at parameter 0"),
        ({"a": to_tensor([0, 0, 0, -float("inf")])}, "task vector 'a' has -inf at parameter 3"),
        ({"a": FINE, "b": torch.ones(5)}, r"task vector 'b' has shape \(5,\), expected \(4,\) as task 'a'"),
        ({"a": FINE, "b": torch.ones(2, 2)}, r"task vector 'b' has shape \(2, 2\), expected \(d,\): flatten it, with"),
        ({"a": torch.ones(1, 4)}, r"task vector 'a' has shape \(1, 4\), expected \(d,\): flatten it, with \.reshape"),
        ({"a": np.ones((1, 4))}, r"task vector 'a' has shape \(1, 4\), expected \(d,\): flatten it"),
        ({"a": [[1.0], [2.0]]}, r"task vector 'a' has shape \(2, 1\), expected \(d,\)"),
        ({"a": torch.tensor(1.0)}, r"task vector 'a' has shape \(\), expected \(d,\): one number is no vector"),
        ({"a": np.float32(1)}, r"task vector 'a' has shape \(\), expected \(d,\)"),
        ({"a": 1.0}, "task vector 'a' is 1.0, expected a tensor, an array or a list of numbers"),
        ({"a": None}, "task vector 'a' is None, expected a tensor, an array"),
        ({"a": "0.5"}, "task vector 'a' is '0.5', expected a tensor, an array"),
        ({"a": torch.ones(4, dtype=torch.int64)}, "'a' is torch.int64, expected floating-point numbers: convert it"),
        ({"a": torch.ones(4, dtype=torch.bool)}, "'a' is torch.bool, expected floating-point"),
        ({"a": torch.ones(4, dtype=torch.complex64)}, "'a' is torch.complex64, expected floating-point"),
        ({"a": np.ones(4, np.int32)}, r"'a' is of int32, expected floating-point numbers: convert it with \.float"),
        ({"a": np.ones(4, bool)}, "'a' is of bool, expected floating-point"),
        ({"a": np.array(["x"])}, "'a' is of <U1, expected floating-point"),
        ({"a": [True, False]}, "'a' is of bool, expected floating-point"),
        ({"a": ["x"]}, "'a' is of <U1, expected floating-point"),
        ({"a": [[1.0], [2.0, 3.0]]}, "'a' cannot be read as numbers .*, expected"),
        ({"a": np.ma.masked_array([1.0, 2.0], [True, False])}, "'a' is a masked array, expected one without gaps"),
        ({"a": torch.ones(4).to_sparse()}, r"'a' is a tensor of layout torch.sparse_coo, expected a dense one"),
        ({"a": torch.ones(4, device="meta")}, "'a' is on the device meta, which holds no numbers"),
        ({"a": FINE, "b": FINE.numpy()[:3]}, r"task vector 'b' has shape \(3,\), expected \(4,\) as task 'a'"),
        ({"a": torch.nn.Linear(2, 2).state_dict()}, r"'a' is a mapping of 2 entries, expected one vector .*: subtract"),
        (
            {"a": torch.nn.Linear(2, 2)},
            r"'a' is a Linear, expected one vector .*ParameterLayout\.of\(pretr",
        ),
        ({3: FINE}, "task_vectors has the task 3, expected a name as text"),
        ([("a", FINE), ("a", FINE)], "task_vectors is a list, expected a mapping by task"),
        (FINE, "task_vectors is a Tensor, expected a mapping by task"),
        (
            {"a": to_tensor([0, 2e30])},
            r"task vector 'a' has 2\.\d+e\+30 at parameter 1, expected at most 1e\+30",
        ),
        ({"a": np.array([0, 1e300])}, "task vector 'a' has inf at parameter 1"),
    ],
)
def test_unify_refuses(vectors, text):
    with pytest.raises(MergeError, match=text):
        unify(vectors)


@pytest.mark.parametrize(("name", "value"), [("magnitude", "median"), ("reconstruction", "none"), ("magnitude", 3)])
def test_a_switch_that_does_not_exist_is_refused(name, value):
    with pytest.raises(MergeError, match=rf"{name} = {value!r}: expected one of \['"):
        unify({"a": FINE}, **{name: value})


# ---------------------------------------------------------------- what is taken for a vector

NUMBERS = [0.5, -2.0, 0.0, 3.25, -0.125]


def read_only(array):
    array.setflags(write=False)
    return array


FORMS = {
    "float64": lambda x: torch.tensor(x, dtype=torch.float64),
    "float16": lambda x: torch.tensor(x, dtype=torch.float16),
    "bfloat16": lambda x: torch.tensor(x, dtype=torch.bfloat16),
    "strided": lambda x: torch.stack([torch.tensor(x), torch.ones(len(x))], dim=1)[:, 0],
    "negated view": lambda x: torch._neg_view(-torch.tensor(x)),
    "with a gradient": lambda x: torch.nn.Parameter(torch.tensor(x)),
    "of a computation": lambda x: torch.nn.Parameter(torch.tensor(x)) * 1,
    "numpy": lambda x: np.array(x, np.float32),
    "numpy float64": np.array,
    "numpy float16": lambda x: np.array(x, np.float16),
    "numpy longdouble": lambda x: np.array(x, np.longdouble),
    "numpy backwards": lambda x: np.array(x[::-1], np.float32)[::-1],
    "numpy strided": lambda x: np.repeat(np.array(x, np.float32), 2)[::2],
    "numpy big-endian": lambda x: np.array(x, ">f4"),
    "numpy big-endian float64": lambda x: np.array(x, ">f8"),
    "numpy read-only": lambda x: read_only(np.array(x, np.float32)),
    "numpy unaligned": lambda x: np.frombuffer(b"\0" + np.array(x, np.float32).tobytes(), np.float32, offset=1),
    "list": list,
    "tuple": tuple,
    "list of numbers of numpy": lambda x: [np.float64(v) for v in x],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("error")
def test_floating_point_numbers_of_any_form_are_taken(form):
    other = [1.0, 1.0, -1.0, -0.5, 0.25]
    expected = unify({"a": to_tensor(NUMBERS), "b": to_tensor(other)})
    values = FORMS[form](NUMBERS)
    found = unify({"a": values, "b": torch.tensor(other)})
    assert torch.equal(found.vector, expected.vector)
    assert (found.rescalers, found.opposites) == (expected.rescalers, expected.opposites)
    assert all(torch.equal(found.masks[task], expected.masks[task]) for task in "ab")
    assert not found.vector.requires_grad
    unify({"a": values}).vector.fill_(9)
    values = values.detach() if isinstance(values, torch.Tensor) else values
    assert [float(v) for v in values] == NUMBERS, "what was given is left alone"


def test_a_list_of_whole_numbers_is_a_list_of_numbers():
    assert unify({"a": [1, -2, 3]}).vector.tolist() == [1, -2, 3]
    assert unify({"a": []}).d == 0


def test_float32_is_read_where_it_is(tmp_path):
    """It may be a file that is larger than memory."""
    file = np.memmap(tmp_path / "a", np.float32, "w+", shape=(9,))
    file.flush()
    mapped = np.memmap(tmp_path / "a", np.float32, "r", shape=(9,))
    for values in (torch.ones(3), np.ones(3, np.float32), mapped):
        pointer = values.data_ptr() if isinstance(values, torch.Tensor) else values.ctypes.data
        assert as_vector(values, "a").data_ptr() == pointer


# ---------------------------------------------------------------- the ends of float32

ENDS = st.sampled_from([0.0, TINY, -TINY, 3 * TINY, 2.0**-126, 1e-38, 1e-30, 1.0, -1.0, 1e30, -1e30, HUGE])


@twins
@given(vectors=task_vectors(values=ENDS, max_d=3), **operators)
def test_whatever_unify_makes_fits_the_wire_and_does_not_overflow(vectors, magnitude, reconstruction):
    vectors = to_tensors({task: [min(max(v, -1e30), 1e30) for v in values] for task, values in vectors.items()})
    vectors = {task: tau.clamp(-1e30, 1e30) for task, tau in vectors.items()}
    unified = unify(vectors, magnitude=magnitude, reconstruction=reconstruction)
    twin = slow_twin.unify({task: to_floats(tau) for task, tau in vectors.items()}, magnitude, reconstruction)
    assert to_floats(unified.vector) == twin.vector
    assert unified.rescalers == pytest.approx(twin.rescalers, rel=1e-12, abs=0)
    assert unified.opposites == pytest.approx(twin.opposites or {}, rel=1e-12, abs=0)
    for rescaler in (*unified.rescalers.values(), *unified.opposites.values()):
        assert 0 <= rescaler <= MAX_RESCALER
    if unified.d:
        sent = [as_sent(unified.vector, dtype) for dtype in ("float32", "bfloat16")]
        sent.append(dequantise(quantise(unified.vector, "int8"), unified.d, "int8"))
        assert all(float(values.float().abs().max()) <= 10 * MAX_MAGNITUDE for values in sent)
    for task in vectors:
        assert bool(torch.isfinite(unified.reconstruct(task)).all())
    for options in (MergeOptions(combine="sum", epsilon=-9), MergeOptions.paper(combine="sum", epsilon=0, kappa=9)):
        updates = [ClientUpdate(unified, dict.fromkeys(vectors, 3), name) for name in ("north", "south")]
        if unified.d:
            merged = aggregate(updates, options)
            assert all(bool(torch.isfinite(tau).all()) for tau in merged.task_vectors.values())


def test_a_rescaler_is_a_million_at_most():
    # a wins the election only at parameter 0, where it is tiny: ‖a‖₁ / ‖m^a ⊙ τ‖₁ = 5 / 1e-10. As published.
    unified = unify({"a": to_tensor([1e-10, 5]), "b": to_tensor([1e-10, -6])}, **PAPER)
    assert unified.rescalers == {"a": 1e6, "b": pytest.approx(1)}
    # By default nothing of the kind: μ is at least a T-th of what any task has there.
    assert max(unify({"a": to_tensor([1e-10, 5]), "b": to_tensor([1e-10, -6])}).rescalers.values()) <= 2


def test_a_mean_below_the_smallest_number_elects_nothing():
    # The mean of 1.4e-45 and 0 is no float32, and 0 is nearest: nothing is known there.
    unified = unify({"a": to_tensor([TINY]), "b": to_tensor([0])})
    assert (unified.vector.tolist(), unified.rescalers) == ([0], {"a": 0.0, "b": 0.0})
    assert unify({"a": to_tensor([TINY]), "b": to_tensor([TINY])}).vector.tolist() == [TINY]


def test_a_rescaler_below_the_smallest_number_makes_zeros():
    # λ of b is 1e-45 / 1e30: as a float32 it is 0.
    unified = unify({"a": to_tensor([1e30, 0]), "b": to_tensor([TINY, 0])}, **PAPER)
    assert 0 < unified.rescalers["b"] < 1e-70
    assert unified.reconstruct("b").tolist() == [0, 0]
    merged = aggregate([ClientUpdate(unified, {"a": 1, "b": 1}, "north")], MergeOptions(kappa=0))
    assert merged.task_vectors["b"].tolist() == [0, 0]


def test_reconstruct_refuses_a_task_that_is_not_there():
    with pytest.raises(MergeError, match=r"no task 'c' in this unified task vector; it holds \['a', 'b'\]"):
        unify({"a": FINE, "b": FINE}).reconstruct("c")
