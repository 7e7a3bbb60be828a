"""The mean of heads by rows: nobody moves the row of a class that it has no images of."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.backbones import LinearHead
from matu_flwr.config.sections import RobustSettings
from matu_flwr.federation.influence import Influence, OfferedHeads
from tests.support.laws import examples


def head(*rows):
    """A head of two features whose row c is full of `rows[c]`, the bias too."""
    column = torch.tensor([float(row) for row in rows])
    return LinearHead(column[:, None].expand(-1, 2).clone(), column)


def offer(client, given_head, absent=(), images=1):
    return OfferedHeads(client, {"t": given_head}, {"t": images}, {"t": tuple(absent)})


def rows_of(offers, before=None, **robust):
    merged = Influence(RobustSettings(**robust), one_vector=False).merge_heads(offers, {"t": before} if before else {})
    assert torch.equal(merged["t"].weight, merged["t"].bias[:, None].expand(-1, 2))
    return merged["t"].bias.tolist()


def test_a_row_is_the_mean_of_those_that_have_its_class():
    """Images 1, 3, 4. Row 0: all. Row 1: b and c, (3 · 2 + 4 · 9) / 7. Row 2: a and b, (1 · 8 + 3 · 4) / 4."""
    offers = [offer("a", head(8, 777, 8), [1], 1), offer("b", head(0, 2, 4), (), 3), offer("c", head(4, 9, -5), [2], 4)]
    assert rows_of(offers) == [pytest.approx(3.0), pytest.approx(6.0), pytest.approx(5.0)]


@pytest.mark.parametrize("before", [None, head(0.1, 0.3, 0.7)])
def test_a_row_that_nobody_has_keeps_the_server_s_bits(before):
    offers = [offer(name, head(1, 50, -50), [1, 2], images) for name, images in (("a", 3), ("b", 7), ("c", 11))]
    kept = before.bias.tolist()[1:] if before else [0.0, 0.0]
    assert rows_of(offers, before)[1:] == kept


@pytest.mark.parametrize(
    ("robust", "row"),
    [({"mean": "median"}, 2.0), ({"mean": "trimmed", "trim": 0.3}, 2.0), ({"max_examples": 1}, 252.0)],
)
def test_bounds_count_only_those_that_have_the_class(robust, row):
    """1, 2, 3 and 1002 have class 0 (median of four 2.5); only 1, 2, 3 have class 1; 1002 has it not."""
    offers = [offer(str(v), head(v, v), (), 5 * v) for v in (1, 2, 3)] + [offer("x", head(1002, -1e9), [1], 10**6)]
    assert rows_of(offers, **robust)[1] == pytest.approx(2.0)
    if "max_examples" in robust:
        assert rows_of(offers, **robust)[0] == pytest.approx(row)


def test_a_bound_on_heads_does_not_see_rows_of_absent_classes():
    """What a client learned about a class that it does not have must not shorten what it learned about its own."""
    bounds = Influence(RobustSettings(head_clip_norm=4.0), one_vector=False)
    merged = bounds.merge_heads([offer("a", head(2, 1e6), [1])], {})["t"]
    assert merged.bias.tolist() == [2.0, 0.0]
    assert bounds.event() == {}


def test_the_client_s_own_head_is_not_changed():
    given_head = head(1, 2)
    rows_of([offer("a", given_head, [1])])
    assert given_head.bias.tolist() == [1.0, 2.0]


@examples(100)
@given(
    st.lists(
        st.tuples(st.lists(st.floats(-9, 9, width=32), min_size=4, max_size=4), st.sets(st.integers(0, 3), max_size=3)),
        min_size=1,
        max_size=5,
    ),
    st.permutations(range(5)),
    st.sampled_from(["weighted", "median", "trimmed"]),
)
def test_every_row_is_as_if_the_others_had_not_offered(offers, order, mean):
    """A twin: for each row, the same means over whole heads of only those that have its class; in any order."""
    made = [offer(str(i), head(*rows), sorted(absent), i + 1) for i, (rows, absent) in enumerate(offers)]
    found = rows_of([made[i] for i in order if i < len(made)], head(5, 6, 7, 8), mean=mean)
    for row in range(4):
        whole = [
            OfferedHeads(o.client, o.heads, o.num_examples)
            for o, (_, absent) in zip(made, offers, strict=True)
            if row not in absent
        ]
        assert found[row] == (rows_of(whole, mean=mean)[row] if whole else 5.0 + row)
