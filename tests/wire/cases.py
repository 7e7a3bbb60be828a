"""Payloads for the tests of `wire`, ways to damage them, and what every payload that was let in must satisfy."""

import math
import struct
import unicodedata
from collections.abc import Callable, Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict

from matu_flwr.backbones import LinearHead
from matu_flwr.merging import (
    MAX_RESCALER,
    PAPER,
    PackedMasks,
    SeparateTaskVectors,
    TaskVectors,
    UnifiedTaskVector,
    packed_length,
    unify,
)
from matu_flwr.wire import Announcement, Downlink, Expected, TaskInfo, TaskMetrics, Uplink
from tests.support.local_grid import set_task_identity, through_the_wire

FINGERPRINT = "0123456789abcdef" * 4
FEATURES = 7
ROUND = 3
NAMES = ["cifar10", "mnist", "usps"]
DTYPES = ["float32", "bfloat16", "int8", "int4"]
COMPRESSIONS = ["none", "zstd"]
CLASSES = {"cifar10": 5, "mnist": 4, "usps": 1}
EXAMPLES = {"cifar10": 40, "mnist": 30, "usps": 20}


def sent(records: RecordDict) -> RecordDict:
    """Give back the records as the other side gets them from Flower's serialiser."""
    set_task_identity()
    return through_the_wire(Message(records, 7, MessageType.TRAIN), "").content


def unified_of(d: int, tasks: list[str], seed: int = 0, **operator: str) -> UnifiedTaskVector:
    """Unify random task vectors, a tenth of which is zero."""
    generator = torch.Generator().manual_seed(seed)
    return unify(
        {
            task: torch.randn(d, generator=generator) * (torch.rand(d, generator=generator) > 0.1)
            for task in sorted(tasks)
        },
        **{**PAPER, **operator},
    )


def separate_of(d: int, tasks: list[str], seed: int = 0) -> SeparateTaskVectors:
    """Random task vectors side by side."""
    generator = torch.Generator().manual_seed(seed)
    return SeparateTaskVectors({task: torch.randn(d, generator=generator) for task in sorted(tasks)})


def heads_of(tasks: list[str]) -> dict[str, LinearHead]:
    generator = torch.Generator().manual_seed(1)
    return {
        task: LinearHead(
            torch.randn(CLASSES[task], FEATURES, generator=generator), torch.randn(CLASSES[task], generator=generator)
        )
        for task in tasks
    }


def uplink(d: int = 37, k: int = 2, *, heads: bool = True, unified: bool = True, separate: bool = False) -> Uplink:
    tasks = NAMES[:k]
    vectors = separate_of(d, tasks) if separate else unified_of(d, tasks) if unified else None
    return Uplink(
        round=ROUND,
        fingerprint=FINGERPRINT,
        vectors=vectors,
        num_examples={task: EXAMPLES[task] for task in tasks},
        heads=heads_of(tasks) if heads else {},
        metrics={task: TaskMetrics(0.5, 8, 10, 0.75) for task in tasks},
        seconds={"train": 1.5, "unify": 0.0},
    )


def downlink(d: int = 37, k: int = 2, *, heads: bool = True, unified: bool = True) -> Downlink:
    tasks = NAMES[:k]
    return Downlink(
        round=ROUND,
        fingerprint=FINGERPRINT,
        tasks=tasks,
        vectors=unified_of(d, tasks) if unified else None,
        heads=heads_of(tasks) if heads else {},
        evaluate=True,
        settings={"rounds": 5, "train.lr": 0.01, "matu.preset": "paper", "server-evaluate": False},
        run_name="run-1",
    )


def announcement(k: int = 2) -> Announcement:
    infos = {
        task: TaskInfo(tuple(f"{task} {label}" for label in range(CLASSES[task])), EXAMPLES[task], 9, "0123", "4567")
        for task in NAMES[:k]
    }
    return Announcement("site-0", 0, FINGERPRINT, infos)


def expected_of(d: int = 37, k: int = 2, **changes: object) -> Expected:
    tasks = NAMES[:k]
    known = {
        "who": "client 'site-0'",
        "d": d,
        "fingerprint": FINGERPRINT,
        "classes": {task: CLASSES[task] for task in tasks},
        "num_features": FEATURES,
        "round": ROUND,
        "examples": {task: EXAMPLES[task] for task in tasks},
        "tests": dict.fromkeys(tasks, 10),
    }
    return Expected(**(known | changes))


# ---------------------------------------------------------------- damage


def with_array(records: RecordDict, record: str, key: str, array: Array) -> RecordDict:
    """Replace one array (ArrayRecords are changed by making them anew)."""
    records[record] = ArrayRecord({**dict(records[record]), key: array})
    return records


def with_values(records: RecordDict, record: str, key: str, values: np.ndarray | torch.Tensor) -> RecordDict:
    return with_array(records, record, key, Array(np.asarray(values)))


def with_data(records: RecordDict, record: str, key: str, change: Callable[[bytes], bytes]) -> RecordDict:
    """Change the bytes of one array and nothing else."""
    old = records[record][key]
    return with_array(records, record, key, Array(old.dtype, old.shape, old.stype, change(old.data)))


def npy(header: str, data: bytes, version: tuple[int, int] = (1, 0), claimed_length: int | None = None) -> bytes:
    """Write a .npy file by hand, with any header."""
    text = header.encode("latin-1")
    length = len(text) if claimed_length is None else claimed_length
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", length) + text + data


def header(descr: str, shape: str, fortran: bool = False) -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".ljust(117) + "\n"


# ---------------------------------------------------------------- what was let in


def check_unified(unified: TaskVectors, d: int, tasks: list[str]) -> None:
    if isinstance(unified, SeparateTaskVectors):
        assert unified.tasks == tasks
        for vector in unified.vectors.values():
            assert vector.shape == (d,)
            assert vector.dtype in (torch.float32, torch.bfloat16)
            assert torch.isfinite(vector.float()).all()
        return
    assert unified.vector.shape == (d,)
    assert unified.vector.dtype in (torch.float32, torch.bfloat16)
    assert torch.isfinite(unified.vector.float()).all()
    assert isinstance(unified.masks, PackedMasks)
    assert unified.masks.d == d
    assert sorted(unified.masks) == tasks == unified.tasks
    for bits in unified.masks.bits.values():
        assert bits.dtype == torch.uint8
        assert bits.shape == (packed_length(d),)
        assert not (d % 8 and int(bits[-1]) >> (d % 8))
    for rescalers in (unified.rescalers, unified.opposites):
        assert all(type(r) is float and 0 <= r <= MAX_RESCALER for r in rescalers.values())


def check_heads(heads: Mapping[str, LinearHead], expected: Expected, tasks: list[str]) -> None:
    assert set(heads) <= set(tasks)
    for task, head in heads.items():
        assert head.weight.shape == (expected.classes[task], expected.num_features)
        assert head.bias.shape == (expected.classes[task],)
        for tensor in (head.weight, head.bias):
            assert tensor.dtype == torch.float32
            assert torch.isfinite(tensor).all()


def check_tasks(tasks: list[str], expected: Expected) -> None:
    assert tasks
    assert tasks == sorted(set(tasks))
    assert set(tasks) <= set(expected.classes)


def check_uplink(reply: Uplink, expected: Expected) -> None:
    tasks = list(reply.num_examples)
    check_tasks(tasks, expected)
    assert reply.round == expected.round
    assert reply.fingerprint == expected.fingerprint
    assert reply.num_examples == {task: expected.examples[task] for task in tasks}
    if reply.vectors is not None:
        check_unified(reply.vectors, expected.d, tasks)
    check_heads(reply.heads, expected, tasks)
    assert list(reply.metrics) == tasks
    for metrics in reply.metrics.values():
        assert type(metrics.test_correct) is type(metrics.test_examples) is int
        assert 0 <= metrics.test_correct <= metrics.test_examples <= 10
        assert type(metrics.train_loss) is type(metrics.test_loss) is float
        assert math.isnan(metrics.train_loss) or 0 <= metrics.train_loss <= 1e6
        assert 0 <= metrics.test_loss <= 1e6 or (math.isnan(metrics.test_loss) and metrics.test_examples == 0)
    assert reply.seconds.keys() <= {"evaluate", "train", "unify"}
    assert all(type(s) is float and 0 <= s <= 1e7 for s in reply.seconds.values())
    for task in reply.vectors.tasks if reply.vectors is not None else ():
        assert float(reply.vectors.reconstruct(task).abs().max()) <= 1.001e24
    assert all(float(head.weight.abs().max()) <= 1e24 for head in reply.heads.values())


def check_downlink(message: Downlink, expected: Expected) -> None:
    check_tasks(message.tasks, expected)
    assert message.round == expected.round
    assert message.fingerprint == expected.fingerprint
    if message.vectors is not None:
        check_unified(message.vectors, expected.d, message.tasks)
    check_heads(message.heads, expected, message.tasks)
    assert type(message.evaluate) is bool
    assert type(message.settings) is dict
    assert type(message.run_name) is str


def check_announcement(told: Announcement) -> None:
    """What must hold of everything that was let in, said without the code that lets it in."""
    assert told.fingerprint == FINGERPRINT
    assert 1 <= len(told.tasks) <= 1000
    assert list(told.tasks) == sorted(told.tasks)
    assert len({name.casefold() for name in told.tasks}) == len(told.tasks)
    assert type(told.partition) is int
    assert told.partition >= -1
    for name in (told.client, *told.tasks):
        assert 1 <= len(name.encode()) <= 200
        assert name.isprintable()
        assert not set(name) & set("/\\")
        assert name == name.strip() == unicodedata.normalize("NFC", name)
        assert not name.startswith(".")
    for info in told.tasks.values():
        assert info.classes
        assert len(set(info.classes)) == len(info.classes)
        for name in info.classes:
            assert name.strip() == name != ""
            assert name.isprintable()
        assert type(info.train) is type(info.test) is int
        assert 1 <= info.train <= 10**9
        assert 0 <= info.test <= 10**9
        assert list(info.absent) == sorted(set(info.absent))
        assert set(info.absent) < set(range(len(info.classes)))
        assert all(len(digest) <= 64 and digest.isascii() for digest in (info.head, info.data))
