"""Bytes really sent, held against the arithmetic of the method."""

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from matu_flwr.wire import count_bytes, encode_downlink, encode_uplink, predict_bytes
from tests.support.local_grid import set_task_identity
from tests.wire import cases

D = 400_001  # not a multiple of 8


BITS = {"float32": 32, "bfloat16": 16, "int8": 8 + 16 / 128, "int4": 4 + 16 / 128}


def arithmetic(d: int, k: int, bits: float) -> float:
    """b·d/8 bytes for the vector; d/8 + 4 for each of k ≥ 2 tasks. A scale of 16 bits is shared by 128 parameters."""
    return bits * d / 8 + (k * (d / 8 + 4) if k >= 2 else 0)


def records_of(direction: str, d: int, k: int, dtype: str, heads: bool = False) -> RecordDict:
    if direction == "up":
        return encode_uplink(cases.uplink(d, k, heads=heads), dtype)
    return encode_downlink(cases.downlink(d, k, heads=heads), dtype)


def bytes_of_the_serialiser(records: RecordDict) -> int:
    set_task_identity()
    return sum(len(part.deflate()) for part in get_all_nested_objects(Message(records, 7, MessageType.TRAIN)).values())


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize(("dtype", "bits"), BITS.items())
@pytest.mark.parametrize("k", [1, 2, 3])
def test_bytes_are_within_one_percent_of_the_arithmetic(direction, dtype, bits, k):
    records = records_of(direction, D, k, dtype)
    wanted = arithmetic(D, k, bits)
    assert count_bytes(records)["total"] == pytest.approx(wanted, rel=0.01)
    # Flower's transport wraps each array in a chunk, an array and a record object: some 500 bytes each.
    assert wanted < bytes_of_the_serialiser(records) < 1.01 * wanted + 2000
    assert predict_bytes(D, k, dtype) == pytest.approx(wanted, abs=k + 3)  # codes, masks, scales are rounded up


@pytest.mark.parametrize(("dtype", "bits"), BITS.items())
@pytest.mark.parametrize("k", [1, 2, 3, 30])
@pytest.mark.parametrize("d", [128, 1024, 5_500_032])
def test_prediction_is_the_arithmetic(d, k, dtype, bits):
    assert predict_bytes(d, k, dtype) == arithmetic(d, k, bits)


def test_prediction_worked_out_by_hand():
    # 9 parameters: 36 bytes as float32, 18 as bfloat16; a mask takes 2 bytes, a rescaler 4.
    assert predict_bytes(9, 1) == 36
    assert predict_bytes(9, 2) == 36 + 2 * (2 + 4)
    assert predict_bytes(9, 1, "bfloat16") == 18
    assert predict_bytes(9, 3, "bfloat16") == 18 + 3 * (2 + 4)
    # a byte or half a byte per parameter, rounded up, and one scale of 2 bytes
    assert predict_bytes(9, 3, "int8") == 9 + 2 + 3 * (2 + 4)
    assert predict_bytes(9, 3, "int4") == 5 + 2 + 3 * (2 + 4)
    assert predict_bytes(9, 3, "int4", "separate") == 3 * (5 + 2)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_bytes_by_kind(direction):
    records = records_of(direction, D, 2, "bfloat16", heads=True)
    counts = count_bytes(records)
    assert list(counts) == ["vector", "masks", "heads", "scalars", "total"]
    assert counts["total"] == sum(counts[kind] for kind in ("vector", "masks", "heads", "scalars"))
    assert counts["vector"] == pytest.approx(2 * D, rel=0.01)
    assert counts["masks"] == pytest.approx(2 * D / 8, rel=0.03)
    heads = 4 * (cases.FEATURES + 1) * (cases.CLASSES["cifar10"] + cases.CLASSES["mnist"])
    assert heads < counts["heads"] < heads + 4 * 256
    assert 100 < counts["scalars"] < 2000


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("d", [1, 9, 128, 129, 1001])
def test_counted_is_predicted_to_the_byte(d, dtype):
    """Beside the name and the header of 128 bytes of every array."""
    for separate in (False, True):
        records = encode_uplink(cases.uplink(d, 3, separate=separate), dtype)
        counts = count_bytes(records)
        names = [name for kind in ("unified", "vectors", "masks") for name in records.get(kind, ())]
        found = counts["vector"] + counts["masks"] - sum(128 + len(name) for name in names)
        rescalers = 0 if separate else 3 * 4  # these travel with the scalars
        assert found + rescalers == predict_bytes(d, 3, dtype, "separate" if separate else "unified")


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_compressed_is_smaller_and_never_much_larger(k, dtype):
    plain, small = (count_bytes(encode_uplink(cases.uplink(D, k), dtype, how)) for how in ("none", "zstd"))
    assert small["total"] < 0.97 * plain["total"]
    assert small["heads"] == plain["heads"]
    tiny = [count_bytes(encode_uplink(cases.uplink(8, k), dtype, how))["total"] for how in ("none", "zstd")]
    assert tiny[1] <= tiny[0] + 20 * (k + 2)


def test_what_is_absent_costs_nothing():
    counts = count_bytes(encode_uplink(cases.uplink(unified=False, heads=False)))
    assert counts["vector"] == counts["masks"] == counts["heads"] == 0
    assert counts["total"] == counts["scalars"] > 0


@pytest.mark.parametrize("value", ["", b"", [], [""], 0, False])
def test_a_client_cannot_send_a_scalar_that_cannot_be_counted(value):
    # Flower's own count of such a record raises; the server counts every reply that it let in.
    records = encode_uplink(cases.uplink())
    records["scalars"]["more"] = value
    assert count_bytes(records)["total"] > 0


def test_records_nobody_knows_count_as_scalars():
    records = encode_uplink(cases.uplink())
    before = count_bytes(records)
    records["more"] = ConfigRecord({"a": 1})
    records["yet more"] = MetricRecord({"b": []})
    records["nothing"] = ArrayRecord()
    after = count_bytes(records)
    assert after["scalars"] >= before["scalars"] + 1
    assert after["total"] - before["total"] == after["scalars"] - before["scalars"]
