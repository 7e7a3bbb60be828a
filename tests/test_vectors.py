"""Named tensors <-> one flat vector."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.vectors import LayoutError, ParameterLayout
from tests.support.laws import examples

shapes = st.dictionaries(
    st.text(st.sampled_from("abc.01"), min_size=1, max_size=5),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    max_size=5,
)


def tensors_of(shapes: dict[str, tuple[int, ...]], start: float = 0.0) -> dict[str, torch.Tensor]:
    """Tensors that count up through all parameters."""
    tensors = {}
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        tensors[name] = torch.arange(start, stop, dtype=torch.float32).reshape(shape)
        start = stop
    return tensors


def small() -> dict[str, torch.Tensor]:
    return {"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "bias": torch.tensor([5.0]), "scale": torch.tensor(6.0)}


LAYOUT = ParameterLayout.of(small())


def test_by_hand():
    assert LAYOUT.shapes == {"weight": (2, 2), "bias": (1,), "scale": ()}
    assert LAYOUT.d == 6
    assert LAYOUT.slices == {"weight": slice(0, 4), "bias": slice(4, 5), "scale": slice(5, 6)}
    assert LAYOUT.flatten(small()).tolist() == [1, 2, 3, 4, 5, 6]
    back = LAYOUT.unflatten(torch.tensor([1.0, 2, 3, 4, 5, 6]))
    assert {name: tensor.tolist() for name, tensor in back.items()} == {
        "weight": [[1, 2], [3, 4]],
        "bias": [5],
        "scale": 6,
    }


@examples(50)
@given(shapes=shapes)
def test_round_trip(shapes):
    tensors = tensors_of(shapes)
    layout = ParameterLayout.of(tensors)
    flat = layout.flatten(tensors)
    assert flat.dtype == torch.float32
    assert flat.tolist() == list(range(layout.d))
    back = layout.unflatten(flat)
    assert list(back) == list(shapes)
    assert all(torch.equal(back[name], tensors[name]) for name in shapes)
    assert torch.equal(layout.flatten(back), flat)


@examples(50)
@given(shapes=shapes)
def test_slices_cover_the_vector_once(shapes):
    layout = ParameterLayout(shapes)
    covered = [i for where in layout.slices.values() for i in range(where.start, where.stop)]
    assert covered == list(range(layout.d))


def test_order_of_the_layout_rules_and_not_that_of_the_tensors():
    backwards = dict(reversed(list(small().items())))
    assert LAYOUT.flatten(backwards).tolist() == [1, 2, 3, 4, 5, 6]
    assert ParameterLayout.of(backwards).flatten(small()).tolist() == [6, 5, 1, 2, 3, 4]


def test_flatten_copies_and_detaches():
    tensors = {name: tensor.requires_grad_() for name, tensor in small().items()}
    flat = LAYOUT.flatten(tensors)
    assert not flat.requires_grad
    flat.zero_()
    assert tensors["weight"].tolist() == [[1, 2], [3, 4]]


def test_flatten_takes_tensors_that_are_not_contiguous_or_of_half_precision():
    tensors = {**small(), "weight": small()["weight"].T, "bias": small()["bias"].bfloat16()}
    assert LAYOUT.flatten(tensors).tolist() == [1, 3, 2, 4, 5, 6]
    assert LAYOUT.flatten(tensors).dtype == torch.float32


def test_views_share_memory_with_the_flat_vector():
    flat = torch.zeros(6)
    for views in (LAYOUT.unflatten(flat), dict(LAYOUT.views(flat))):
        views["weight"][1, 0] += 1
        views["scale"] += 10
    assert flat.tolist() == [0, 0, 2, 0, 0, 20]
    flat[4] = 7
    assert LAYOUT.unflatten(flat)["bias"].tolist() == [7]


def test_write_changes_the_tensors_in_place():
    tensors = {name: tensor.requires_grad_() for name, tensor in small().items()}
    kept = tensors["weight"]
    flat = torch.tensor([6.0, 5, 4, 3, 2, 1])
    LAYOUT.write(flat, tensors)
    assert tensors["weight"] is kept
    assert kept.tolist() == [[6, 5], [4, 3]]
    assert kept.requires_grad
    flat.zero_()
    assert kept.tolist() == [[6, 5], [4, 3]]
    assert LAYOUT.flatten(tensors).tolist() == [6, 5, 4, 3, 2, 1]


def without(name: str) -> dict[str, torch.Tensor]:
    return {other: tensor for other, tensor in small().items() if other != name}


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        (without("bias"), r"missing \['bias'\], superfluous \[\]"),
        ({**small(), "extra": torch.ones(1)}, r"missing \[\], superfluous \['extra'\]"),
        ({**without("bias"), "bais": torch.ones(1)}, r"missing \['bias'\], superfluous \['bais'\]"),
        ({**small(), "weight": torch.ones(4)}, r"tensor 'weight' has shape \(4,\); the layout has \(2, 2\)"),
        ({**small(), "bias": torch.ones(())}, r"tensor 'bias' has shape \(\); the layout has \(1,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tensors, text):
    with pytest.raises(LayoutError, match=text):
        LAYOUT.flatten(tensors)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with pytest.raises(LayoutError, match=text):
        LAYOUT.write(torch.zeros(6), tensors)
    assert all(torch.equal(tensors[name], before[name]) for name in before)


@pytest.mark.parametrize("flat", [torch.zeros(5), torch.zeros(7), torch.zeros(6, 1), torch.tensor(0.0)])
def test_flat_vectors_of_another_length_are_refused(flat):
    text = r"the flat vector has shape \(.*\); this layout needs \(6,\)"
    with pytest.raises(LayoutError, match=text):
        LAYOUT.unflatten(flat)
    with pytest.raises(LayoutError, match=text):
        dict(LAYOUT.views(flat))
    with pytest.raises(LayoutError, match=text):
        LAYOUT.write(flat, small())


THETA = torch.arange(6.0)


def test_fingerprint_is_a_property_of_layout_and_values():
    print_ = LAYOUT.fingerprint(THETA)
    assert print_ == ParameterLayout.of(small()).fingerprint(THETA.clone())
    assert len(print_) == 64
    assert set(print_) <= set("0123456789abcdef")
    # The values count and not how they lie in memory.
    assert print_ == LAYOUT.fingerprint(torch.stack([THETA, THETA], dim=1)[:, 0])
    assert print_ == LAYOUT.fingerprint(THETA.clone().requires_grad_())


@pytest.mark.parametrize(
    ("layout", "theta"),
    [
        (LAYOUT, THETA + torch.tensor([0, 0, 0, 0, 0, 1e-6])),
        (LAYOUT, THETA.flip(0)),
        (ParameterLayout({"weights": (2, 2), "bias": (1,), "scale": ()}), THETA),
        (ParameterLayout({"weight": (4,), "bias": (1,), "scale": ()}), THETA),
        (ParameterLayout({"weight": (2, 2), "bias": (), "scale": (1,)}), THETA),
        (ParameterLayout({"bias": (1,), "weight": (2, 2), "scale": ()}), THETA),
    ],
    ids=["a value", "order of values", "a name", "a shape", "shapes exchanged", "order of tensors"],
)
def test_fingerprint_tells_apart(layout, theta):
    assert layout.fingerprint(theta) != LAYOUT.fingerprint(THETA)
