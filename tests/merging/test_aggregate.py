"""The whole round at the server: by hand, against the slow twin, its laws and its refusals."""

import dataclasses
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.merging import ClientUpdate, MergeError, MergeOptions, PackedMasks, UnifiedTaskVector, aggregate, unify
from tests.merging import slow_twin
from tests.merging.cases import (
    bits,
    block_size,
    block_sizes,
    in_full,
    integers,
    laws,
    options,
    packed,
    replies,
    reply,
    same_result,
    single,
    to_floats,
    to_tensor,
    to_twin,
    twins,
)

# ---------------------------------------------------------------- by hand

# x is held by A, y by B, one task each:
#   τ̂^x    1  1  1  1
#   τ̂^y    2  2  2 -2      S = ½(1 + (3 - 1) / 4) = .75, excess ½; z = 2 / √4 = 1; m̂ = 1 everywhere


def x_and_y() -> list[ClientUpdate]:
    return [single("B", "y", [2, 2, 2, -2], 300), single("A", "x", [1, 1, 1, 1], 50)]


@pytest.mark.parametrize("signs", ["masked", "complete"])
@pytest.mark.parametrize(
    ("weight", "combine", "x", "y"),
    [
        # (1 + .75 · 2) / 1.75 = 10/7, (1 - 1.5) / 1.75 = -2/7;  (2 + .75) / 1.75 = 11/7, (-2 + .75) / 1.75 = -5/7
        ("similarity", "mean", (10 / 7, -2 / 7), (11 / 7, -5 / 7)),
        # (1 + .5 · 2) / 1.5 = 4/3, (1 - 1) / 1.5 = 0;  (2 + .5) / 1.5 = 5/3, (-2 + .5) / 1.5 = -1
        ("excess", "mean", (4 / 3, 0), (5 / 3, -1)),
        # 1 + .75 · 2, 1 - .75 · 2;  2 + .75, -2 + .75
        ("similarity", "sum", (2.5, -0.5), (2.75, -1.25)),
        # 1 + .5 · 2, 1 - .5 · 2;  2 + .5, -2 + .5
        ("excess", "sum", (2, 0), (2.5, -1.5)),
    ],
)
def test_two_tasks_by_hand(signs, weight, combine, x, y):
    result = aggregate(x_and_y(), MergeOptions.paper(relation_weight=weight, combine=combine, signs=signs))
    assert result.tasks == ["x", "y"]
    assert result.similarity.tolist() == [[1, 0.75], [0.75, 1]]
    assert result.graph.z.tolist() == [[2, 1], [1, 2]]
    assert result.related == {"x": ["y"], "y": ["x"]}
    assert result.task_vectors["x"].tolist() == pytest.approx([x[0], x[0], x[0], x[1]], rel=1e-6)
    assert result.task_vectors["y"].tolist() == pytest.approx([y[0], y[0], y[0], y[1]], rel=1e-6)


@pytest.mark.parametrize(
    ("epsilon", "unit", "related"),
    [(0.75, "similarity", True), (0.76, "similarity", False), (1.0, "z", True), (1.01, "z", False)],
)
def test_epsilon_by_hand(epsilon, unit, related):
    result = aggregate(x_and_y(), MergeOptions.paper(epsilon=epsilon, epsilon_unit=unit))
    assert result.related == ({"x": ["y"], "y": ["x"]} if related else {"x": [], "y": []})
    if not related:
        assert result.task_vectors["x"].tolist() == [1, 1, 1, 1]
        assert result.task_vectors["y"].tolist() == [2, 2, 2, -2]


def test_another_task_reaches_a_task_only_where_its_holders_agree():
    # x: A says + + + 0, B says + - + 0, so α = 1, 0, 1, 0 and τ̂^x = [2, 0, 2, 0]; y, held by C: [2, 2, 2, 2].
    # S = ½(1 + 2/4) = .75. x: (2 + .75 · 2) / 1.75 = 2 at 0 and 2; m̂ = 0 at 1 and 3. y: (2 + 1.5) / 1.75 = 2, 2 / 1.75.
    updates = [single("A", "x", [2, 2, 2, 0]), single("B", "x", [2, -2, 2, 0]), single("C", "y", [2, 2, 2, 2])]
    result = aggregate(updates, MergeOptions.paper())
    assert result.similarity[0, 1] == 0.75
    assert result.task_vectors["x"].tolist() == [2, 0, 2, 0]
    assert result.task_vectors["y"].tolist() == pytest.approx([2, 8 / 7, 2, 8 / 7], rel=1e-6)


def test_tasks_learn_from_each_other_as_they_were():
    """Step 5 reads τ̂ of the others, not what step 5 has just made of them."""
    updates = [single(n, f"task{n}", [value] * 4) for n, value in (("a", 1), ("b", 2), ("c", 4))]
    result = aggregate(updates, MergeOptions.paper(kappa=2))  # S = 1 everywhere: each becomes the mean of all three
    for vector in result.task_vectors.values():
        assert vector.tolist() == pytest.approx([7 / 3] * 4, rel=1e-6)


def test_complete_signs_free_the_task_graph_of_who_shares_a_client():
    # One client, two opposed tasks, τ = [3, -3, 3, -3]; p agrees at 0 and 1, q at 2 and 3 and both nowhere.
    update = reply("A", [3, -3, 3, -3], {"p": "1100", "q": "0011"}, {"p": 1.0, "q": 1.0})
    assert aggregate([update], MergeOptions.paper(signs="masked")).similarity[0, 1] == 0.5
    assert aggregate([update], MergeOptions.paper(signs="complete")).similarity[0, 1] == 0  # + - - + against - + + -


# ---------------------------------------------------------------- the slow twin


def doubtful_signs(twin: slow_twin.Merged, options: MergeOptions) -> int:
    """How many signs of τ̂ are those of a rounding error, because a sum of reconstructions cancels there.

    Complete signs are integer votes, and never doubtful.
    """
    if options.signs == "complete":
        return 0
    return sum(
        size > 0 and m > 0 and abs(tau) <= 1e-6 * size + 1e-44
        for each in twin.aggregates.values()
        for tau, m, size in zip(each.tau, each.mask, each.size, strict=True)
    )


def check_against_twin(updates: list[ClientUpdate], options: MergeOptions) -> None:
    """Similarity, z and related tasks exactly; vectors to 1e-6 of what was added up to make them."""
    twin = slow_twin.aggregate([to_twin(update) for update in updates], options)
    result = aggregate(updates, options)
    assert result.tasks == twin.tasks
    if doubt := doubtful_signs(twin, options):
        d = updates[0].vectors.d
        if options.similarity == "all":
            for row, expected in zip(result.similarity.tolist(), twin.similarity, strict=True):
                assert row == pytest.approx(expected, abs=doubt / d)
        return  # who is related hangs on those signs; the law of κ = 0 compares the vectors of such rounds
    assert result.similarity.tolist() == twin.similarity
    assert result.graph.z.tolist() == [pytest.approx(row, rel=1e-14) for row in twin.z]
    assert result.related == twin.related
    for task in twin.tasks:
        got = result.task_vectors[task]
        assert got.dtype == torch.float32
        for value, expected, size in zip(to_floats(got), twin.task_vectors[task], twin.sizes[task], strict=True):
            assert abs(value - expected) <= 1e-6 * size + 1e-43


@twins
@given(updates=replies(), options=options(), parameters=block_sizes)
def test_aggregate_is_its_slow_twin(updates, options, parameters):
    with block_size(parameters):
        check_against_twin(updates, options)


@twins
@given(updates=replies(as_clients_send=True, max_d=20), options=options(), parameters=block_sizes)
def test_aggregate_of_what_clients_send_is_its_slow_twin(updates, options, parameters):
    with block_size(parameters):
        check_against_twin(updates, options)


SWITCHES = {
    "agreement": ["threshold-or-soft", "hard", "soft", "none"],
    "similarity": ["all", "support"],
    "signs": ["masked", "complete"],
    "relation_weight": ["similarity", "excess"],
    "combine": ["mean", "sum"],
    "epsilon_unit": ["similarity", "z"],
}


@pytest.mark.parametrize("seed", range(2))
def test_every_combination_of_switches_is_its_slow_twin(seed):
    """128 combinations on one Gaussian round: 4 clients and 4 tasks in a ring, packed or plain, bfloat16 or float32."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(35, generator=generator)  # so that some tasks are related
    updates = []
    for n in range(4):
        taus = {f"task{k % 4}": torch.randn(35, generator=generator) + common * (k % 4 < 3) for k in (n, n + 1)}
        unified = unify(taus)
        vector = unified.vector.bfloat16() if n % 2 else unified.vector
        masks = PackedMasks.of(unified.masks, 35) if n // 2 else unified.masks
        num_examples = {task: 37 + 200 * n + len(taus) for task in taus}
        updates.append(ClientUpdate(UnifiedTaskVector(vector, masks, unified.rescalers), num_examples, f"client{n}"))
    with block_size(16):
        for choice in itertools.product(*SWITCHES.values()):
            check_against_twin(
                updates, MergeOptions.paper(rho=0.4, kappa=2, **dict(zip(SWITCHES, choice, strict=True)))
            )


# ---------------------------------------------------------------- laws


@laws
@given(updates=replies(), options=options(), data=st.data())
def test_order_of_replies_changes_nothing(updates, options, data):
    shuffled = data.draw(st.permutations(updates))
    assert same_result(aggregate(updates, options), aggregate(iter(shuffled), options))


def test_order_of_replies_does_not_reach_the_rounding():
    # By name: 1e30 - 1e30 + 1, a third of it. In another order the 1 is lost in 1e30.
    values = {"A": 1e30, "B": -1e30, "C": 1.0}
    for order in itertools.permutations(values):
        updates = [single(client, "x", [values[client]]) for client in order]
        result = aggregate(updates, MergeOptions.paper(agreement="none"))
        assert result.task_vectors["x"].tolist() == pytest.approx([1 / 3], rel=1e-6)


@laws
@given(updates=replies(), options=options(), data=st.data())
def test_names_of_clients_change_nothing_beyond_rounding(updates, options, data):
    """Another order of addition: the same vote, and the same mean to rounding."""
    options = dataclasses.replace(options, signs="complete")
    names = data.draw(st.permutations([update.client for update in updates]))
    renamed = [dataclasses.replace(update, client=name) for update, name in zip(updates, names, strict=True)]
    a, b = aggregate(updates, options), aggregate(renamed, options)
    assert torch.equal(a.similarity, b.similarity)
    assert a.related == b.related
    twin = slow_twin.aggregate([to_twin(update) for update in updates], options)
    for task in a.tasks:
        slack = torch.tensor(twin.sizes[task], dtype=torch.float64) * 1e-6 + 1e-43
        assert bool(((a.task_vectors[task].double() - b.task_vectors[task].double()).abs() <= slack).all())


@laws
@given(updates=replies(), options=options())
def test_packed_and_plain_masks_give_the_same_bits(updates, options):
    plain = [
        dataclasses.replace(update, vectors=dataclasses.replace(update.vectors, masks=dict(update.vectors.masks)))
        for update in updates
    ]
    assert same_result(aggregate(plain, options), aggregate([packed(update) for update in plain], options))


@laws
@given(updates=replies(), options=options(), parameters=st.sampled_from([8, 16, 24]))
def test_the_size_of_blocks_changes_nothing(updates, options, parameters):
    whole = aggregate(updates, options)
    with block_size(parameters):
        assert same_result(whole, aggregate(updates, options))


@laws
@given(updates=replies(), options=options())
def test_replies_are_left_alone(updates, options):
    before = [in_full(update) for update in updates]
    first = aggregate(updates, options)
    assert [in_full(update) for update in updates] == before, "aggregate changed a reply"
    assert same_result(first, aggregate(updates, options)), "aggregating twice gives two results"
    for vector in first.task_vectors.values():
        vector.fill_(7)
    assert [in_full(update) for update in updates] == before, "the result shares memory with a reply"


@laws
@given(updates=replies(), options=options())
def test_similarity_is_symmetric(updates, options):
    graph = aggregate(updates, options).graph
    assert torch.equal(graph.similarity, graph.similarity.T)
    assert torch.equal(graph.z, graph.z.T)
    assert bool(((graph.similarity >= 0) & (graph.similarity <= 1)).all())


def scaled(update: ClientUpdate, c: float) -> ClientUpdate:
    return dataclasses.replace(update, vectors=dataclasses.replace(update.vectors, vector=update.vectors.vector * c))


@laws
@given(updates=replies(scale=st.just(1.0)), options=options(), exponent=st.integers(-20, 20))
def test_scaling_all_replies_scales_the_vectors_and_leaves_the_graph(updates, options, exponent):
    c = 2.0**exponent
    a, b = aggregate(updates, options), aggregate([scaled(update, c) for update in updates], options)
    assert torch.equal(a.similarity, b.similarity)
    assert a.related == b.related
    assert all(torch.equal(a.task_vectors[task] * c, b.task_vectors[task]) for task in a.tasks)


@laws
@given(
    updates=replies(one_holder=True, scale=st.just(1.0)),
    options=options(),
    factors=st.lists(st.floats(0.01, 100), min_size=5, max_size=5),
)
def test_scaling_one_client_leaves_the_graph(updates, options, factors):
    """With one holder per task the graph sees signs only, however large each client's vector is."""
    a = aggregate(updates, options)
    b = aggregate([scaled(update, c) for update, c in zip(updates, factors, strict=False)], options)
    assert torch.equal(a.similarity, b.similarity)
    assert a.related == b.related


@laws
@given(updates=replies(scale=st.just(1.0)), factors=st.lists(st.floats(0.01, 100), min_size=5, max_size=5))
def test_complete_signs_are_votes_and_no_scaling_moves_them(updates, factors):
    complete = MergeOptions.paper(signs="complete")
    a = aggregate(updates, complete)
    b = aggregate([scaled(update, c) for update, c in zip(updates, factors, strict=False)], complete)
    assert torch.equal(a.similarity, b.similarity)


@laws
@given(updates=replies(), options=options(), factor=st.sampled_from([2, 8, 256, 4096]))
def test_only_shares_of_examples_matter(updates, options, factor):
    more = [
        dataclasses.replace(update, num_examples={task: n * factor for task, n in update.num_examples.items()})
        for update in updates
    ]
    assert same_result(aggregate(updates, options), aggregate(more, options))


@laws
@given(updates=replies(), options=options(), data=st.data())
def test_parameters_are_treated_alike(updates, options, data):
    order = torch.tensor(data.draw(st.permutations(range(updates[0].vectors.d))))
    moved = []
    for update in updates:
        unified = update.vectors
        masks = {task: unified.masks[task][order] for task in unified.masks}
        permuted = UnifiedTaskVector(unified.vector[order], masks, unified.rescalers, unified.opposites)
        moved.append(dataclasses.replace(update, vectors=permuted))
    a, b = aggregate(updates, options), aggregate(moved, options)
    assert torch.equal(a.similarity, b.similarity)
    assert all(torch.equal(a.task_vectors[task][order], b.task_vectors[task]) for task in a.tasks)


def kappa_zero(updates: list[ClientUpdate], options: MergeOptions) -> dict[str, torch.Tensor]:
    return aggregate(updates, dataclasses.replace(options, kappa=0)).task_vectors


@laws
@given(updates=replies(), options=options(kappa=0))
def test_kappa_zero_gives_the_vectors_before_the_cross_task_step(updates, options):
    result = aggregate(updates, options)
    assert all(related == [] for related in result.related.values())
    d = updates[0].vectors.d
    for task in result.tasks:
        holders = [update for update in updates if task in update.num_examples]
        twin = slow_twin.aggregate_task(task, [to_twin(update) for update in holders], options)
        for i in range(d):
            assert abs(result.task_vectors[task][i].item() - twin.tau[i]) <= 1e-6 * twin.size[i] + 1e-44
    for switch in ({"combine": "sum"}, {"combine": "mean"}, {"relation_weight": "excess"}, {"similarity": "support"}):
        other = kappa_zero(updates, dataclasses.replace(options, **switch))
        assert all(torch.equal(other[task], result.task_vectors[task]) for task in result.tasks)


@laws
@given(updates=replies(), options=options())
def test_a_task_nobody_resembles_is_untouched(updates, options):
    alone = kappa_zero(updates, options)
    result = aggregate(updates, options)
    for task, related in result.related.items():
        if not related:
            assert torch.equal(result.task_vectors[task], alone[task])
    for unit, never in (("similarity", 1.01), ("z", 1e9)):
        nobody = aggregate(updates, dataclasses.replace(options, epsilon=never, epsilon_unit=unit))
        assert all(torch.equal(nobody.task_vectors[task], alone[task]) for task in alone)


@laws
@given(vectors=st.lists(st.lists(integers, min_size=6, max_size=6), min_size=1, max_size=3), options=options())
def test_a_task_opposed_to_all_others_is_untouched(vectors, options):
    """Excess weights give an opposed task nothing, whoever is related by a low ε."""
    options = dataclasses.replace(options, relation_weight="excess")
    updates = [single(f"client{k}", f"task{k}", [abs(x) + 1 for x in vector]) for k, vector in enumerate(vectors)]
    opposed = single("opposed", "opposed", [-1, -2, -3, -4, -5, -6])
    with_it, without = aggregate([*updates, opposed], options), aggregate(updates, options)
    assert with_it.task_vectors["opposed"].tolist() == [-1, -2, -3, -4, -5, -6]
    if options.kappa > len(vectors):
        for task in without.tasks if options.combine == "mean" else ():
            assert torch.equal(with_it.task_vectors[task], without.task_vectors[task])


@laws
@given(
    updates=replies(one_holder=True),
    options=options(signs="masked", kappa=0),
    rho=st.one_of(st.just(1.0), st.floats(0, 1, exclude_min=True)),
)
def test_one_holder_per_task_gives_its_reconstruction(updates, options, rho):
    # Masked signs have nothing to say of cleared bits, so these do not come through.
    masked = [replace_unified(update, opposites={}) for update in updates]
    result = aggregate(updates, dataclasses.replace(options, rho=rho))
    for update in masked if options.agreement != "none" else updates:
        for task in update.num_examples:
            assert torch.equal(result.task_vectors[task], update.vectors.reconstruct(task))


@laws
@given(updates=replies(one_holder=True), options=options(signs="complete", kappa=0))
def test_one_holder_per_task_gives_its_reconstruction_with_complete_signs_too(updates, options):
    result = aggregate(updates, options)
    for update in updates:
        for task in update.num_examples:
            assert torch.equal(result.task_vectors[task], update.vectors.reconstruct(task))


@laws
@given(updates=replies(), options=options(combine="mean"))
def test_mean_keeps_the_norm(updates, options):
    """No parameter grows beyond the largest of the tasks that were mixed."""
    before, after = kappa_zero(updates, options), aggregate(updates, options)
    for task, related in after.related.items():
        largest = torch.stack([before[name].abs() for name in (task, *related)]).amax(dim=0)
        assert bool((after.task_vectors[task].abs() <= largest * (1 + 1e-6)).all())


@laws
@given(updates=replies(max_clients=3), options=options(), data=st.data())
def test_a_task_is_made_by_its_holders_alone(updates, options, data):
    """Without the cross-task step, a reply that does not hold a task cannot move it."""
    task = data.draw(st.sampled_from(sorted({t for update in updates for t in update.num_examples})))
    holders = [update for update in updates if task in update.num_examples]
    assert torch.equal(kappa_zero(updates, options)[task], kappa_zero(holders, options)[task])


def test_a_round_of_no_parameters():
    result = aggregate([single("A", "x", []), single("B", "y", [])])
    assert result.similarity[0, 1] == 0.5
    assert result.task_vectors["x"].shape == (0,)


def test_defaults():
    assert same_result(aggregate(x_and_y()), aggregate(x_and_y(), MergeOptions()))


# ---------------------------------------------------------------- refusals


def good(client: str = "A") -> ClientUpdate:
    return reply(client, [1, -2, 3, 4], {"x": "1111", "y": "0110"}, {"x": 1.0, "y": 0.5})


def replace_unified(update: ClientUpdate, **changes: object) -> ClientUpdate:
    return dataclasses.replace(update, vectors=dataclasses.replace(update.vectors, **changes))


def with_unified(**changes: object) -> ClientUpdate:
    return replace_unified(good("B"), **changes)


def with_examples(**examples: int) -> ClientUpdate:
    return dataclasses.replace(good("B"), num_examples=examples)


TASKS_DIFFER = r"client 'B': tasks differ: rescalers \['x'.*\], masks \[.*\], num_examples \[.*\]"
ONES = {"x": bits("1111"), "y": bits("1111")}


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (with_unified(vector=to_tensor([1, 2, float("nan"), 4])), "client 'B': the unified vector has NaN or infinity"),
        (
            with_unified(vector=to_tensor([1, 2, 3, -float("inf")])),
            "client 'B': the unified vector has NaN or infinity",
        ),
        (
            with_unified(vector=torch.tensor([1, 2, 3, float("inf")]).bfloat16()),
            "client 'B': the unified vector has NaN",
        ),
        (with_unified(vector=torch.ones(5)), r"client 'B': unified vector is \(5,\) of torch.float32, expected \(4,\)"),
        (with_unified(vector=torch.ones(2, 2)), r"client 'B': unified vector is \(2, 2\) of torch.float32, expected"),
        (
            with_unified(vector=torch.ones(4).double()),
            r"client 'B': unified vector is \(4,\) of torch.float64",
        ),
        (with_unified(vector=torch.ones(4).half()), r"client 'B': unified vector is \(4,\) of torch.float16, expected"),
        (with_unified(rescalers={}, masks={}), "client 'B': no tasks"),
        (with_unified(rescalers={"x": 1.0}), TASKS_DIFFER),
        (with_unified(rescalers={"x": 1.0, "z": 1.0}), TASKS_DIFFER),
        (with_unified(masks={"x": bits("1111")}), TASKS_DIFFER),
        (with_unified(masks=PackedMasks.of({"x": bits("1111")}, 4)), TASKS_DIFFER),
        (with_examples(x=1), TASKS_DIFFER),
        (with_examples(x=1, y=1, z=1), TASKS_DIFFER),
        (with_examples(x=1, y=0), "client 'B': task 'y' has 0 examples, expected at least 1"),
        (with_examples(x=-5, y=1), "client 'B': task 'x' has -5 examples, expected at least 1"),
        (
            with_unified(rescalers={"x": 1.0, "y": -0.5}),
            "client 'B': rescaler of task 'y' is -0.5, expected a finite",
        ),
        (with_unified(rescalers={"x": float("inf"), "y": 1.0}), "client 'B': rescaler of task 'x' is inf, expected"),
        (with_unified(rescalers={"x": float("nan"), "y": 1.0}), "client 'B': rescaler of task 'x' is nan, expected"),
        (
            with_unified(opposites={"x": 0.5, "y": float("nan")}),
            r"client 'B': rescaler of cleared bits of task 'y' is nan, expected a finite number ≥ 0, at ",
        ),
        (with_unified(opposites={"z": 0.5}), "client 'B': rescaler of cleared bits of task 'z' is 0.5, expected"),
        (
            with_unified(masks={**ONES, "y": bits("111")}),
            r"client 'B': mask of task 'y' is \(3,\) of torch.bool",
        ),
        (with_unified(masks={**ONES, "y": torch.ones(4)}), r"client 'B': mask of task 'y' is \(4,\) of torch.float32"),
        (
            with_unified(masks=PackedMasks.of({"x": bits("11111"), "y": bits("11111")}, 5)),
            "client 'B': masks of 5 parameters, expected 4",
        ),
        (good("A"), "client 'A' replied twice in one round"),
    ],
)
def test_aggregate_refuses(bad, text):
    with pytest.raises(MergeError, match=text):
        aggregate([good("A"), bad])
    with pytest.raises(MergeError, match=text):
        aggregate([bad, good("A")])


def test_aggregate_refuses_an_empty_round():
    with pytest.raises(MergeError, match="no replies to aggregate"):
        aggregate([])


def test_aggregate_accepts_what_the_refusals_were_made_from():
    assert aggregate([good("A"), good("B")]).tasks == ["x", "y"]


# ---------------------------------------------------------------- what is taken for a reply

VECTOR = [0.5, -2.0, 0.0, 3.25, -0.125, 1.0, -1.0, 0.25, 4.0]
MASK = [x > 0 for x in VECTOR]


@pytest.mark.parametrize(
    ("vector", "mask"),
    [
        (np.array(VECTOR, np.float32), np.array(MASK)),
        (np.array(VECTOR), np.array(MASK)[::1]),
        (np.array(VECTOR, ">f2"), np.array(MASK[::-1])[::-1]),
        (VECTOR, MASK),
        (torch.tensor(VECTOR), np.array(MASK)),
    ],
    ids=["numpy", "float64", "big-endian", "lists", "both"],
)
@pytest.mark.filterwarnings("error")
def test_a_unified_vector_made_by_hand_may_hold_arrays(vector, mask):
    made = UnifiedTaskVector(vector, {"a": mask}, {"a": np.float32(1.5)}, {"a": 0.5})
    plain = UnifiedTaskVector(torch.tensor(VECTOR), {"a": torch.tensor(MASK)}, {"a": 1.5}, {"a": 0.5})
    assert torch.equal(made.reconstruct("a"), plain.reconstruct("a"))
    one, other = (ClientUpdate(v, {"a": count}, "north") for v, count in ((made, np.uint8(200)), (plain, 200)))
    assert same_result(aggregate([one]), aggregate([other]))


def test_counts_of_numpy_do_not_overflow():
    vectors = unify({"a": np.ones(4)}), unify({"a": -np.ones(4)})
    counts = (np.uint8(200), np.uint8(100))
    merged = aggregate(ClientUpdate(v, {"a": n}, str(i)) for i, (v, n) in enumerate(zip(vectors, counts, strict=True)))
    assert merged.task_vectors["a"].tolist() == pytest.approx([1 / 3] * 4)


GOOD = unify({"a": torch.ones(4)})
MASK_OF_ONES = torch.ones(4, dtype=torch.bool)


def by_hand(vector=(1.0, 2.0, 3.0, 4.0), masks=None, rescalers=None):
    vector = vector if isinstance(vector, torch.Tensor) else list(vector)
    return UnifiedTaskVector(vector, masks or {"a": MASK_OF_ONES}, rescalers or {"a": 1.0})


@pytest.mark.parametrize("one", [np.array(1.0), np.array([1.0]), torch.tensor(1.0), np.float32(1), 1])
def test_a_rescaler_may_be_any_single_number(one):
    merged = aggregate([ClientUpdate(by_hand(rescalers={"a": one}), {"a": 1}, "n")])
    assert merged.task_vectors["a"].tolist() == [1, 2, 3, 4]


def test_a_vector_with_a_gradient_is_merged_without():
    merged = aggregate([ClientUpdate(by_hand(torch.ones(4, requires_grad=True)), {"a": 1}, "n")])
    assert merged.task_vectors["a"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("replies_", "text"),
    [
        (ClientUpdate(GOOD, {"a": 1}, "n"), "replies is a ClientUpdate, expected a list of ClientUpdate"),
        ({"n": GOOD}, "replies is a dict, expected a list of ClientUpdate"),
        (3, "replies is a int, expected a list"),
        ([GOOD], "a reply is a UnifiedTaskVector, expected ClientUpdate"),
        ([ClientUpdate(GOOD, {"a": 1}, 3)], "client 3: expected a name as text"),
        ([ClientUpdate({"a": torch.ones(4)}, {"a": 1}, "n")], "client 'n': vectors is a dict, expected one uni"),
        ([ClientUpdate(GOOD, 3, "n")], "client 'n': num_examples is a int, expected a mapping by task"),
        ([ClientUpdate(GOOD, {"a": 1.5}, "n")], "client 'n': task 'a' has 1.5 examples, expected at least 1"),
        ([ClientUpdate(GOOD, {"a": True}, "n")], "has True examples"),
        ([ClientUpdate(GOOD, {"a": "4"}, "n")], "has '4' examples"),
        ([ClientUpdate(GOOD, {"a": 2**60}, "n")], "has 1152921504606846976 examples, expected at least 1, and at most"),
        (
            [ClientUpdate(replace(GOOD, rescalers={"a": 1e7}), {"a": 1}, "n")],
            r"rescaler of task 'a' is 1.*, at most 1e\+06",
        ),
        (
            [ClientUpdate(replace(GOOD, rescalers={"a": "1"}), {"a": 1}, "n")],
            "rescaler of task 'a' is '1', expected a f",
        ),
        ([ClientUpdate(replace(GOOD, rescalers={"a": 10**400}), {"a": 1}, "n")], "rescaler of task 'a' is 1000"),
        (
            [ClientUpdate(replace(GOOD, opposites={"a": 1e7}), {"a": 1}, "n")],
            "of cleared bits of task .a. is 1",
        ),
    ],
)
def test_what_is_no_reply_is_refused(replies_, text):
    with pytest.raises(MergeError, match=text):
        aggregate(replies_)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: UnifiedTaskVector("x", {}, {}), "unified vector is 'x', expected a tensor, an array"),
        (lambda: UnifiedTaskVector(np.ones((2, 2)), {}, {}), r"unified vector has shape \(2, 2\), expected \(d,\)"),
        (lambda: UnifiedTaskVector(VECTOR, {"a": np.ones(9)}, {}), "mask of task 'a' is 'ndarray' of float64, exp"),
        (lambda: UnifiedTaskVector(VECTOR, [MASK], {}), "masks of a unified vector is a list, expected a mapping"),
        (lambda: UnifiedTaskVector(VECTOR, {"a": [[1], [1, 2]]}, {}), "mask of task 'a' cannot be read as booleans"),
        (lambda: UnifiedTaskVector(VECTOR, {"a": MASK_OF_ONES.to_sparse()}, {}), "mask of task 'a' is a tensor of lay"),
        (lambda: UnifiedTaskVector(VECTOR, {"a": MASK_OF_ONES.to("meta")}, {}), "on meta, expected a dense one"),
        (lambda: UnifiedTaskVector(VECTOR, {}, [1.0]), "rescalers of a unified vector is a list, expected a mapping"),
        (lambda: UnifiedTaskVector(VECTOR, {}, {}, None), "opposites of a unified vector is a NoneType, expected a m"),
        (lambda: UnifiedTaskVector(torch.ones(4).to_sparse(), {}, {}), "unified vector is a tensor of layout"),
        (lambda: by_hand(masks={"a": [True]}).reconstruct("a"), r"mask of task 'a' is \(1,\) of torch.bool, expected"),
        (lambda: by_hand(vector=torch.ones(4, 1)).reconstruct("a"), r"unified vector has shape \(4, 1\), expected"),
        (lambda: by_hand(rescalers={"a": "1"}).reconstruct("a"), "rescaler of task 'a' is '1', expected a number"),
    ],
)
def test_what_is_no_unified_vector_is_refused(made, text):
    with pytest.raises(MergeError, match=text):
        made()


def test_results_and_options_of_another_type_are_refused():
    update = ClientUpdate(GOOD, {"a": 1}, "n")
    with pytest.raises(MergeError, match=r"mean is 'median', expected HolderMean\("):
        aggregate([update], mean="median")
    with pytest.raises(MergeError, match=r"out is a ndarray, expected a tensor, such as torch\.from_numpy\(array\)"):
        aggregate([update], out=np.zeros((1, 4), np.float32))
    with pytest.raises(MergeError, match=r"options is a dict, expected MergeOptions"):
        aggregate([update], {"kappa": 0})
