"""Server steps 1 and 2: agreement, aggregated mask, weighted mean of one task over its holders."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.merging import ClientUpdate, MergeOptions, UnifiedTaskVector
from matu_flwr.merging.task_aggregation import aggregate_task, aggregated_mask, task_sign
from tests.merging import slow_twin
from tests.merging.cases import bits, laws, options, replies, reply, single, to_floats, to_tensor, to_twin, twins


def three_holders() -> list[ClientUpdate]:
    # Examples 1, 1, 2: γ = ¼, ¼, ½.
    return [
        reply("A", [2, 2, -2, 4], {"t": "1111"}, {"t": 1.0}),  #       τ̄_A = [2,  2, -2,  4]
        reply("B", [2, -2, -2, 4], {"t": "1110"}, {"t": 2.0}),  #      τ̄_B = [4, -4, -4,  0]
        reply("C", [4, 2, 2, -4], {"t": "1101"}, {"t": 1.0}, t=2),  #  τ̄_C = [4,  2,  0, -4]
    ]
    # Σ γ τ̄ = [.5 + 1 + 2, .5 - 1 + 1, -.5 - 1 + 0, 1 + 0 - 2] = [3.5, .5, -1.5, -1]


def by_hand(**switches):
    return aggregate_task("t", three_holders(), 0, 4, MergeOptions.paper(**switches))


@pytest.mark.parametrize(
    ("agreement", "mask", "tau"),
    [
        # masked signs: A = + + - +, B = + - - 0, C = + + 0 -;  α = [3, 1, 2, 0] / 3;  ρ = ½
        ("threshold-or-soft", [1, 1 / 3, 1, 0], [3.5, 0.5 / 3, -1.5, 0]),
        ("hard", [1, 0, 1, 0], [3.5, 0, -1.5, 0]),
        ("soft", [1, 1 / 3, 2 / 3, 0], [3.5, 0.5 / 3, -1, 0]),
        ("none", [1, 1, 1, 1], [3.5, 0.5, -1.5, -1]),
    ],
)
def test_masked_signs_by_hand(agreement, mask, tau):
    block = by_hand(agreement=agreement, rho=0.5)
    assert block.mask.tolist() == pytest.approx(mask, rel=1e-15)
    assert block.tau.tolist() == pytest.approx(tau, rel=1e-15)
    assert block.sign.tolist() == [slow_twin.sgn(x) for x in tau]


@pytest.mark.parametrize(
    ("agreement", "mask", "tau"),
    [
        # complete signs: B's cleared bit at 3 says -, C's at 2 says -:
        # A = + + - +, B = + - - -, C = + + - -;  α = [3, 1, 3, 1] / 3;  ρ = ½
        ("threshold-or-soft", [1, 1 / 3, 1, 1 / 3], [3.5, 0.5 / 3, -1.5, -1 / 3]),
        ("hard", [1, 0, 1, 0], [3.5, 0, -1.5, 0]),
        ("soft", [1, 1 / 3, 1, 1 / 3], [3.5, 0.5 / 3, -1.5, -1 / 3]),
        ("none", [1, 1, 1, 1], [3.5, 0.5, -1.5, -1]),
    ],
)
def test_complete_signs_by_hand(agreement, mask, tau):
    block = by_hand(agreement=agreement, rho=0.5, signs="complete")
    assert block.mask.tolist() == pytest.approx(mask, rel=1e-15)
    assert block.tau.tolist() == pytest.approx(tau, rel=1e-15)
    # votes 1 + 1 + 2, 1 - 1 + 2, -1 - 1 - 2, 1 - 1 - 2: whatever m̂ does, also where "hard" clears τ̂
    assert block.sign.tolist() == [1, 1, -1, -1]


def test_complete_signs_vote_with_the_number_of_examples():
    # -, -, + with 100, 100, 300 examples: 300 - 200 > 0. Counted by head the vote would be -1.
    holders = [single("A", "t", [-1.0], 100), single("B", "t", [-1.0], 100), single("C", "t", [9.0], 300)]
    assert aggregate_task("t", holders, 0, 1, MergeOptions.paper(signs="complete")).sign.tolist() == [1]


@pytest.mark.parametrize("examples", [1, 127, 128, 129, 200, 255, 256, 400, 60_000, 2**31, 2**40])
def test_complete_signs_of_any_number_of_examples(examples):
    """The vote is an integer of any size; a narrow one wraps round."""
    block = aggregate_task(
        "t", [single("A", "t", [2.0, -3.0, 0.0], examples)], 0, 3, MergeOptions.paper(signs="complete")
    )
    assert block.sign.tolist() == [1, -1, 0]


@pytest.mark.parametrize(
    ("rescaler", "signs", "expected"),
    [
        (1.5, "masked", [1, 0, 0, 0]),
        (1.5, "complete", [1, 1, -1, 0]),
        (0.0, "complete", [0, 0, 0, 0]),  # no direction at all, rather than "the other one" everywhere
    ],
)
def test_sign_of_one_client_by_hand(rescaler, signs, expected):
    #          τ      3 -3  3  0
    #          m      1  0  0  0
    unified = UnifiedTaskVector(to_tensor([3, -3, 3, 0]), {"t": bits("1000")}, {"t": rescaler})
    assert task_sign(unified, "t", 0, 4, MergeOptions.paper(signs=signs)).tolist() == expected
    assert unified.vector.tolist() == [3, -3, 3, 0]


@pytest.mark.parametrize(
    ("agreement", "expected"),
    [
        ("threshold-or-soft", [0, 0.25, 1, 1]),
        ("hard", [0, 0, 1, 1]),
        ("soft", [0, 0.25, 0.5, 1]),
        ("none", [1, 1, 1, 1]),
    ],
)
def test_aggregated_mask_by_hand(agreement, expected):
    alpha = torch.tensor([0, 0.25, 0.5, 1], dtype=torch.float64)  # ρ = ½ is reached by ½ itself
    assert aggregated_mask(alpha, MergeOptions.paper(rho=0.5, agreement=agreement)).tolist() == expected


@pytest.mark.parametrize("holders", [*range(1, 13), 49, 98])
def test_agreement_of_whole_counts_reaches_its_own_fraction(holders):
    """α = k / n is the number k / n: a product with 1 / n misses it, for instance at 49 of 49."""
    for agree in range(1, holders + 1):
        updates = [single(f"{n:02}", "t", [1.0 if n < agree else 0.0]) for n in range(holders)]
        block = aggregate_task("t", updates, 0, 1, MergeOptions.paper(rho=agree / holders, agreement="hard"))
        assert block.mask.tolist() == [1]


@laws
@given(alpha=st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_rho_zero_agrees_everywhere(alpha):
    for agreement in ("threshold-or-soft", "hard", "none"):
        mask = aggregated_mask(torch.tensor(alpha, dtype=torch.float64), MergeOptions.paper(rho=0, agreement=agreement))
        assert bool((mask == 1).all())


@laws
@given(alpha=st.lists(st.floats(0, 1), min_size=1, max_size=9), options=options())
def test_aggregated_mask_is_its_slow_twin(alpha, options):
    mask = aggregated_mask(torch.tensor(alpha, dtype=torch.float64), options)
    assert mask.tolist() == [slow_twin.aggregated_mask_at(a, options) for a in alpha]


@twins
@given(updates=replies(max_tasks=1), options=options())
def test_one_task_is_its_slow_twin(updates, options):
    (task,) = {t for update in updates for t in update.num_examples}
    twin = slow_twin.aggregate_task(task, [to_twin(update) for update in updates], options)
    d = updates[0].vectors.d
    for start in range(0, d, 16):
        stop = min(start + 16, d)
        block = aggregate_task(task, updates, start, stop, options)
        assert block.mask.tolist() == twin.mask[start:stop]
        got = block.tau.tolist()
        for i in range(start, stop):
            assert abs(got[i - start] - twin.tau[i]) <= 1e-6 * twin.size[i] + 1e-44
            clear = abs(twin.tau[i]) > 1e-6 * twin.size[i] + 1e-44 or twin.size[i] == 0
            if options.signs == "complete" or clear:
                assert block.sign[i - start] == twin.sign[i]


@laws
@given(updates=replies(max_clients=1, max_tasks=2), options=options(signs="masked", rho=0.7))
def test_one_holder_gives_its_own_mask_and_reconstruction(updates, options):
    (update,) = updates
    if options.agreement != "none":  # masked signs have nothing to say of cleared bits: these do not come through
        update = replace(update, vectors=replace(update.vectors, opposites={}))
    unified = update.vectors
    for task in unified.tasks:
        block = aggregate_task(task, [update], 0, unified.d, options)
        assert to_floats(unified.reconstruct(task)) == block.tau.tolist()
        if options.agreement != "none":
            own = unified.masks[task] & (unified.vector != 0)
            assert block.mask.tolist() == own.double().tolist()


@laws
@given(updates=replies(max_tasks=1), options=options())
def test_alpha_bounds_the_mask_and_the_vector(updates, options):
    """m̂ ∈ [0, 1], and |τ̂| is no larger than the largest reconstruction."""
    (task,) = {t for update in updates for t in update.num_examples}
    block = aggregate_task(task, updates, 0, updates[0].vectors.d, options)
    assert bool(((block.mask >= 0) & (block.mask <= 1)).all())
    largest = torch.stack([update.vectors.reconstruct(task).double().abs() for update in updates]).amax(dim=0)
    assert bool((block.tau.abs() <= largest * (1 + 1e-12)).all())
    assert block.sign.dtype == torch.int8
    assert block.tau.dtype == block.mask.dtype == torch.float64
