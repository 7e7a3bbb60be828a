"""Masks as bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.merging import MergeError, PackedMasks, pack, packed_length, unpack
from matu_flwr.merging.masks import check_masks, mask_block
from tests.merging import slow_twin
from tests.merging.cases import bits, laws


def test_bit_order_by_hand():
    # Parameters 0, 2 and 7 are bits 1 + 4 + 128 of the first byte; parameter 9 is bit 1 of the second.
    assert pack(bits("1010000101")).tolist() == [133, 2]
    assert unpack(torch.tensor([133, 2], dtype=torch.uint8), 10).tolist() == bits("1010000101").tolist()


@pytest.mark.parametrize(("d", "length"), [(0, 0), (1, 1), (7, 1), (8, 1), (9, 2), (16, 2), (17, 3)])
def test_packed_length(d, length):
    assert packed_length(d) == length
    assert pack(torch.ones(d, dtype=torch.bool)).shape == (length,)


@laws
@given(mask=st.lists(st.booleans(), max_size=70))
def test_round_trip_and_twin(mask):
    packed = pack(torch.tensor(mask, dtype=torch.bool))
    assert packed.dtype == torch.uint8
    assert packed.tolist() == slow_twin.pack(mask)
    back = unpack(packed, len(mask))
    assert back.dtype == torch.bool
    assert back.tolist() == mask == slow_twin.unpack(packed.tolist(), len(mask))


def test_packing_leaves_the_mask_alone():
    mask = bits("10110")
    unpack(pack(mask), 5).logical_not_()
    assert mask.tolist() == bits("10110").tolist()


@laws
@given(masks=st.lists(st.lists(st.booleans(), min_size=35, max_size=35), min_size=1, max_size=3), d=st.integers(0, 35))
def test_packed_masks_behave_as_a_mapping(masks, d):
    plain = {f"task{k}": torch.tensor(mask[:d], dtype=torch.bool) for k, mask in enumerate(masks)}
    packed = PackedMasks.of(plain, d)
    assert list(packed) == list(plain)
    assert len(packed) == len(plain)
    assert "nothing" not in packed
    assert all(torch.equal(packed[task], plain[task]) for task in plain)
    for task in plain:
        for start in range(0, d, 8):
            for stop in {min(start + 8, d), min(start + 16, d), d, start}:
                expected = plain[task][start:stop]
                assert torch.equal(packed.block(task, start, stop), expected)
                assert torch.equal(mask_block(packed, task, start, stop), expected)
                assert torch.equal(mask_block(plain, task, start, stop), expected)


def test_packed_masks_take_one_bit_per_parameter_and_task():
    packed = PackedMasks.of({"a": torch.ones(1001, dtype=torch.bool), "b": torch.zeros(1001, dtype=torch.bool)}, 1001)
    assert sum(each.numel() * each.element_size() for each in packed.bits.values()) == 2 * 126


def test_packed_masks_refuse_a_wrong_length():
    with pytest.raises(MergeError, match=r"mask of task 'a': \(3,\) of torch.uint8, expected \(2,\) .* 10 parameters"):
        PackedMasks({"a": torch.zeros(3, dtype=torch.uint8)}, 10)
    with pytest.raises(MergeError, match=r"mask of task 'a': \(1,\) of torch.uint8, expected \(2,\)"):
        PackedMasks({"a": torch.zeros(1, dtype=torch.uint8)}, 10)
    with pytest.raises(MergeError, match=r"mask of task 'a': \(2,\) of torch.int16, expected"):
        PackedMasks({"a": torch.zeros(2, dtype=torch.int16)}, 10)
    with pytest.raises(MergeError, match=r"mask of task 'a': \(10,\) of torch.bool, expected \(2,\) of torch.uint8"):
        PackedMasks({"a": torch.zeros(10, dtype=torch.bool)}, 10)


@pytest.mark.parametrize(("last", "d"), [(4, 10), (128, 15), (2, 9), (255, 12)])
def test_packed_masks_refuse_bits_beyond_the_last_parameter(last, d):
    with pytest.raises(MergeError, match=f"mask of task 'a' has bits set beyond parameter {d - 1}"):
        PackedMasks({"a": torch.tensor([0, last], dtype=torch.uint8)}, d)


@pytest.mark.parametrize(("last", "d"), [(3, 10), (127, 15), (1, 9), (255, 16)])
def test_packed_masks_accept_every_bit_up_to_the_last_parameter(last, d):
    assert PackedMasks({"a": torch.tensor([255, last], dtype=torch.uint8)}, d)["a"].all()


def test_check_masks_names_owner_and_task():
    check_masks({"a": bits("101")}, 3, "client 'x'")
    check_masks(PackedMasks.of({"a": bits("101")}, 3), 3, "client 'x'")
    with pytest.raises(MergeError, match=r"client 'x': mask of task 'a' is \(3,\) of torch.bool, expected \(4,\)"):
        check_masks({"a": bits("101")}, 4, "client 'x'")
    with pytest.raises(MergeError, match=r"client 'x': mask of task 'a' is \(3,\) of torch.uint8, expected \(3,\)"):
        check_masks({"a": torch.ones(3, dtype=torch.uint8)}, 3, "client 'x'")
    with pytest.raises(MergeError, match="client 'x': masks of 3 parameters, expected 4"):
        check_masks(PackedMasks.of({"a": bits("101")}, 3), 4, "client 'x'")
