"""What is encoded comes back, through Flower's own serialiser."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch

from matu_flwr.backbones import LinearHead
from matu_flwr.merging import PackedMasks, UnifiedTaskVector, as_sent, pack, unify
from matu_flwr.wire import (
    Announcement,
    TaskInfo,
    TaskMetrics,
    Uplink,
    decode_announcement,
    decode_downlink,
    decode_settings,
    decode_uplink,
    encode_announcement,
    encode_downlink,
    encode_question,
    encode_uplink,
)
from tests.wire import cases
from tests.wire.cases import CLASSES, EXAMPLES, FEATURES, FINGERPRINT, NAMES, ROUND, sent

# One parameter; around the byte that masks of eight parameters fill; an odd number of half bytes; whole bytes, half a
# block of a quantised vector; several blocks and a rest.
SIZES = [1, 7, 8, 9, 37, 64, 1001]
DTYPES = cases.DTYPES


class Shape(NamedTuple):
    d: int
    dtype: str
    compression: str
    k: int
    heads: bool


def shapes() -> Iterator[Shape]:
    """Bytes of a vector depend on d, dtype and compression: all of these. Those of masks depend on d and k and on
    compression; heads are written by themselves: every pair of values with these is there.
    """
    for i, d in enumerate(SIZES):
        for j, dtype in enumerate(DTYPES):
            for c, compression in enumerate(cases.COMPRESSIONS):
                yield Shape(d, dtype, compression, 1 + (i + j + c) % 3, (i + j // 2 + c) % 2 == 0)


SHAPES = list(shapes())


def test_every_two_values_meet():
    """What `shapes` promises, so that a size or a type that is added keeps it."""
    values = {"d": SIZES, "dtype": DTYPES, "compression": cases.COMPRESSIONS, "k": [1, 2, 3], "heads": [False, True]}
    for one, other in itertools.combinations(Shape._fields, 2):
        met = {(getattr(shape, one), getattr(shape, other)) for shape in SHAPES}
        assert met == set(itertools.product(values[one], values[other])), (one, other)


def check_same_unified(found: UnifiedTaskVector, sent_one: UnifiedTaskVector, dtype: str) -> None:
    assert found.vector.dtype == (torch.float32 if dtype == "float32" else torch.bfloat16)
    assert torch.equal(found.vector, as_sent(sent_one.vector, dtype))
    assert dict(found.rescalers) == dict(sent_one.rescalers)
    assert dict(found.opposites) == dict(sent_one.opposites)
    assert list(found.masks) == sent_one.tasks
    for task in sent_one.tasks:
        assert torch.equal(found.masks[task], sent_one.masks[task])


def check_same_heads(found: dict[str, LinearHead], sent_ones: dict[str, LinearHead]) -> None:
    assert set(found) == set(sent_ones)
    for task, head in sent_ones.items():
        for name, tensor in head.tensors().items():
            assert torch.equal(found[task].tensors()[name], tensor)


@pytest.mark.parametrize(("d", "dtype", "compression", "k", "heads"), SHAPES)
def test_uplink_comes_back(d, dtype, compression, k, heads):
    reply = cases.uplink(d, k, heads=heads)
    expected = cases.expected_of(d, k)
    found = decode_uplink(sent(encode_uplink(reply, dtype, compression)), expected)
    cases.check_uplink(found, expected)
    check_same_unified(found.vectors, reply.vectors, dtype)
    check_same_heads(found.heads, reply.heads)
    assert found.num_examples == reply.num_examples
    assert found.metrics == reply.metrics
    assert found.seconds == reply.seconds
    assert (found.round, found.fingerprint) == (ROUND, FINGERPRINT)


@pytest.mark.parametrize(("d", "dtype", "compression", "k", "heads"), SHAPES)
def test_downlink_comes_back(d, dtype, compression, k, heads):
    message = cases.downlink(d, k, heads=heads)
    expected = cases.expected_of(d, k)
    records = sent(encode_downlink(message, dtype, compression))
    found = decode_downlink(records, expected)
    cases.check_downlink(found, expected)
    check_same_unified(found.vectors, message.vectors, dtype)
    check_same_heads(found.heads, message.heads)
    assert found.tasks == message.tasks
    assert found.evaluate is True
    assert found.settings == message.settings
    assert {key: type(value) for key, value in found.settings.items()} == {
        "rounds": int,
        "train.lr": float,
        "matu.preset": str,
        "server-evaluate": bool,
    }
    assert decode_settings(records) == (message.settings, "run-1")


def test_one_task_needs_no_mask():
    for records in (encode_uplink(cases.uplink(37, 1)), encode_downlink(cases.downlink(37, 1))):
        assert "masks" not in records
    assert "masks" in encode_uplink(cases.uplink(37, 2))


def test_one_task_sends_a_mask_that_is_not_the_support_of_the_vector():
    # downlink = "global": one vector over all tasks for everybody, the client's own mask.
    whole = cases.unified_of(37, NAMES)
    own = UnifiedTaskVector(whole.vector, {"mnist": whole.masks["mnist"]}, {"mnist": whole.rescalers["mnist"]})
    assert not torch.equal(own.masks["mnist"], own.vector != 0)
    message = cases.downlink(37, 1)
    message = type(message)(**(vars(message) | {"tasks": ["mnist"], "vectors": own, "heads": {}}))
    records = encode_downlink(message)
    assert list(records["masks"]) == ["mnist"]
    found = decode_downlink(sent(records), cases.expected_of(37, 2))
    check_same_unified(found.vectors, own, "float32")
    assert torch.equal(found.vectors.reconstruct("mnist"), own.reconstruct("mnist"))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_rescalers_of_cleared_bits_travel_where_there_are_masks(k):
    tasks = NAMES[:k]
    unified = cases.unified_of(37, tasks, magnitude="mean", reconstruction="complete")
    assert set(unified.opposites) == set(tasks)
    message = cases.downlink(37, k)
    records = encode_downlink(type(message)(**(vars(message) | {"vectors": unified})))
    found = decode_downlink(sent(records), cases.expected_of(37, k)).vectors
    assert found.opposites == (unified.opposites if k > 1 else {})
    for task in tasks:
        assert torch.equal(found.reconstruct(task), unified.reconstruct(task))


def test_masks_that_are_packed_already_travel_as_they_are():
    plain = cases.unified_of(37, NAMES[:2])
    packed = UnifiedTaskVector(plain.vector, PackedMasks.of(plain.masks, 37), plain.rescalers)
    message = cases.downlink(37, 2)
    first = encode_downlink(type(message)(**(vars(message) | {"vectors": plain})))
    second = encode_downlink(type(message)(**(vars(message) | {"vectors": packed})))
    for task in NAMES[:2]:
        assert first["masks"][task].data == second["masks"][task].data
        assert torch.equal(torch.from_numpy(second["masks"][task].numpy()), pack(plain.masks[task]))


@pytest.mark.parametrize("first", ["bfloat16", "int8", "int4"])
def test_what_was_received_can_be_sent_again(first):
    expected = cases.expected_of()
    once = decode_uplink(sent(encode_uplink(cases.uplink(), first)), expected)
    for dtype in ("float32", "bfloat16", first):
        twice = decode_uplink(sent(encode_uplink(once, dtype)), expected)
        assert torch.equal(twice.vectors.vector.float(), once.vectors.vector.float())


@pytest.mark.parametrize(("d", "dtype", "compression", "k"), [shape[:4] for shape in SHAPES])
def test_separate_vectors_come_back(d, dtype, compression, k):
    reply = cases.uplink(d, k, separate=True)
    expected = cases.expected_of(d, k)
    records = sent(encode_uplink(reply, dtype, compression))
    assert "unified" not in records
    assert "masks" not in records
    found = decode_uplink(records, expected, payload="separate")
    cases.check_uplink(found, expected)
    for task, vector in reply.vectors.vectors.items():
        assert torch.equal(found.vectors.vectors[task], as_sent(vector, dtype))
        assert torch.equal(found.vectors.reconstruct(task), as_sent(vector, dtype).float())


KINDS = {"unified": {}, "separate": {"separate": True}, "nothing": {"unified": False}}


@pytest.mark.parametrize("sends", KINDS)
@pytest.mark.parametrize("payload", KINDS)
def test_a_reply_holds_what_its_method_sends(sends, payload):
    records = sent(encode_uplink(cases.uplink(**KINDS[sends])))
    if sends == payload:
        decode_uplink(records, cases.expected_of(), payload=payload)
        return
    text = {
        "unified": "no record 'unified', expected an ArrayRecord with the unified vector",
        "separate": "no record 'vectors', expected an ArrayRecord with a vector per task",
        "nothing": "found vectors, expected none in this round of this method",
    }[payload]
    with pytest.raises(ValueError, match=text):
        decode_uplink(records, cases.expected_of(), payload=payload)


def test_two_kinds_of_vectors_at_once_are_refused():
    records = encode_uplink(cases.uplink())
    records["vectors"] = encode_uplink(cases.uplink(separate=True))["vectors"]
    with pytest.raises(ValueError, match="records 'unified' and 'vectors', expected one of them"):
        decode_uplink(records, cases.expected_of())


def test_a_first_downlink_has_neither_vector_nor_heads():
    found = decode_downlink(sent(encode_downlink(cases.downlink(unified=False, heads=False))), cases.expected_of())
    assert found.vectors is None
    assert found.heads == {}


def test_heads_of_some_tasks_only():
    reply = cases.uplink()
    reply = Uplink(**(vars(reply) | {"heads": {"mnist": reply.heads["mnist"]}}))
    found = decode_uplink(sent(encode_uplink(reply)), cases.expected_of())
    check_same_heads(found.heads, reply.heads)


def test_a_head_may_lie_in_memory_column_by_column():
    weight = torch.randn(FEATURES, CLASSES["mnist"]).T
    assert not weight.is_contiguous()
    head = LinearHead(weight, torch.zeros(CLASSES["mnist"]))
    reply = Uplink(**(vars(cases.uplink()) | {"heads": {"mnist": head}}))
    found = decode_uplink(sent(encode_uplink(reply)), cases.expected_of())
    assert torch.equal(found.heads["mnist"].weight, weight)


def test_a_head_of_one_class_and_task_names_with_spaces():
    name = "Cats & Dogs"
    head = LinearHead(torch.randn(1, FEATURES), torch.randn(1))
    reply = Uplink(ROUND, FINGERPRINT, unify({name: torch.randn(9)}), {name: 4}, {name: head}, {})
    expected = cases.expected_of(9, classes={name: 1}, examples=None, tests=None)
    check_same_heads(decode_uplink(sent(encode_uplink(reply)), expected).heads, reply.heads)


def test_metrics_that_are_missing_are_nan_and_zero():
    reply = Uplink(**(vars(cases.uplink()) | {"metrics": {"mnist": TaskMetrics(train_loss=2.5)}, "seconds": {}}))
    found = decode_uplink(sent(encode_uplink(reply)), cases.expected_of())
    assert math.isnan(found.metrics["cifar10"].train_loss)
    assert found.metrics["cifar10"].test_examples == 0
    assert found.metrics["mnist"].train_loss == 2.5
    assert found.seconds == {}


def test_any_round_is_read_where_none_is_expected():
    assert decode_uplink(encode_uplink(cases.uplink()), cases.expected_of(round=None)).round == ROUND


def test_an_all_zero_vector_has_empty_masks_and_rescaler_zero():
    for k in (1, 2):
        unified = unify({task: torch.zeros(9) for task in NAMES[:k]})
        reply = Uplink(**(vars(cases.uplink(9, k)) | {"vectors": unified}))
        found = decode_uplink(sent(encode_uplink(reply)), cases.expected_of(9, k))
        assert not found.vectors.vector.any()
        assert not any(found.vectors.masks[task].any() for task in NAMES[:k])
        assert set(found.vectors.rescalers.values()) == {0.0}


@pytest.mark.parametrize("compression", cases.COMPRESSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_decoded_vector_can_be_written_to(dtype, compression):
    # A view of the message's bytes would be read-only.
    found = decode_uplink(sent(encode_uplink(cases.uplink(), dtype, compression)), cases.expected_of())
    found.vectors.vector.zero_()
    found.heads["mnist"].weight.zero_()


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_quantised_vectors_are_within_the_bound_and_leave_signs_and_masks_alone(k, dtype):
    d = 4096
    reply = cases.uplink(d, k, heads=False)
    records = sent(encode_uplink(reply, dtype))
    found = decode_uplink(records, cases.expected_of(d, k)).vectors
    levels = {"int8": 127, "int4": 7}[dtype]
    largest = reply.vectors.vector.view(-1, 128).abs().amax(dim=1).repeat_interleave(128)
    error = (found.vector.float() - reply.vectors.vector).abs()
    # half a step of the grid; and bfloat16 rounds the scale and the value in memory
    assert (error <= largest / (2 * levels - 1) + largest * 2.0**-7).all()
    assert error.any()
    assert torch.equal(found.vector.float().sign(), reply.vectors.vector.sign())
    for task in NAMES[:k]:
        assert torch.equal(found.masks[task], reply.vectors.masks[task])
    assert ("masks" in records) == (k > 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("separate", [False, True])
def test_compression_loses_nothing(dtype, separate):
    reply, expected = cases.uplink(d=4096, k=3, separate=separate), cases.expected_of(4096, 3)
    kind = "separate" if separate else "unified"
    plain, small = (
        decode_uplink(sent(encode_uplink(reply, dtype, how)), expected, payload=kind).vectors
        for how in ("none", "zstd")
    )
    for task in NAMES:
        assert torch.equal(plain.reconstruct(task), small.reconstruct(task))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_bfloat16_rounds_by_at_most_one_part_in_256_and_leaves_masks_alone(k):
    d = 4096
    reply = cases.uplink(d, k, heads=False)
    found = decode_uplink(sent(encode_uplink(reply, "bfloat16")), cases.expected_of(d, k)).vectors
    error = (found.vector.float() - reply.vectors.vector).abs()
    assert (error <= reply.vectors.vector.abs() * 2.0**-8).all()
    assert error.any()
    for task in NAMES[:k]:
        assert torch.equal(found.masks[task], reply.vectors.masks[task])
        close = found.reconstruct(task) - reply.vectors.reconstruct(task)
        assert (close.abs() <= reply.vectors.reconstruct(task).abs() * (2.0**-8 + 1e-6)).all()


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("partition", [0, 17, -1])
def test_announcement_comes_back(k, partition):
    told = Announcement(**(vars(cases.announcement(k)) | {"partition": partition}))
    found = decode_announcement(sent(encode_announcement(told)), FINGERPRINT, "node 5")
    cases.check_announcement(found)
    assert found == told


def test_announcement_in_any_order_with_any_letters_and_no_test_images():
    tasks = {
        "usps": TaskInfo(("ü / ö", '"', "日本"), 1, 0, absent=(0, 2)),
        "mnist": TaskInfo(("0",), EXAMPLES["mnist"], 3),
    }
    found = decode_announcement(
        sent(encode_announcement(Announcement("Klinik Süd", 2, FINGERPRINT, tasks))), FINGERPRINT, "node 5"
    )
    assert list(found.tasks) == ["mnist", "usps"]
    assert found.tasks == tasks
    assert found.client == "Klinik Süd"


@pytest.mark.parametrize("settings", [{}, {"rounds": 3, "suite": "a b", "train.lr": 1e-4, "server-evaluate": False}])
def test_question_comes_back(settings):
    assert decode_settings(sent(encode_question(settings, "run-9"))) == (settings, "run-9")
    assert decode_settings(sent(encode_question(settings, ""))) == (settings, "")
