"""Every refusal of the wire, and its text. One damage at a time."""

import json
import math
import re
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
import zstandard
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from matu_flwr.merging import SeparateTaskVectors
from matu_flwr.wire import (
    WireError,
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
from tests.wire.cases import CLASSES, FINGERPRINT, expected_of, header, npy, with_array, with_data, with_values

D = 37
VECTOR = np.zeros(D, np.float32)
HEAD = np.zeros((5, cases.FEATURES), np.float32)


def without(records, name):
    del records[name]
    return records


def without_scalar(records, key, record="scalars"):
    del records[record][key]
    return records


def with_scalar(records, key, value, record="scalars"):
    records[record][key] = value
    return records


def with_record(records, name, record):
    records[name] = record
    return records


def bad(shape_like: np.ndarray, value: float) -> np.ndarray:
    values = shape_like.copy()
    values.flat[-1] = value
    return values


# ---------------------------------------------------------------- what replies and downlinks have in common

BOTH = {
    # scalars
    "no scalars": (lambda r: without(r, "scalars"), "found no record 'scalars', expected a ConfigRecord"),
    "scalars of another kind": (
        lambda r: with_record(r, "scalars", MetricRecord({"protocol": 3})),
        "no record 'scalars'",
    ),
    "no protocol": (lambda r: without_scalar(r, "protocol"), "found protocol = None, expected a value of type int"),
    "other protocol": (
        lambda r: with_scalar(r, "protocol", 1),
        "found protocol 1, expected 4; install the same matu-flwr on both sides",
    ),
    "protocol is a truth value": (lambda r: with_scalar(r, "protocol", True), "protocol = True, expected a value of"),
    "wrong round": (lambda r: with_scalar(r, "round", 4), "found a payload of round 4, expected round 3"),
    "round is a truth value": (lambda r: with_scalar(r, "round", True), "round = True, expected a value of type int"),
    "round is a float": (lambda r: with_scalar(r, "round", 3.0), "round = 3.0, expected a value of type int"),
    "round below zero": (lambda r: with_scalar(r, "round", -1), "round = -1, expected an integer from 0 to 2147483648"),
    "no fingerprint": (lambda r: without_scalar(r, "fingerprint"), "fingerprint = None, expected a value of type str"),
    "other fingerprint": (
        lambda r: with_scalar(r, "fingerprint", "f" * 64),
        "found fingerprint .?f{12}.?…, expected .?0123456789ab.?…: the pre-trained backbone θ_p differs; use the same",
    ),
    # tasks
    "no tasks": (lambda r: without_scalar(r, "tasks"), "found tasks = None, expected a list of str"),
    "empty tasks": (
        lambda r: with_scalar(r, "tasks", []),
        r"found tasks \[\], expected at least one task, each once, sorted by name",
    ),
    "tasks are a text": (lambda r: with_scalar(r, "tasks", "mnist"), "found tasks = 'mnist', expected a list of str"),
    "unknown task": (
        lambda r: with_scalar(r, "tasks", ["cifar10", "svhn"]),
        r"found task 'svhn', expected one of its tasks \['cifar10', 'mnist'\]",
    ),
    "task that another client holds": (lambda r: with_scalar(r, "tasks", ["cifar10", "usps"]), "found task 'usps'"),
    "a task twice": (
        lambda r: with_scalar(r, "tasks", ["mnist", "mnist"]),
        r"found tasks \['mnist', 'mnist'\], expected at least one task, each once",
    ),
    "tasks in another order": (
        lambda r: with_scalar(r, "tasks", ["mnist", "cifar10"]),
        r"found tasks \['mnist', 'cifar10'\], expected at least one task, each once, sorted by name",
    ),
    "a name of megabytes": (
        lambda r: with_scalar(r, "tasks", ["x" * 10**6, "y"]),
        r"found task 'x{76}\.\.\., expected",
    ),
    "a name with escapes": (lambda r: with_scalar(r, "tasks", ["\x1b[2J\n"]), r"found task '\\x1b\[2J\\n', expected"),
    # vector
    "no dtype": (lambda r: without_scalar(r, "dtype"), "found dtype = None, expected a value of type str"),
    "wrong dtype tag": (
        lambda r: with_scalar(r, "dtype", "float16"),
        "found dtype = 'float16', expected 'float32' or 'bfloat16' or 'int8' or 'int4'$",
    ),
    "the other dtype tag": (
        lambda r: with_scalar(r, "dtype", "bfloat16"),
        rf"found unified vector \({D},\) of float32, expected \({D},\) of uint16",
    ),
    "a quantised dtype tag": (
        lambda r: with_scalar(r, "dtype", "int8"),
        r"found arrays \['vector'\] in record 'unified', expected \['vector', 'vector/scales'\]",
    ),
    "no compression": (
        lambda r: without_scalar(r, "compression"),
        "found compression = None, expected a value of type str",
    ),
    "unknown compression": (
        lambda r: with_scalar(r, "compression", "gzip"),
        "found compression = 'gzip', expected 'none' or 'zstd'$",
    ),
    "the other compression tag": (
        lambda r: with_scalar(r, "compression", "zstd"),
        rf"found unified vector \({D},\) of float32 .*, expected a zstd frame of {4 * D} bytes as a row of uint8",
    ),
    "unified of another kind": (
        lambda r: with_record(r, "unified", ConfigRecord({"vector": 1})),
        "found no record 'unified', expected an ArrayRecord",
    ),
    "vector of another name": (
        lambda r: with_record(r, "unified", ArrayRecord({"tau": Array(VECTOR)})),
        r"found arrays \['tau'\] in record 'unified', expected \['vector'\]",
    ),
    "vector and more": (
        lambda r: with_array(r, "unified", "more", Array(VECTOR)),
        r"found arrays \['more', 'vector'\] in record 'unified', expected \['vector'\]",
    ),
    "one parameter less": (
        lambda r: with_values(r, "unified", "vector", VECTOR[1:]),
        rf"found unified vector \({D - 1},\) of float32, expected \({D},\) of float32",
    ),
    "one parameter more": (
        lambda r: with_values(r, "unified", "vector", np.zeros(D + 1, np.float32)),
        rf"found unified vector \({D + 1},\) of float32, expected \({D},\) of float32",
    ),
    "far too many parameters": (
        lambda r: with_values(r, "unified", "vector", np.zeros(10 * D, np.float32)),
        rf"found unified vector of {40 * D + 128} bytes as 'numpy.ndarray', expected \({D},\) of float32, {4 * D} by",
    ),
    "vector as a column": (
        lambda r: with_values(r, "unified", "vector", VECTOR[:, None]),
        rf"found unified vector \({D}, 1\) of float32, expected \({D},\) of float32",
    ),
    "vector of integers": (
        lambda r: with_values(r, "unified", "vector", VECTOR.astype(np.int32)),
        rf"found unified vector \({D},\) of int32, expected \({D},\) of float32",
    ),
    "vector of the other byte order": (
        lambda r: with_values(r, "unified", "vector", VECTOR.astype(">f4")),
        rf"found unified vector \({D},\) of >f4, expected \({D},\) of float32",
    ),
    "NaN in the vector": (
        lambda r: with_values(r, "unified", "vector", bad(VECTOR, math.nan)),
        "found NaN or infinity in the unified vector, expected finite numbers",
    ),
    "infinity in the vector": (
        lambda r: with_values(r, "unified", "vector", bad(VECTOR, -math.inf)),
        "found NaN or infinity in the unified vector, expected finite numbers",
    ),
    "another stype": (
        lambda r: with_array(r, "unified", "vector", Array("float32", (D,), "torch.pickle", Array(VECTOR).data)),
        rf"found unified vector of {4 * D + 128} bytes as 'torch.pickle', expected \({D},\) of float32",
    ),
    "no data": (lambda r: with_data(r, "unified", "vector", lambda _: b""), "unified vector of 0 bytes as"),
    "data without a header": (
        lambda r: with_data(r, "unified", "vector", lambda _: bytes(4 * D + 100)),
        rf"found unified vector with an unreadable header, expected \({D},\) of float32",
    ),
    # rescalers
    "no rescalers": (lambda r: without_scalar(r, "rescalers"), "found rescalers = None, expected a list of float"),
    "one rescaler": (
        lambda r: with_scalar(r, "rescalers", [1.0]),
        "found 1 values of rescalers, expected 2, one per task",
    ),
    "rescalers are integers": (
        lambda r: with_scalar(r, "rescalers", [1, 1]),
        r"found rescalers = \[1, 1\], expected a list of float",
    ),
    "negative rescaler": (
        lambda r: with_scalar(r, "rescalers", [1.0, -0.5]),
        r"found rescaler -0.5 of task 'mnist', expected a finite number from 0 to 1e\+06",
    ),
    "infinite rescaler": (lambda r: with_scalar(r, "rescalers", [math.inf, 1.0]), "rescaler inf of task 'cifar10'"),
    "rescaler is no number": (lambda r: with_scalar(r, "rescalers", [math.nan, 1.0]), "rescaler nan of task 'cifar10'"),
    "huge rescaler": (lambda r: with_scalar(r, "rescalers", [1.0, 1.1e6]), "rescaler 1100000.0 of task 'mnist'"),
    "negative rescaler of cleared bits": (
        lambda r: with_scalar(r, "opposites", [1.0, -0.5]),
        r"found opposite -0.5 of task 'mnist', expected a finite number from 0 to 1e\+06",
    ),
    "one rescaler of cleared bits": (
        lambda r: with_scalar(r, "opposites", [1.0]),
        "found 1 values of opposites, expected 2, one per task",
    ),
    # masks
    "no masks": (lambda r: without(r, "masks"), "found no record 'masks', expected an ArrayRecord"),
    "masks of another kind": (lambda r: with_record(r, "masks", MetricRecord({"mnist": 1})), "found no record 'masks'"),
    "one mask": (
        lambda r: with_record(r, "masks", ArrayRecord({"mnist": r["masks"]["mnist"]})),
        r"found arrays \['mnist'\] in record 'masks', expected \['cifar10', 'mnist'\]",
    ),
    "a mask too many": (
        lambda r: with_array(r, "masks", "usps", r["masks"]["mnist"]),
        r"found arrays \['cifar10', 'mnist', 'usps'\] in record 'masks', expected \['cifar10', 'mnist'\]",
    ),
    "a mask too short": (
        lambda r: with_values(r, "masks", "mnist", np.zeros(4, np.uint8)),
        r"found mask of task 'mnist' \(4,\) of uint8, expected \(5,\) of uint8",
    ),
    "a mask too long": (
        lambda r: with_values(r, "masks", "mnist", np.zeros(6, np.uint8)),
        r"found mask of task 'mnist' \(6,\) of uint8, expected \(5,\) of uint8",
    ),
    "a mask of bytes": (
        lambda r: with_values(r, "masks", "mnist", np.zeros(D, np.bool_)),
        rf"found mask of task 'mnist' \({D},\) of bool, expected \(5,\) of uint8",
    ),
    "bits beyond d": (
        lambda r: with_values(r, "masks", "mnist", np.array([0, 0, 0, 0, 32], np.uint8)),
        "client 'site-0': mask of task 'mnist' has bits set beyond parameter 36",
    ),
    # heads
    "heads of another kind": (
        lambda r: with_record(r, "heads", ConfigRecord({"mnist/weight": 1.0})),
        "found no record 'heads', expected an ArrayRecord",
    ),
    "head of a task not held": (
        lambda r: with_array(r, "heads", "usps/weight", Array(HEAD)),
        r"found heads of \['cifar10', 'mnist', 'usps'\], expected heads of \['cifar10', 'mnist'\]",
    ),
    "head without a task": (
        lambda r: with_array(r, "heads", "weight", Array(HEAD)),
        r"found heads of \['', 'cifar10', 'm",
    ),
    "head without bias": (
        lambda r: with_record(r, "heads", ArrayRecord({"mnist/weight": r["heads"]["mnist/weight"]})),
        r"found arrays \['mnist/weight'\] in record 'heads', expected \['mnist/bias', 'mnist/weight'\]",
    ),
    "head and more": (
        lambda r: with_array(r, "heads", "mnist/scale", Array(HEAD)),
        "'mnist/scale', .* in record 'heads'",
    ),
    "head of more classes": (
        lambda r: with_values(r, "heads", "cifar10/weight", np.zeros((6, 7), np.float32)),
        r"found head weight of task 'cifar10' \(6, 7\) of float32, expected \(5, 7\) of float32",
    ),
    "head transposed": (
        lambda r: with_values(r, "heads", "cifar10/weight", np.zeros((7, 5), np.float32)),
        r"found head weight of task 'cifar10' \(7, 5\) of float32, expected \(5, 7\) of float32",
    ),
    "head in Fortran order": (
        lambda r: with_values(r, "heads", "cifar10/weight", np.asfortranarray(np.ones((5, 7), np.float32))),
        r"found head weight of task 'cifar10' \(5, 7\) of float32.*, expected \(5, 7\) of float32",
    ),
    "head of doubles": (
        lambda r: with_values(r, "heads", "mnist/bias", np.zeros(4)),
        r"found head bias of task 'mnist' \(4,\) of float64, expected \(4,\) of float32",
    ),
    "NaN in a head": (
        lambda r: with_values(r, "heads", "cifar10/weight", bad(HEAD, math.nan)),
        "found NaN or infinity in the head of task 'cifar10', expected finite numbers",
    ),
    "infinity in a head": (
        lambda r: with_values(r, "heads", "mnist/bias", np.full(4, math.inf, np.float32)),
        "found NaN or infinity in the head of task 'mnist', expected finite numbers",
    ),
}


@pytest.mark.parametrize("case", BOTH)
def test_reply_is_refused(case):
    damage, text = BOTH[case]
    with pytest.raises(WireError, match=text) as refusal:
        decode_uplink(damage(encode_uplink(cases.uplink(D))), expected_of(D))
    assert str(refusal.value).startswith("client 'site-0': ")
    assert len(str(refusal.value)) < 500
    assert "\x1b" not in str(refusal.value)


@pytest.mark.parametrize("case", BOTH)
def test_downlink_is_refused(case):
    damage, text = BOTH[case]
    with pytest.raises(WireError, match=text):
        decode_downlink(damage(encode_downlink(cases.downlink(D))), expected_of(D))


def test_the_error_carries_no_control_characters_of_a_fingerprint():
    records = with_scalar(encode_uplink(cases.uplink(D)), "fingerprint", "\x1b[2J\nmore")
    with pytest.raises(WireError, match="found fingerprint") as refusal:
        decode_uplink(records, expected_of(D))
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bfloat16_vector_has_to_be_finite_too(value):
    vector = torch.zeros(D)
    vector[5] = value
    records = encode_uplink(cases.uplink(D), "bfloat16")
    with_values(records, "unified", "vector", vector.to(torch.bfloat16).view(torch.uint16).numpy())
    with pytest.raises(WireError, match="NaN or infinity in the unified vector"):
        decode_uplink(records, expected_of(D))


# ---------------------------------------------------------------- codes and scales

CODES, SCALES = np.zeros(D, np.uint8), np.ones(1, np.float32)
RANGE = r"expected finite numbers from 7\.88861e-31 to 1e\+31$"


def bits(*values: float) -> np.ndarray:
    """bfloat16 as it travels."""
    return torch.tensor(values, dtype=torch.bfloat16).view(torch.uint16).numpy()


QUANTISED = {
    "one code less": (
        lambda r: with_values(r, "unified", "vector", CODES[1:]),
        rf"found unified vector as int8 \({D - 1},\) of uint8, expected \({D},\) of uint8",
    ),
    "codes of half the bits": (
        lambda r: with_values(r, "unified", "vector", CODES[: D // 2 + 1]),
        rf"found unified vector as int8 \({D // 2 + 1},\) of uint8, expected \({D},\) of uint8",
    ),
    "codes with a sign": (
        lambda r: with_values(r, "unified", "vector", CODES.view(np.int8)),
        rf"found unified vector as int8 \({D},\) of int8, expected \({D},\) of uint8",
    ),
    "no scales": (
        lambda r: with_record(r, "unified", ArrayRecord({"vector": r["unified"]["vector"]})),
        r"found arrays \['vector'\] in record 'unified', expected \['vector', 'vector/scales'\]",
    ),
    "scales of another group": (
        lambda r: with_values(r, "unified", "vector/scales", bits(1, 1)),
        r"found scales of the unified vector \(2,\) of uint16, expected \(1,\) of uint16",
    ),
    "scales of float32": (
        lambda r: with_values(r, "unified", "vector/scales", SCALES),
        r"found scales of the unified vector \(1,\) of float32, expected \(1,\) of uint16",
    ),
    "a scale that is not a number": (
        lambda r: with_values(r, "unified", "vector/scales", bits(math.nan)),
        f"found nan among the scales of the unified vector, {RANGE}",
    ),
    "an infinite scale": (
        lambda r: with_values(r, "unified", "vector/scales", bits(math.inf)),
        f"found inf among the scales of the unified vector, {RANGE}",
    ),
    "a scale below zero": (
        lambda r: with_values(r, "unified", "vector/scales", bits(-1)),
        f"found -1 among the scales of the unified vector, {RANGE}",
    ),
    "a scale of zero, which would turn signs into zeros": (
        lambda r: with_values(r, "unified", "vector/scales", bits(0)),
        f"found 0 among the scales of the unified vector, {RANGE}",
    ),
    "an absurd scale": (
        lambda r: with_values(r, "unified", "vector/scales", bits(2.0**104)),
        rf"found 2.02824e\+31 among the scales of the unified vector, {RANGE}",
    ),
}


@pytest.mark.parametrize("case", QUANTISED)
def test_quantised_vector_is_refused(case):
    damage, text = QUANTISED[case]
    with pytest.raises(WireError, match=text):
        decode_uplink(damage(encode_uplink(cases.uplink(D), "int8")), expected_of(D))
    with pytest.raises(WireError, match=text):
        decode_downlink(damage(encode_downlink(cases.downlink(D), "int8")), expected_of(D))


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_scale_that_a_reply_may_not_use_is_refused(dtype):
    """The scale itself is one that the server might send: 2^102 is below 10^31."""
    records = with_values(encode_uplink(cases.uplink(D), dtype), "unified", "vector/scales", bits(2.0**102))
    with pytest.raises(
        WireError, match=r"found a value of magnitude .*e\+30 in the vector of task 'cifar10' times its"
    ):
        decode_uplink(records, expected_of(D))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_a_separate_vector_that_is_too_large_is_refused(dtype):
    vectors = SeparateTaskVectors({"cifar10": torch.zeros(D), "mnist": torch.full((D,), 9e30)})
    reply = replace(cases.uplink(D, separate=True), vectors=vectors)
    with pytest.raises(
        WireError, match=r"magnitude [89].*e\+30 in the vector of task 'mnist', expected at most 1e\+24"
    ):
        decode_uplink(encode_uplink(reply, dtype), expected_of(D), payload="separate")


def test_who_was_asked_to_train_tells_a_loss_and_others_need_not():
    reply = replace(cases.uplink(D), metrics={})
    assert math.isnan(decode_uplink(encode_uplink(reply), expected_of(D)).metrics["mnist"].train_loss)
    with pytest.raises(WireError, match="found training loss of task 'cifar10' = nan, expected a number from 0"):
        decode_uplink(encode_uplink(reply), expected_of(D, losses=True))


def test_an_error_is_one_line_of_limited_length_whatever_it_quotes():
    records = with_scalar(encode_uplink(cases.uplink(D)), "tasks", ["\x1b[31m\n" * 10**6])
    with pytest.raises(WireError) as caught:
        decode_uplink(records, expected_of(D))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_code_beyond_the_last_parameter_is_refused():
    records = encode_uplink(cases.uplink(D), "int4")
    codes = records["unified"]["vector"].numpy().copy()
    codes[-1] |= 0x10
    with pytest.raises(
        WireError, match=f"found a code beyond parameter {D - 1} in the unified vector, expected {D} codes"
    ):
        decode_uplink(with_values(records, "unified", "vector", codes), expected_of(D))


def test_the_errors_of_separate_vectors_name_the_task():
    records = encode_uplink(cases.uplink(D, separate=True), "int4")
    with_values(records, "vectors", "mnist/scales", bits(math.nan))
    with pytest.raises(WireError, match="found nan among the scales of the vector of task 'mnist'"):
        decode_uplink(records, expected_of(D), payload="separate")
    records = encode_uplink(cases.uplink(D, separate=True), "int4")
    records["vectors"] = ArrayRecord({name: a for name, a in records["vectors"].items() if name != "mnist/scales"})
    with pytest.raises(WireError, match=r"found arrays \['cifar10', 'cifar10/scales', 'mnist'\] in record 'vectors'"):
        decode_uplink(records, expected_of(D), payload="separate")


# ---------------------------------------------------------------- frames


def frame(data: bytes, **options: object) -> np.ndarray:
    return np.frombuffer(zstandard.ZstdCompressor(**options).compress(data), np.uint8)


BOMB = zstandard.ZstdCompressor(level=19).compress(bytes(2**28))
FRAME = f"expected a zstd frame of {4 * D} bytes as a row of uint8$"
FRAMES = {
    "shorter": (frame(bytes(4 * D - 1)), f"found unified vector as a zstd frame of {4 * D - 1} bytes, {FRAME}"),
    "longer": (frame(bytes(4 * D + 1)), f"found unified vector as a zstd frame of {4 * D + 1} bytes, {FRAME}"),
    "bomb": (np.frombuffer(BOMB, np.uint8)[:400], f"found unified vector as a zstd frame of {2**28} bytes, {FRAME}"),
    "without its size": (
        frame(bytes(4 * D), write_content_size=False),
        f"found unified vector as a zstd frame of -1 bytes, {FRAME}",
    ),
    "cut off": (
        frame(np.arange(D, dtype=np.float32).tobytes())[:-3],
        f"found unified vector as bytes that are not .*, {FRAME}",
    ),
    "and more": (
        np.append(frame(bytes(4 * D)), np.uint8(0)),
        f"found unified vector as bytes that are not a zstd frame, {FRAME}",
    ),
    "two": (
        np.append(frame(bytes(4 * D)), frame(b"x")),
        f"found unified vector as bytes that are not a zstd frame, {FRAME}",
    ),
    "none": (np.zeros(40, np.uint8), f"found unified vector as bytes that are not a zstd frame, {FRAME}"),
    "nothing": (np.zeros(0, np.uint8), f"found unified vector as bytes that are not a zstd frame, {FRAME}"),
    "of another kind": (
        np.zeros(10, np.float32),
        rf"found unified vector \(10,\) of float32 with 40 bytes .*, {FRAME}",
    ),
    "in two rows": (np.zeros((2, 9), np.uint8), rf"found unified vector \(2, 9\) of uint8 with 18 bytes .*, {FRAME}"),
    "far too long": (
        np.zeros(8 * D + 2000, np.uint8),
        rf"found unified vector of {8 * D + 2128} bytes as 'nump.*, {FRAME}",
    ),
}


@pytest.mark.parametrize("case", FRAMES)
def test_a_frame_is_refused_and_allocates_nothing(case):
    values, text = FRAMES[case]
    records = with_values(encode_uplink(cases.uplink(D), "float32", "zstd"), "unified", "vector", values)
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=text):
            decode_uplink(records, expected_of(D))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_frame_that_says_less_than_it_holds_is_refused():
    """The size in the header, one byte or two after its descriptor, is what is checked first; then the data."""
    honest = frame(bytes(4 * D))
    assert honest[4] & 0x20  # one segment: the size follows at once
    lying = frame(bytes(4 * D + 40)).copy()
    lying[5] = honest[5]
    records = with_values(encode_uplink(cases.uplink(D), "float32", "zstd"), "unified", "vector", lying)
    with pytest.raises(WireError, match=f"found unified vector as bytes that are not a zstd frame, {FRAME}"):
        decode_uplink(records, expected_of(D))


def test_masks_and_scales_are_frames_too():
    for record, key, what in (
        ("masks", "mnist", "mask of task 'mnist'"),
        ("unified", "vector/scales", "scales of the"),
    ):
        records = encode_uplink(cases.uplink(D), "int4", "zstd")
        with_values(records, record, key, np.zeros(3, np.uint8))
        with pytest.raises(WireError, match=f"found {what}.* as bytes that are not a zstd frame, expected a zstd"):
            decode_uplink(records, expected_of(D))


# ---------------------------------------------------------------- replies only

REPLY = {
    "no vector": (
        lambda r: without(r, "unified"),
        "no record 'unified', expected an ArrayRecord with the unified vector",
    ),
    "no counts": (lambda r: without_scalar(r, "num-examples"), "found num-examples = None, expected a list of int"),
    "counts are truth values": (
        lambda r: with_scalar(r, "num-examples", [True, True]),
        r"found num-examples = \[True, True\], expected a list of int",
    ),
    "counts are floats": (lambda r: with_scalar(r, "num-examples", [40.0, 30.0]), "expected a list of int"),
    "one count": (
        lambda r: with_scalar(r, "num-examples", [40]),
        "found 1 values of num-examples, expected 2, one per task",
    ),
    "absurd count": (
        lambda r: with_scalar(r, "num-examples", [40, 10**12]),
        "found 1000000000000 among num-examples, expected integers from 1 to 1000000000",
    ),
    "count of zero": (
        lambda r: with_scalar(r, "num-examples", [0, 30]),
        "found 0 among num-examples, expected integers",
    ),
    "negative count": (lambda r: with_scalar(r, "num-examples", [40, -30]), "found -30 among num-examples"),
    "another count than announced": (
        lambda r: with_scalar(r, "num-examples", [40, 31]),
        "found 31 examples of task 'mnist', expected 30, as it announced",
    ),
    "no metrics": (lambda r: without(r, "metrics"), "found no record 'metrics', expected a MetricRecord"),
    "metrics of another kind": (
        lambda r: with_record(r, "metrics", ConfigRecord({"train-loss": [0.5, 0.5]})),
        "found no record 'metrics', expected a MetricRecord",
    ),
    "a metric missing": (
        lambda r: without_scalar(r, "test-loss", "metrics"),
        "found metric test-loss = None, expected a list of 2 float",
    ),
    "a metric too short": (
        lambda r: with_scalar(r, "train-loss", [0.5], "metrics"),
        r"found metric train-loss = \[0.5\], expected a list of 2 float",
    ),
    "a metric that is no list": (
        lambda r: with_scalar(r, "test-correct", 8, "metrics"),
        "found metric test-correct = 8, expected a list of 2 int",
    ),
    "a metric of another type": (
        lambda r: with_scalar(r, "test-examples", [10.0, 10.0], "metrics"),
        r"found metric test-examples = \[10.0, 10.0\], expected a list of 2 int",
    ),
    "more correct than images": (
        lambda r: with_scalar(r, "test-correct", [8, 11], "metrics"),
        "found 11 correct of 10 test images, task 'mnist', expected 0 ≤ correct ≤ images ≤ 10, as it announced",
    ),
    "fewer than none correct": (
        lambda r: with_scalar(r, "test-correct", [-1, 1], "metrics"),
        "found -1 correct of 10 test images, task 'cifar10'",
    ),
    "absurdly many test images": (
        lambda r: with_scalar(r, "test-examples", [10, 10**12], "metrics"),
        "found 8 correct of 1000000000000 test images, task 'mnist'",
    ),
    "one test image more than announced": (
        lambda r: with_scalar(r, "test-examples", [10, 11], "metrics"),
        "found 8 correct of 11 test images, task 'mnist', expected 0 ≤ correct ≤ images ≤ 10, as it announced",
    ),
    "a training loss below zero": (
        lambda r: with_scalar(r, "train-loss", [0.5, -1e-9], "metrics"),
        "found training loss of task 'mnist' = -1e-09, expected a number from 0 to",
    ),
    "an endless training loss": (
        lambda r: with_scalar(r, "train-loss", [math.inf, 0.5], "metrics"),
        "found training loss of task 'cifar10' = inf, expected",
    ),
    "a training loss whose sum is no number": (
        lambda r: with_scalar(r, "train-loss", [1.7e308, 1.7e308], "metrics"),
        r"found training loss of task 'cifar10' = 1.7e\+308, expected",
    ),
    "images tested and no loss": (
        lambda r: with_scalar(r, "test-loss", [math.nan, 0.5], "metrics"),
        "found test loss of task 'cifar10' = nan, expected a number",
    ),
    "an endless test loss": (
        lambda r: with_scalar(r, "test-loss", [0.5, math.inf], "metrics"),
        "found test loss of task 'mnist' = inf, expected",
    ),
    "an endless test loss of no images": (
        lambda r: with_scalar(
            with_scalar(with_scalar(r, "test-correct", [8, 0], "metrics"), "test-examples", [10, 0], "metrics"),
            "test-loss",
            [0.5, math.inf],
            "metrics",
        ),
        "found test loss of task 'mnist' = inf, expected",
    ),
    "seconds of more than a century": (
        lambda r: with_scalar(r, "seconds.train", 1.7e308, "metrics"),
        r"found 'seconds.train' = 1.7e\+308, expected a number of seconds from 0 to 1e\+07",
    ),
    "seconds of something else": (
        lambda r: with_scalar(r, "seconds.total", 1.0, "metrics"),
        "found 'seconds.total', expected seconds of evaluate, train, unify",
    ),
    "seconds of a name that steers terminals": (
        lambda r: with_scalar(r, "seconds.\x1b[2J\u202e", 1.0, "metrics"),
        r"found 'seconds.\\x1b\[2J\\u202e', expected seconds of",
    ),
    "a value that its rescaler makes too large": (
        lambda r: with_scalar(with_values(r, "unified", "vector", bad(VECTOR, 9e30)), "rescalers", [1e6, 1.0]),
        r"found a value of magnitude 9e\+36 in the vector of task 'cifar10' times its rescaler, expected at most",
    ),
    "a value that the rescaler of its cleared bit makes too large": (
        lambda r: with_scalar(with_values(r, "unified", "vector", bad(VECTOR, -9e19)), "opposites", [0.0, 1e6]),
        r"found a value of magnitude 9e\+25 in the vector of task 'mnist' times its rescaler, expected at most",
    ),
    "a head near the end of float32": (
        lambda r: with_values(r, "heads", "cifar10/weight", bad(HEAD, -3.4e38)),
        r"found a value of magnitude 3.4e\+38 in the head weight of task 'cifar10', expected at most 1e\+24",
    ),
    "negative seconds": (
        lambda r: with_scalar(r, "seconds.train", -1.0, "metrics"),
        "found 'seconds.train' = -1.0, expected a number of seconds from 0 to",
    ),
    "endless seconds": (
        lambda r: with_scalar(r, "seconds.train", math.inf, "metrics"),
        "'seconds.train' = inf, expected",
    ),
    "seconds are no number": (
        lambda r: with_scalar(r, "seconds.unify", math.nan, "metrics"),
        "'seconds.unify' = nan, expected",
    ),
    "seconds are a list": (
        lambda r: with_scalar(r, "seconds.unify", [1.0], "metrics"),
        r"'seconds.unify' = \[1.0\], expected",
    ),
    "seconds are whole": (
        lambda r: with_scalar(r, "seconds.unify", 1, "metrics"),
        "'seconds.unify' = 1, expected a number",
    ),
}


@pytest.mark.parametrize("case", REPLY)
def test_reply_is_refused_for_what_only_replies_have(case):
    damage, text = REPLY[case]
    with pytest.raises(WireError, match=f"^client 'site-0': .*{text}"):
        decode_uplink(damage(encode_uplink(cases.uplink(D))), expected_of(D))


# ---------------------------------------------------------------- downlinks and questions

NO_SETTINGS = {
    "none": (lambda r: without_scalar(r, "settings"), "found settings = None, expected a value of type str"),
    "bytes": (lambda r: with_scalar(r, "settings", b"{}"), "found settings = b'{}', expected a value of type str"),
    "not JSON": (
        lambda r: with_scalar(r, "settings", "{rounds: 3"),
        "found settings = '{rounds: 3', expected a JSON object",
    ),
    "empty": (lambda r: with_scalar(r, "settings", ""), "found settings = '', expected a JSON object"),
    "a list": (lambda r: with_scalar(r, "settings", "[1]"), r"found settings = '\[1\]', expected a JSON object"),
    "a number": (lambda r: with_scalar(r, "settings", "3"), "found settings = '3', expected a JSON object"),
    "brackets without end": (
        lambda r: with_scalar(r, "settings", "[" * 10**5),
        r"found settings = '\[+\.\.\., expected a JS",
    ),
    "a number of many digits": (
        lambda r: with_scalar(r, "settings", '{"rounds": ' + "1" * 5000 + "}"),
        r"found settings = '\{\"rounds\": 1+\.\.\., expected a JSON object",
    ),
    "no experiment": (
        lambda r: without_scalar(r, "experiment"),
        "found experiment = None, expected a value of type str",
    ),
}


@pytest.mark.parametrize("case", NO_SETTINGS)
def test_settings_are_refused(case):
    damage, text = NO_SETTINGS[case]
    with pytest.raises(WireError, match=f"^server: {text}"):
        decode_settings(damage(encode_question({}, "run-1")))
    with pytest.raises(WireError, match=text):
        decode_downlink(damage(encode_downlink(cases.downlink(D))), expected_of(D))


@pytest.mark.parametrize("value", [1, "True", None])
def test_evaluate_has_to_be_a_truth_value(value):
    records = encode_downlink(cases.downlink(D))
    if value is None:
        del records["scalars"]["evaluate"]
    else:
        records["scalars"]["evaluate"] = value
    with pytest.raises(WireError, match=f"found evaluate = {value!r}, expected a value of type bool"):
        decode_downlink(records, expected_of(D))


def test_a_question_of_another_protocol_is_refused():
    records = with_scalar(encode_question({}, "run-1"), "protocol", 0)
    with pytest.raises(WireError, match=r"^server: found protocol 0, expected 4; install the same"):
        decode_settings(records)


# ---------------------------------------------------------------- headers that lie

LYING = {
    "terabytes": npy(header("'<f4'", "(1000000000000,)"), bytes(4 * D)),
    "more than any machine has": npy(header("'<f4'", "(4611686018427387904, 1024)"), bytes(4 * D)),
    "terabytes in version 2": npy(header("'<f4'", "(1000000000000,)"), bytes(4 * D), (2, 0)),
    "negative": npy(header("'<f4'", f"(-{D},)"), bytes(4 * D)),
    "empty": npy(header("'<f4'", "(0,)"), bytes(4 * D)),
    "no dimension": npy(header("'<f4'", "()"), bytes(4 * D)),
    "no shape": npy(header("'<f4'", "None"), bytes(4 * D)),
    "objects": npy(header("'|O'", f"({D},)"), bytes(4 * D)),
    "gigabytes in each item": npy(header("'|V2000000000'", f"({D},)"), bytes(4 * D)),
    "fields": npy(header("[('a', '<f4')]", f"({D},)"), bytes(4 * D)),
    "fields of any name": npy(header("[('\\x1b[2J', '<f4')]", f"({D},)"), bytes(4 * D)),
    "no dtype": npy(header("'nonsense'", f"({D},)"), bytes(4 * D)),
    "code": npy("__import__('os').getcwd()".ljust(119), bytes(4 * D)),
    "brackets without end": npy("(" * 119, bytes(4 * D)),
    "not a mapping": npy("[1, 2, 3]".ljust(119), bytes(4 * D)),
    "no text": npy("\x00\xff" * 60, bytes(4 * D)),
    "longer than the data": npy(header("'<f4'", f"({D},)"), bytes(4 * D + 60), claimed_length=65_535),
    "gigabytes of header": npy(header("'<f4'", f"({D},)"), bytes(4 * D + 60), (2, 0), claimed_length=2**32 - 1),
    "version 3": npy(header("'<f4'", f"({D},)"), bytes(4 * D), (3, 0)),
    "version 9": npy(header("'<f4'", f"({D},)"), bytes(4 * D), (9, 9)),
    "no magic": b"PK" + npy(header("'<f4'", f"({D},)"), bytes(4 * D))[2:],
}


@pytest.mark.parametrize("case", LYING)
@pytest.mark.parametrize("claim", [(D,), (10**12,)])
def test_a_header_that_lies_is_refused_and_allocates_nothing(case, claim):
    # `claim` stands in Flower's own description of the array, which is not believed either.
    records = with_array(
        encode_uplink(cases.uplink(D)), "unified", "vector", Array("float32", claim, "numpy.ndarray", LYING[case])
    )
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=rf"found unified vector .*, expected \({D},\) of float32") as refusal:
            decode_uplink(records, expected_of(D))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("by", [*range(1, 10), 4 * D, 4 * D + 100])
def test_truncated_data_is_refused(by):
    records = with_data(encode_uplink(cases.uplink(D)), "unified", "vector", lambda data: data[:-by])
    with pytest.raises(WireError, match=rf"found unified vector .*, expected \({D},\) of float32"):
        decode_uplink(records, expected_of(D))


@pytest.mark.parametrize("by", [*range(1, 10), 200, 10_000])
def test_trailing_data_is_refused(by):
    records = with_data(encode_uplink(cases.uplink(D)), "unified", "vector", lambda data: data + bytes(by))
    with pytest.raises(WireError, match=rf"found unified vector .*, expected \({D},\) of float32"):
        decode_uplink(records, expected_of(D))


@pytest.mark.parametrize(("record", "key"), [("masks", "mnist"), ("heads", "mnist/bias"), ("heads", "cifar10/weight")])
@pytest.mark.parametrize("by", [1, 2, 4])
def test_truncated_and_trailing_data_of_masks_and_heads_is_refused(record, key, by):
    for change in (lambda data: data[:-by], lambda data: data + bytes(by)):
        records = with_data(encode_uplink(cases.uplink(D)), record, key, change)
        with pytest.raises(WireError, match=r"client 'site-0': found (mask|head \w+) .*, expected"):
            decode_uplink(records, expected_of(D))


def test_the_vector_may_have_any_readable_header_of_the_right_content():
    # Version 2 of the format, and a claim of Fortran order, which says nothing of a vector.
    records = encode_uplink(cases.uplink(D))
    values = np.arange(D, dtype=np.float32)
    data = npy(header("'<f4'", f"({D},)", fortran=True), values.tobytes(), (2, 0))
    with_array(records, "unified", "vector", Array("float32", (D,), "numpy.ndarray", data))
    assert decode_uplink(records, expected_of(D)).vectors.vector.tolist() == values.tolist()


# ---------------------------------------------------------------- announcements

NAME_RULE = "expected 1 to 200 bytes of printable characters without slashes"
ANNOUNCEMENT = {
    "no scalars": (lambda r: without(r, "scalars"), "found no record 'scalars', expected a ConfigRecord"),
    "other fingerprint": (lambda r: with_scalar(r, "fingerprint", "f" * 64), "θ_p differs"),
    "other protocol": (lambda r: with_scalar(r, "protocol", 7), "found protocol 7, expected 4; install the same"),
    "client that is a folder": (lambda r: with_scalar(r, "client", ".."), rf"found name '\.\.', {NAME_RULE}"),
    "task that is a folder": (lambda r: with_scalar(r, "tasks", [".", "mnist"]), rf"found name '\.', {NAME_RULE}"),
    "hidden client": (lambda r: with_scalar(r, "client", ".north"), rf"found name '\.north', {NAME_RULE}"),
    "client of spaces": (lambda r: with_scalar(r, "client", "  "), f"found name ' ', {NAME_RULE}"),
    "client with a space at its end": (lambda r: with_scalar(r, "client", "north "), f"found name .*, {NAME_RULE}"),
    "client with a loose accent": (lambda r: with_scalar(r, "client", "u\u0308"), f"found name .*, {NAME_RULE}"),
    "client that begins with a mark": (lambda r: with_scalar(r, "client", "\u0308u"), f"found name .*, {NAME_RULE}"),
    "client with something invisible": (
        lambda r: with_scalar(r, "client", "nor\u3164th"),
        f"found name .*, {NAME_RULE}",
    ),
    "client too long for a file": (lambda r: with_scalar(r, "client", "日" * 67), f"found name .*, {NAME_RULE}"),
    "tasks that differ by case": (
        lambda r: with_scalar(r, "tasks", ["MNIST", "mnist"]),
        "found tasks 'MNIST' and 'mnist', expected names that differ by more than their case",
    ),
    "tasks that differ by width": (
        lambda r: with_scalar(r, "tasks", ["mnist", "ｍnist"]),
        "expected names that differ by more than their case",
    ),
    "too many tasks": (
        lambda r: with_scalar(r, "tasks", [f"t{i:05}" for i in range(1001)]),
        "found 1001 tasks, expected at most 1000",
    ),
    "no absent": (lambda r: without_scalar(r, "absent"), "found absent = None, expected a list of str"),
    "absent of one task": (lambda r: with_scalar(r, "absent", ["[]"]), "found 1 values of absent, expected 2"),
    "digest with an escape": (
        lambda r: with_scalar(r, "data", ["a", "\x1b[2J"]),
        r"found digest '\\x1b\[2J' of task 'mnist', expected at most 64 plain letters and digits",
    ),
    "long digest": (
        lambda r: with_scalar(r, "heads", ["a" * 65, ""]),
        "of task 'cifar10', expected at most 64 plain letters and digits",
    ),
    "class lists without end": (
        lambda r: with_scalar(r, "classes", ['["a"]', "[" + " " * 8_000_000 + '"a"]']),
        "found 8000010 characters of classes, expected at most 8000000",
    ),
    "no client": (lambda r: without_scalar(r, "client"), "found client = None, expected a value of type str"),
    "client is a number": (lambda r: with_scalar(r, "client", 3), "found client = 3, expected a value of type str"),
    "client without a name": (lambda r: with_scalar(r, "client", ""), f"found name '', {NAME_RULE}"),
    "client outside": (lambda r: with_scalar(r, "client", "../x"), f"found name '../x', {NAME_RULE}"),
    "client with a backslash": (lambda r: with_scalar(r, "client", "a\\b"), f"found name .*, {NAME_RULE}"),
    "client with escapes": (lambda r: with_scalar(r, "client", "\x1b[2J"), rf"found name '\\x1b\[2J', {NAME_RULE}"),
    "client with a line break": (lambda r: with_scalar(r, "client", "a\nb"), rf"found name 'a\\nb', {NAME_RULE}"),
    "client with a zero byte": (lambda r: with_scalar(r, "client", "a\x00"), rf"found name 'a\\x00', {NAME_RULE}"),
    "client written backwards": (
        lambda r: with_scalar(r, "client", "a\u202eb"),
        rf"found name 'a\\u202eb', {NAME_RULE}",
    ),
    "long client": (lambda r: with_scalar(r, "client", "x" * 201), rf"found name 'x{{76}}\.\.\., {NAME_RULE}"),
    "task outside": (lambda r: with_scalar(r, "tasks", ["/etc", "mnist"]), f"found name '/etc', {NAME_RULE}"),
    "task without a name": (lambda r: with_scalar(r, "tasks", ["", "mnist"]), f"found name '', {NAME_RULE}"),
    "no tasks": (lambda r: without_scalar(r, "tasks"), "found tasks = None, expected a list of str"),
    "empty tasks": (lambda r: with_scalar(r, "tasks", []), r"found tasks \[\], expected at least one"),
    "a task twice": (
        lambda r: with_scalar(r, "tasks", ["mnist", "mnist"]),
        "expected at least one task, each once, sorted by name",
    ),
    "tasks in another order": (
        lambda r: with_scalar(r, "tasks", ["mnist", "cifar10"]),
        "each once, sorted by name",
    ),
    "tasks are bytes": (
        lambda r: with_scalar(r, "tasks", [b"a", b"b"]),
        r"found tasks = \[b'a', b'b'\], expected a list",
    ),
    "one count": (lambda r: with_scalar(r, "train", [40]), "found 1 values of train, expected 2, one per task"),
    "no training images": (
        lambda r: with_scalar(r, "train", [40, 0]),
        "found 0 among train, expected integers from 1 to",
    ),
    "absurd count": (
        lambda r: with_scalar(r, "train", [40, 10**10]),
        "found 10000000000 among train, expected integers",
    ),
    "counts are truth values": (lambda r: with_scalar(r, "train", [True, True]), "expected a list of int"),
    "negative test images": (
        lambda r: with_scalar(r, "test", [9, -1]),
        "found -1 among test, expected integers from 0 to",
    ),
    "test counts missing": (lambda r: without_scalar(r, "test"), "found test = None, expected a list of int"),
    "no classes": (lambda r: without_scalar(r, "classes"), "found classes = None, expected a list of str"),
    "classes of one task": (
        lambda r: with_scalar(r, "classes", ['["a"]']),
        "found 1 values of classes, expected 2, one per",
    ),
    "partition is a float": (
        lambda r: with_scalar(r, "partition", 1.0),
        "found partition = 1.0, expected a value of type",
    ),
    "partition is a truth value": (
        lambda r: with_scalar(r, "partition", True),
        "found partition = True, expected a value",
    ),
    "partition below -1": (
        lambda r: with_scalar(r, "partition", -2),
        "found partition = -2, expected an integer from -1 to",
    ),
    "partition beyond": (
        lambda r: with_scalar(r, "partition", 2**40),
        "found partition = 1099511627776, expected an int",
    ),
}


@pytest.mark.parametrize("case", ANNOUNCEMENT)
def test_announcement_is_refused(case):
    damage, text = ANNOUNCEMENT[case]
    with pytest.raises(WireError, match=f"^node 5: .*{text}"):
        decode_announcement(damage(encode_announcement(cases.announcement())), FINGERPRINT, "node 5")


@pytest.mark.parametrize(
    "classes",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '"abc"',
        "3",
        "[1, 2]",
        "[null]",
        '["a", {"b": ["c"]}]',
        "[" * 10**5,
        "1" * 5000,
    ],
)
def test_classes_have_to_be_a_list_of_names(classes):
    records = with_scalar(encode_announcement(cases.announcement()), "classes", ['["a"]', classes])
    text = (
        f"^node 5: found classes {re.escape(repr(classes)[:60])}.* of task 'mnist', expected a JSON list of class names"
    )
    with pytest.raises(WireError, match=text):
        decode_announcement(records, FINGERPRINT, "node 5")


@pytest.mark.parametrize("absent", ["", "{}", "3", "[true]", "[0, 0]", "[1, 0]", "[-1]", "[99]", "[0.0]", '["0"]'])
def test_absent_classes_have_to_be_some_of_the_positions(absent):
    records = with_scalar(encode_announcement(cases.announcement()), "absent", ["[]", absent])
    text = (
        f"^node 5: found absent classes {re.escape(repr(absent))} of task 'mnist', expected a JSON list of some of 0 "
    )
    with pytest.raises(WireError, match=text):
        decode_announcement(records, FINGERPRINT, "node 5")


def test_not_all_classes_can_be_absent():
    everything = json.dumps(list(range(CLASSES["mnist"])))
    records = with_scalar(encode_announcement(cases.announcement()), "absent", ["[]", everything])
    with pytest.raises(WireError, match=r"absent classes .* of task 'mnist'"):
        decode_announcement(records, FINGERPRINT, "node 5")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a", ""], "found class '' of task 'mnist', expected 1 to 500 printable characters"),
        (["a", "  "], "found class ' ' of task 'mnist'"),
        (["a", "b "], "found class 'b ' of task 'mnist'"),
        (["a", "\u3164"], "of task 'mnist', expected 1 to 500"),
        (["a", "\ud800"], "of task 'mnist', expected 1 to 500"),  # half of a letter: no file can name it
        (["a", "x\ny"], r"found class 'x\\ny' of task 'mnist'"),
        (["a", "\x1b[31m"], "of task 'mnist', expected 1 to 500"),
        (["a", "u\u0308"], "and with composed accents"),
        (["a", "\u0308"], "of task 'mnist', expected 1 to 500"),
        (["a", "x" * 501], "of task 'mnist', expected 1 to 500"),
        (["a", "b", "a"], "found class 'a' of task 'mnist' twice, expected every class once"),
        (["\u2764", "\u2764\ufe0f"], "of task 'mnist' twice, expected every class once"),
    ],
)
def test_class_names_can_be_told_apart(names, text):
    records = with_scalar(encode_announcement(cases.announcement()), "classes", ['["a"]', json.dumps(names)])
    with pytest.raises(WireError, match=f"^node 5: .*{text}"):
        decode_announcement(records, FINGERPRINT, "node 5")


def test_classes_may_differ_by_their_case_alone():
    records = with_scalar(encode_announcement(cases.announcement()), "classes", ['["a"]', '["a", "A", "a/b", "C++"]'])
    assert decode_announcement(records, FINGERPRINT, "node 5").tasks["mnist"].classes == ("a", "A", "a/b", "C++")


def test_too_many_classes_are_refused():
    records = with_scalar(encode_announcement(cases.announcement(1)), "classes", ["[" + '"a",' * 100_000 + '"a"]'])
    with pytest.raises(WireError, match="of task 'cifar10', expected a JSON list of class names"):
        decode_announcement(records, FINGERPRINT, "node 5")


@pytest.mark.parametrize("count", [1, 29, 31, 60])
def test_a_client_counts_for_the_images_that_it_announced_neither_more_nor_fewer(count):
    records = with_scalar(encode_uplink(cases.uplink(D)), "num-examples", [40, count])
    with pytest.raises(
        WireError, match=rf"^client 'site-0': found {count} examples of task 'mnist', expected 30, as it announced$"
    ):
        decode_uplink(records, expected_of(D))
    assert decode_uplink(records, expected_of(D, examples=None)).num_examples == {"cifar10": 40, "mnist": count}
