"""Server step 5: what a task takes from related tasks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.merging import MergeOptions
from matu_flwr.merging.cross_task import combine_related
from tests.merging import slow_twin
from tests.merging.cases import laws, options


def double(values):
    return torch.tensor(values, dtype=torch.float64)


#   τ̂^t      1    -2     0     4
#   m̂^t      1    .5     1     0
#   u        2     2     2     2      w = .75
#   v       -1     1     3     0      w = .25
#   Σ w τ̂'   1.25  1.75  2.25  1.5
#   m̂ ⊙      1.25  .875  2.25  0
@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean", [1.125, -0.5625, 1.125, 2]),  # (τ̂ + …) / (1 + .75 + .25)
        ("sum", [1.625, -1.5625, 1.125, 4]),  #  τ̂ + … / 2
    ],
)
def test_combine_by_hand(combine, expected):
    tau, mask = double([1, -2, 0, 4]), double([1, 0.5, 1, 0])
    related = {"u": double([2, 2, 2, 2]), "v": double([-1, 1, 3, 0])}
    mixed = combine_related(tau, mask, related, {"u": 0.75, "v": 0.25}, MergeOptions.paper(combine=combine))
    assert mixed.tolist() == expected
    assert tau.tolist() == [1, -2, 0, 4]
    assert related["u"].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("combine", ["mean", "sum"])
def test_no_related_task_leaves_the_vector(combine):
    tau = double([1, -2, 0, 4])
    assert (
        combine_related(tau, double([1, 1, 1, 1]), {}, {}, MergeOptions.paper(combine=combine)).tolist() == tau.tolist()
    )


@pytest.mark.parametrize("combine", ["mean", "sum"])
def test_weight_zero_leaves_the_vector(combine):
    tau, other = double([1, -2, 0, 4]), {"u": double([5, 5, 5, 5])}
    mixed = combine_related(tau, double([1, 1, 1, 1]), other, {"u": 0.0}, MergeOptions.paper(combine=combine))
    assert mixed.tolist() == tau.tolist()


numbers = st.floats(-100, 100)


@laws
@given(data=st.data(), d=st.integers(1, 9), count=st.integers(0, 4), options=options())
def test_combine_is_its_slow_twin(data, d, count, options):
    tau = data.draw(st.lists(numbers, min_size=d, max_size=d))
    mask = data.draw(st.lists(st.floats(0, 1), min_size=d, max_size=d))
    others = [data.draw(st.lists(numbers, min_size=d, max_size=d)) for _ in range(count)]
    weights = [data.draw(st.floats(0, 1)) for _ in range(count)]
    names = [f"task{k}" for k in range(count)]
    mixed = combine_related(
        double(tau),
        double(mask),
        {name: double(other) for name, other in zip(names, others, strict=True)},
        dict(zip(names, weights, strict=True)),
        options,
    )
    twin = slow_twin.combine(tau, mask, others, weights, options)
    assert mixed.tolist() == pytest.approx(twin, rel=1e-12, abs=1e-10)
    if options.combine == "mean":  # a convex combination of τ̂, the others under m̂, and nothing else
        for i in range(d):
            largest = max([abs(tau[i])] + [abs(other[i]) for other in others])
            assert abs(mixed[i]) <= largest * (1 + 1e-12)
