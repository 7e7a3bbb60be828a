"""Damaged payloads: what is let in satisfies every invariant, what is not is a WireError, and never anything else."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.wire import (
    WireError,
    count_bytes,
    decode_announcement,
    decode_downlink,
    decode_settings,
    decode_uplink,
    encode_announcement,
    encode_downlink,
    encode_question,
    encode_uplink,
)
from tests.support.laws import examples
from tests.wire import cases
from tests.wire.cases import FINGERPRINT, expected_of, header, npy

fuzz = examples(200)

DTYPES = st.sampled_from(cases.DTYPES)
COMPRESSIONS = st.sampled_from(cases.COMPRESSIONS)
# Flower's transport holds integers of 64 bits, and text that is valid UTF-8.
INTEGERS = st.one_of(st.integers(-3, 50), st.sampled_from([2**31, 10**9, 10**9 + 1]), st.integers(-(2**63), 2**63 - 1))
FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 1e6, 1.1e6]))
TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            *cases.NAMES,
            FINGERPRINT,
            "float32",
            "bfloat16",
            "int8",
            "int4",
            "none",
            "zstd",
            "{}",
            "[]",
            "null",
            "NaN",
            '["a"]',
            "[1]",
            "..",
        ]
    ),
    st.sampled_from(["[" * 20_000, "1" * 5000, '{"a":' * 20_000, '["\\ud800"]', "-Infinity", '{"rounds": 1e999}']),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
METRICS = st.one_of(INTEGERS, FLOATS, st.lists(INTEGERS, max_size=4), st.lists(FLOATS, max_size=4))
SCALARS = st.one_of(
    METRICS,
    TEXTS,
    st.binary(max_size=20),
    st.booleans(),
    st.lists(TEXTS, max_size=4),
    st.lists(st.binary(max_size=5), max_size=3),
    st.lists(st.booleans(), max_size=4),
)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Arrays as Flower makes them, of any kind and shape; or with a header written by hand."""
    shape = tuple(draw(st.lists(st.integers(0, 40), max_size=2)))
    kind = draw(st.sampled_from(["f4", "u1", "u2", ">f4", "f8", "?", "i8", "f2", "U3"]))
    values = np.full(shape, draw(st.integers(0, 1))).astype(kind)
    if draw(st.booleans()):
        return Array(np.asfortranarray(values) if draw(st.booleans()) else values)
    text = header(draw(st.sampled_from(["'<f4'", "'|u1'", "'|O'", "'x'", "[('a', '<f4')]"])), repr(shape))
    data = npy(text, draw(st.binary(max_size=200)), draw(st.sampled_from([(1, 0), (2, 0), (3, 0), (0, 1)])))
    return Array(kind, shape, draw(st.sampled_from(["numpy.ndarray", "numpy.ndarray", "", "raw"])), data)


@st.composite
def any_record(draw: st.DrawFn) -> ArrayRecord | ConfigRecord | MetricRecord:
    kind = draw(st.sampled_from([ArrayRecord, ConfigRecord, MetricRecord]))
    values: Any = {ArrayRecord: arrays(), ConfigRecord: SCALARS, MetricRecord: METRICS}[kind]
    keys = st.sampled_from(["vector", *cases.NAMES, "mnist/weight", "protocol", "round", "tasks", "seconds.x", "", "/"])
    return kind(draw(st.dictionaries(keys, values, max_size=4)))


@st.composite
def damages(draw: st.DrawFn) -> Callable[[RecordDict], str]:
    """One change of one thing. The function changes a RecordDict in place and says what it did."""
    kind = draw(
        st.sampled_from(["drop", "replace", "bytes", "array", "scalar", "scalar", "rename", "rename key", "more"])
    )
    pick = draw(st.integers(0, 2**16))
    record, array, scalar, metric = draw(any_record()), draw(arrays()), draw(SCALARS), draw(METRICS)
    flips = draw(st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 255)), min_size=1, max_size=3))
    near_start = draw(st.booleans())
    cut, tail = draw(st.integers(0, 9)), draw(st.binary(max_size=9))
    name = draw(
        st.sampled_from(
            ["unified", "masks", "heads", "scalars", "metrics", "vector", "vector/scales", "usps", "dtype", "", "x/y"]
        )
    )

    def damage(records: RecordDict) -> str:
        if not records:
            return "nothing left"
        at = sorted(records)[pick % len(records)]
        keys = sorted(records[at])
        if kind == "drop":
            del records[at]
        elif kind == "replace":
            records[at] = record
        elif kind == "more":
            records[name] = record
        elif kind == "rename":
            records[name] = records.pop(at)
        elif not keys:
            return "nothing there"
        elif kind == "rename key":
            inner = dict(records[at])
            inner[name] = inner.pop(keys[pick % len(keys)])
            records[at] = type(records[at])(inner)
        else:
            key = keys[pick % len(keys)]
            if isinstance(records[at], ConfigRecord):
                records[at][key] = scalar
            elif isinstance(records[at], MetricRecord):
                records[at][key] = metric
            else:
                old = records[at][key]
                if kind == "array":
                    cases.with_array(records, at, key, array)
                else:
                    data = bytearray(old.data)
                    for where, mask in flips if data else []:
                        data[where % min(len(data), 128 if near_start else len(data))] ^= mask
                    changed = bytes(data[: len(data) - cut]) + tail if kind == "scalar" else bytes(data)
                    cases.with_array(records, at, key, Array(old.dtype, old.shape, old.stype, changed))
            return f"{kind} {at}[{key}]"
        return f"{kind} {at}"

    return damage


def check_text(text: str, *beginnings: str) -> None:
    assert text.startswith(beginnings)
    assert len(text) < 1000
    assert text.isprintable()


@fuzz
@given(
    st.integers(1, 40),
    st.integers(1, 3),
    DTYPES,
    COMPRESSIONS,
    st.booleans(),
    st.sampled_from(["unified", "separate", "nothing"]),
    st.lists(damages(), min_size=1, max_size=2),
)
def test_a_damaged_reply_is_refused_or_harmless(d, k, dtype, compression, heads, payload, changes):
    reply = cases.uplink(d, k, heads=heads, unified=payload == "unified", separate=payload == "separate")
    records = encode_uplink(reply, dtype, compression)
    for change in changes:
        change(records)
    expected = expected_of(d, k)
    try:
        reply = decode_uplink(records, expected, payload=payload)
    except WireError as error:
        check_text(str(error), "client 'site-0': found ", "client 'site-0': mask of ")
        return
    cases.check_uplink(reply, expected)
    assert (reply.vectors is None) == (payload == "nothing")
    assert count_bytes(records)["total"] > 0  # which the server does with what it let in


@fuzz
@given(
    st.integers(1, 40),
    st.integers(1, 3),
    DTYPES,
    COMPRESSIONS,
    st.booleans(),
    st.lists(damages(), min_size=1, max_size=2),
)
def test_a_damaged_downlink_is_refused_or_harmless(d, k, dtype, compression, heads, changes):
    records = encode_downlink(cases.downlink(d, k, heads=heads), dtype, compression)
    for change in changes:
        change(records)
    expected = expected_of(d, k)
    try:
        values, run_name = decode_settings(records)
        message = decode_downlink(records, expected)
    except WireError:
        return
    cases.check_downlink(message, expected)
    assert (message.settings, message.run_name) == (values, run_name)


@fuzz
@given(st.integers(1, 3), st.lists(damages(), min_size=1, max_size=2))
def test_a_damaged_announcement_is_refused_or_harmless(k, changes):
    records = encode_announcement(cases.announcement(k))
    for change in changes:
        change(records)
    try:
        told = decode_announcement(records, FINGERPRINT, "node 5")
    except WireError as error:
        check_text(str(error), "node 5: found ")
        return
    cases.check_announcement(told)


@fuzz
@given(
    st.sampled_from(
        [
            "protocol",
            "client",
            "partition",
            "tasks",
            "classes",
            "absent",
            "train",
            "test",
            "heads",
            "data",
            "fingerprint",
        ]
    ),
    SCALARS,
)
def test_an_announcement_may_hold_any_value_anywhere(key, value):
    records = encode_announcement(cases.announcement())
    records["scalars"][key] = value
    with contextlib.suppress(WireError):
        cases.check_announcement(decode_announcement(records, FINGERPRINT, "node 5"))


# Names as somebody would write them who wants two to look like one, to leave a folder, or to move a cursor.
HOSTILE_NAMES = st.text(
    st.sampled_from(
        [*"aAbé ./\\-_\u0301\u0308\u3164\ufe0f\u200d\u202e\x1b\n\x00", "ß", "ﬁ", "Å", "\u212b", "ｍ", "日"]
    ),
    max_size=6,
)


@fuzz
@given(
    HOSTILE_NAMES,
    st.lists(HOSTILE_NAMES, min_size=1, max_size=4).map(sorted),
    st.lists(HOSTILE_NAMES, max_size=5),
    st.lists(st.integers(-1, 5), max_size=4),
)
def test_names_that_are_let_in_cannot_be_mixed_up(client, tasks, classes, absent):
    many = len(tasks)
    records = encode_announcement(cases.announcement(1))
    records["scalars"].update(
        {
            "client": client,
            "tasks": tasks,
            "classes": [json.dumps(classes)] * many,
            "absent": [json.dumps(absent)] * many,
            "train": [3] * many,
            "test": [0] * many,
            "heads": [""] * many,
            "data": [""] * many,
        }
    )
    try:
        told = decode_announcement(records, FINGERPRINT, "node 5")
    except WireError as error:
        check_text(str(error), "node 5: found ")
        return
    cases.check_announcement(told)


@fuzz
@given(st.one_of(TEXTS, SCALARS))
def test_settings_may_be_any_value(value):
    records = encode_question({}, "run-1")
    records["scalars"]["settings"] = value
    with contextlib.suppress(WireError):
        assert type(decode_settings(records)[0]) is dict


@fuzz
@given(st.integers(1, 40), DTYPES, COMPRESSIONS, st.sampled_from(["vector", "scales", "mask", "head"]), arrays())
def test_any_array_in_any_place(d, dtype, compression, place, array):
    records = encode_uplink(cases.uplink(d, 2), dtype, compression)
    scales = "vector/scales" if dtype in ("int8", "int4") else "vector"
    where = {
        "vector": ("unified", "vector"),
        "scales": ("unified", scales),
        "mask": ("masks", "mnist"),
        "head": ("heads", "mnist/bias"),
    }[place]
    cases.with_array(records, *where, array)
    with contextlib.suppress(WireError):
        cases.check_uplink(decode_uplink(records, expected_of(d)), expected_of(d))


@fuzz
@given(st.binary(max_size=64), st.binary(max_size=2), st.integers(1, 40), st.sampled_from(["int8", "int4"]))
def test_any_codes_and_scales_of_the_right_size(codes, scales, d, dtype):
    """Any value of every byte: refused, or finite numbers."""
    records = encode_uplink(cases.uplink(d, 2), dtype)
    size = len(records["unified"]["vector"].numpy())
    cases.with_values(records, "unified", "vector", np.resize(np.frombuffer(codes or b"\0", np.uint8), size))
    if len(scales) == 2:
        cases.with_values(records, "unified", "vector/scales", np.frombuffer(scales, np.uint16))
    with contextlib.suppress(WireError):
        cases.check_uplink(decode_uplink(records, expected_of(d)), expected_of(d))


@fuzz
@given(st.binary(max_size=200), st.booleans(), st.booleans(), st.integers(1, 40), DTYPES)
def test_any_bytes_as_a_frame(data, with_magic, compressed, d, dtype):
    records = encode_uplink(cases.uplink(d, 2), dtype, "zstd")
    frame = zstandard.ZstdCompressor().compress(data) if compressed else b"\x28\xb5\x2f\xfd" * with_magic + data
    cases.with_values(records, "unified", "vector", np.frombuffer(frame, np.uint8))
    try:
        found = decode_uplink(records, expected_of(d))
    except WireError as error:
        check_text(str(error), "client 'site-0': found ")
        return
    cases.check_uplink(found, expected_of(d))


@fuzz
@given(st.binary(max_size=300), st.booleans(), st.integers(1, 40))
def test_any_bytes_as_a_vector(data, with_magic, d):
    records = encode_uplink(cases.uplink(d, 2))
    whole = b"\x93NUMPY" + data if with_magic else data
    cases.with_array(records, "unified", "vector", Array("float32", (d,), "numpy.ndarray", whole))
    with contextlib.suppress(WireError):
        cases.check_uplink(decode_uplink(records, expected_of(d)), expected_of(d))
