"""Reads the records of one message and checks every value. Nothing in a message is trusted: it may be hostile."""

from __future__ import annotations

import io
import json
import math
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from matu_flwr.backbones import LinearHead
from matu_flwr.config.settings import Scalar
from matu_flwr.merging import (
    MAX_RESCALER,
    PackedMasks,
    SeparateTaskVectors,
    TaskVectors,
    UnifiedTaskVector,
    VectorDtype,
    pack,
    packed_length,
)
from matu_flwr.merging.blocks import blocks
from matu_flwr.merging.codes import LEVELS, SCALE_FLOOR, Quantised, code_length, scale_length
from matu_flwr.merging.quantise import dequantise
from matu_flwr.texts import printable, short
from matu_flwr.wire.compression import decompress, largest_frame
from matu_flwr.wire.payloads import (
    ACTIVITIES,
    COMPRESSIONS,
    DTYPES,
    MAX_EXAMPLES,
    MAX_LOSS,
    MAX_MAGNITUDE,
    MAX_REBUILT,
    MAX_SECONDS,
    NPY_HEADER,
    PROTOCOL,
    Expected,
    TaskMetrics,
    WireError,
)

Word = TypeVar("Word", bound=str)

# Characters of an error's text: what it quotes may be hostile.
MAX_ERROR = 1000


class Reader:
    """Reads one message. Every method checks what it reads, and raises `WireError` if it is not as expected.

    Parameters
    ----------
    records : RecordDict
        The message.
    expected : Expected
        What the receiver knows about it.
    """

    def __init__(self, records: RecordDict, expected: Expected) -> None:
        self.records = records
        self.expected = expected
        scalars = records.get("scalars")
        if not isinstance(scalars, ConfigRecord):
            raise self.error("no record 'scalars'", "a ConfigRecord")
        self.scalars = scalars
        protocol = self.scalar("protocol", int)
        if protocol != PROTOCOL:
            raise self.error(f"protocol {protocol}", f"{PROTOCOL}; install the same matu-flwr on both sides")
        self.round = self.integer("round", 0, 2**31)
        if expected.round is not None and self.round != expected.round:
            raise self.error(f"a payload of round {self.round}", f"round {expected.round}")

    def error(self, found: str, expected: str) -> WireError:
        """Make an error that names the sender, what was found and what was expected."""
        return WireError(printable(f"{self.expected.who}: found {found}, expected {expected}", MAX_ERROR))

    def scalar(self, key: str, kind: type) -> Any:
        """Read one scalar of exactly this type."""
        value = self.scalars.get(key)
        # Not isinstance: True is an int for it.
        if type(value) is not kind:
            raise self.error(f"{key} = {short(value)}", f"a value of type {kind.__name__}")
        return value

    def one_of(self, key: str, known: tuple[Word, ...]) -> Word:
        """Read one of the known words."""
        value = self.scalar(key, str)
        for word in known:
            if value == word:
                return word
        raise self.error(f"{key} = {short(value)}", " or ".join(map(repr, known)))

    def integer(self, key: str, low: int, high: int) -> int:
        """Read an integer from `low` to `high`."""
        value: int = self.scalar(key, int)
        if not low <= value <= high:
            raise self.error(f"{key} = {value}", f"an integer from {low} to {high}")
        return value

    def settings(self) -> dict[str, Scalar]:
        """Read the settings that differ from the defaults, by flat key. Their values are not checked here."""
        text = self.scalar("settings", str)
        found = from_json(text)
        if not isinstance(found, dict):
            raise self.error(f"settings = {short(text)}", "a JSON object")
        return found

    def values(self, key: str, kind: type, length: int | None = None) -> list[Any]:
        """Read a list whose items all have exactly this type; with this length, if one is given."""
        value = self.scalars.get(key)
        if not isinstance(value, list) or any(type(item) is not kind for item in value):
            raise self.error(f"{key} = {short(value)}", f"a list of {kind.__name__}")
        if length is not None and len(value) != length:
            raise self.error(f"{len(value)} values of {key}", f"{length}, one per task")
        return value

    def integers(self, key: str, length: int, low: int, high: int) -> list[int]:
        """Read a list of `length` integers from `low` to `high`."""
        values: list[int] = self.values(key, int, length)
        for value in values:
            if not low <= value <= high:
                raise self.error(f"{value} among {key}", f"integers from {low} to {high}")
        return values

    def tasks(self) -> list[str]:
        """Read the task names: one or more known tasks, each once, sorted."""
        tasks: list[str] = self.values("tasks", str)
        for task in tasks:
            if task not in self.expected.classes:
                raise self.error(f"task {short(task)}", f"one of its tasks {sorted(self.expected.classes)}")
        if not tasks or tasks != sorted(set(tasks)):
            raise self.error(f"tasks {short(tasks)}", "at least one task, each once, sorted by name")
        return tasks

    def fingerprint(self) -> str:
        """Read the fingerprint of the sender's θ_p. It must equal the receiver's."""
        found: str = self.scalar("fingerprint", str)
        if found != self.expected.fingerprint:
            raise self.error(
                f"fingerprint {short(found[:12])}…",
                f"{self.expected.fingerprint[:12]}…: the pre-trained backbone θ_p differs; use the same backbone "
                "settings, weights file and PyTorch release on both sides",
            )
        return found

    def task_vectors(self, tasks: list[str]) -> TaskVectors | None:
        """Read a unified vector with masks and rescalers, or one vector per task; None if the message has neither."""
        if "vectors" in self.records:
            if "unified" in self.records:
                raise self.error("records 'unified' and 'vectors'", "one of them")
            found = self.vectors("vectors", {task: f"vector of task {task!r}" for task in tasks})
            return SeparateTaskVectors(found)
        return self.unified(tasks) if "unified" in self.records else None

    def vectors(self, record: str, wanted: dict[str, str]) -> dict[str, Tensor]:
        """Read all vectors of a record, each (d,) float32 or bfloat16.

        `wanted` gives, for the name of each array, what errors call it.
        """
        dtype = self.one_of("dtype", DTYPES)
        if dtype not in LEVELS:
            arrays = self.arrays(record, list(wanted))
            return {name: self.vector(what, arrays[name], dtype) for name, what in wanted.items()}
        arrays = self.arrays(record, [f"{name}{part}" for name in wanted for part in ("", "/scales")])
        return {n: self.quantised(what, arrays[n], arrays[f"{n}/scales"], dtype) for n, what in wanted.items()}

    def quantised(self, what: str, codes: Array, scales: Array, dtype: VectorDtype) -> Tensor:
        """Read codes and scales (int8 or int4), and turn them into a (d,) bfloat16 vector."""
        d = self.expected.d
        found = Quantised(
            self.coded(f"{what} as {dtype}", codes, np.uint8, (code_length(d, dtype),)),
            self.coded(f"scales of the {what}", scales, np.uint16, (scale_length(d),)).view(torch.bfloat16),
        )
        # Negated, so that NaN is wrong too: it is neither above nor below anything.
        wrong = found.scales[~((found.scales >= SCALE_FLOOR) & (found.scales <= MAX_MAGNITUDE))]
        if len(wrong):
            wanted = f"finite numbers from {SCALE_FLOOR:g} to {MAX_MAGNITUDE:g}"
            raise self.error(f"{float(wrong[0]):g} among the scales of the {what}", wanted)
        # Two int4 codes share a byte. If d is odd, the upper half of the last byte is unused and must be 0.
        if dtype == "int4" and d % 2 and int(found.codes[-1]) >> 4:
            raise self.error(f"a code beyond parameter {d - 1} in the {what}", f"{d} codes and zero bits")
        # No code stands for more than its scale.
        return dequantise(found, d, dtype)

    def vector(self, what: str, array: Array, dtype: VectorDtype) -> Tensor:
        """Read a (d,) vector, float32 or bfloat16, of finite numbers of at most `MAX_MAGNITUDE`."""
        raw = self.coded(what, array, np.uint16 if dtype == "bfloat16" else np.float32, (self.expected.d,))
        vector = raw.view(torch.bfloat16) if dtype == "bfloat16" else raw
        self.check_magnitude(what, largest_magnitude(vector), MAX_MAGNITUDE)
        return vector

    def check_magnitude(self, what: str, largest: float, most: float) -> None:
        """Refuse numbers of which the one of the largest magnitude is not finite, or larger than `most`."""
        if not math.isfinite(largest):
            raise self.error(f"NaN or infinity in the {what}", "finite numbers")
        if largest > most:
            raise self.error(f"a value of magnitude {largest:g} in the {what}", f"at most {most:g}")

    def check_rebuilt(self, vectors: TaskVectors) -> None:
        """Refuse vectors of a reply that are too large as the server uses them: times their rescalers."""
        if isinstance(vectors, SeparateTaskVectors):
            for task, vector in vectors.vectors.items():
                self.check_magnitude(f"vector of task {task!r}", largest_magnitude(vector), MAX_REBUILT)
            return
        largest = largest_magnitude(vectors.vector)
        for task, rescaler in vectors.rescalers.items():
            factor = max(rescaler, vectors.opposites.get(task, 0.0))
            self.check_magnitude(f"vector of task {task!r} times its rescaler", largest * factor, MAX_REBUILT)

    def check_head(self, task: str, head: LinearHead) -> None:
        """Refuse a head of a reply whose numbers are too large to take a mean of."""
        for part, tensor in head.tensors().items():
            self.check_magnitude(f"head {part} of task {task!r}", float(tensor.abs().max()), MAX_REBUILT)

    def unified(self, tasks: list[str]) -> UnifiedTaskVector:
        """Read a unified vector with its packed masks and rescalers."""
        d = self.expected.d
        vector = self.vectors("unified", {"vector": "unified vector"})["vector"]
        rescalers = self.rescalers("rescalers", tasks)
        # Masks that are 1 exactly where the vector is not zero are not sent, and are made here.
        if "masks" not in self.records and (len(tasks) == 1 or all(value == 1 for value in rescalers.values())):
            support = pack(vector != 0)
            return UnifiedTaskVector(vector, PackedMasks(dict.fromkeys(tasks, support), d), rescalers)
        opposites = self.rescalers("opposites", tasks) if "opposites" in self.scalars else {}
        packed = self.arrays("masks", tasks)
        bits = {
            task: self.coded(f"mask of task {task!r}", packed[task], np.uint8, (packed_length(d),)) for task in tasks
        }
        try:
            return UnifiedTaskVector(vector, PackedMasks(bits, d), rescalers, opposites)
        except ValueError as error:
            raise WireError(f"{self.expected.who}: {error}") from None

    def rescalers(self, key: str, tasks: list[str]) -> dict[str, float]:
        """Read one rescaler per task: those of the set mask bits, or with key "opposites" of the cleared ones."""
        found = dict(zip(tasks, self.values(key, float, len(tasks)), strict=True))
        for task, rescaler in found.items():
            if not 0 <= rescaler <= MAX_RESCALER:
                raise self.error(
                    f"{key.removesuffix('s')} {rescaler} of task {task!r}",
                    f"a finite number from 0 to {MAX_RESCALER:g}",
                )
        return found

    def heads(self, tasks: list[str]) -> dict[str, LinearHead]:
        """Read the heads by task: weight (C, F) and bias (C,), float32. Empty if the message has none."""
        if "heads" not in self.records:
            return {}
        if not self.expected.heads:
            raise self.error("record 'heads'", "none: no heads are sent in this run")
        record = self.records["heads"]
        names = sorted(record) if isinstance(record, ArrayRecord) else []
        owners = sorted({name.rpartition("/")[0] for name in names})
        if not set(owners) <= set(tasks):
            raise self.error(f"heads of {short(owners)}", f"heads of {tasks}")
        arrays = self.arrays("heads", [f"{task}/{part}" for task in owners for part in ("weight", "bias")])
        heads = {}
        for task in owners:
            classes = self.expected.classes[task]
            tensors = {
                part: self.array(f"head {part} of task {task!r}", arrays[f"{task}/{part}"], np.float32, shape)
                for part, shape in (("weight", (classes, self.expected.num_features)), ("bias", (classes,)))
            }
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
                raise self.error(f"NaN or infinity in the head of task {task!r}", "finite numbers")
            heads[task] = LinearHead(tensors["weight"], tensors["bias"])
        return heads

    def arrays(self, name: str, keys: list[str]) -> ArrayRecord:
        """Read an ArrayRecord that has exactly the arrays named in `keys`."""
        record = self.records.get(name)
        if not isinstance(record, ArrayRecord):
            raise self.error(f"no record {name!r}", "an ArrayRecord")
        if sorted(record) != sorted(keys):
            raise self.error(f"arrays {short(sorted(record))} in record {name!r}", f"{sorted(keys)}")
        return record

    def coded(self, what: str, array: Array, dtype: type[np.generic], shape: tuple[int]) -> Tensor:
        """Decode one array of vectors or masks: (n,) of `dtype`, which may be compressed."""
        if self.one_of("compression", COMPRESSIONS) == "none":
            return self.array(what, array, dtype, shape)
        size = shape[0] * np.dtype(dtype).itemsize
        wanted = f"a zstd frame of {size} bytes as a row of uint8"
        if array.stype != "numpy.ndarray" or not len(array.data) <= largest_frame(size) + NPY_HEADER:
            raise self.error(f"{what} of {len(array.data)} bytes as {short(array.stype)}", wanted)
        found_shape, _, found_dtype, start = self.header(what, array, wanted)
        if found_shape != (len(array.data) - start,) or found_dtype != np.uint8:
            left = len(array.data) - start
            raise self.error(f"{what} {found_shape} of {found_dtype} with {left} bytes of values", wanted)
        try:
            values = decompress(memoryview(array.data)[start:], shape[0], np.dtype(dtype))
        except ValueError as error:
            raise self.error(f"{what} as {error}", wanted) from None
        return torch.from_numpy(values)

    def array(self, what: str, array: Array, dtype: type[np.generic], shape: tuple[int, ...]) -> Tensor:
        """Decode one array of a known shape and dtype. The sender cannot make it take more memory than that.

        Flower's `Array.numpy()` trusts the header inside the data, which may claim any shape. Here the length of the
        data is compared with the expected one first, and then the header.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        wanted = f"{shape} of {np.dtype(dtype)}"
        if array.stype != "numpy.ndarray" or not size <= len(array.data) <= size + NPY_HEADER:
            raise self.error(f"{what} of {len(array.data)} bytes as {short(array.stype)}", f"{wanted}, {size} bytes")
        found_shape, fortran, found_dtype, start = self.header(what, array, wanted)
        # In Fortran order the values of a matrix come by columns. For a row of numbers both orders are the same.
        if found_shape != shape or found_dtype != np.dtype(dtype) or (fortran and len(shape) > 1):
            order = " in Fortran order" if fortran and len(found_shape) > 1 else ""
            raise self.error(f"{what} {found_shape} of {found_dtype}{order}", wanted)
        if len(array.data) - start != size:
            left = len(array.data) - start
            raise self.error(f"{what} with {left} bytes of values", f"{wanted}, {size} bytes")
        values = np.frombuffer(array.data, dtype=dtype, count=math.prod(shape), offset=start)
        return torch.from_numpy(values.reshape(shape).copy())

    def header(self, what: str, array: Array, wanted: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
        """Read the .npy header inside an array's data: shape, whether in Fortran order, dtype, where the values start.

        `what` and `wanted` are for the error.
        """
        stream = io.BytesIO(array.data)
        try:
            version = np.lib.format.read_magic(stream)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = read_header[version](stream, NPY_HEADER)
        # A hostile header can make NumPy's parser raise any exception.
        except Exception as error:
            raise self.error(f"{what} with an unreadable header", wanted) from error
        return shape, fortran, dtype, stream.tell()

    def metrics(self, tasks: list[str]) -> dict[str, TaskMetrics]:
        """Read each task's results from the record `metrics`."""
        record = self.metric_record()
        columns: dict[str, list[Any]] = {}
        for key, kind in (("train-loss", float), ("test-correct", int), ("test-examples", int), ("test-loss", float)):
            column = record.get(key)
            if not isinstance(column, list) or len(column) != len(tasks) or any(type(v) is not kind for v in column):
                raise self.error(f"metric {key} = {short(column)}", f"a list of {len(tasks)} {kind.__name__}")
            columns[key] = column
        metrics = {}
        for task, loss, correct, examples, test_loss in zip(tasks, *columns.values(), strict=True):
            most = MAX_EXAMPLES if self.expected.tests is None else self.expected.tests[task]
            if not 0 <= correct <= examples <= most:
                raise self.error(
                    f"{correct} correct of {examples} test images, task {task!r}",
                    f"0 ≤ correct ≤ images ≤ {most}, "
                    + ("the most of any task" if self.expected.tests is None else "as it announced"),
                )
            self.check_loss(f"training loss of task {task!r}", loss, self.expected.losses)
            self.check_loss(f"test loss of task {task!r}", test_loss, examples > 0)
            metrics[task] = TaskMetrics(loss, correct, examples, test_loss)
        return metrics

    def check_loss(self, what: str, loss: float, wanted: bool) -> None:
        """Refuse a loss that no cross-entropy has. NaN says that there is none, where none is `wanted`."""
        if math.isnan(loss) and not wanted:
            return
        # Negated, so that NaN is wrong too.
        if not 0 <= loss <= MAX_LOSS:
            raise self.error(f"{what} = {loss}", f"a number from 0 to {MAX_LOSS:g}")

    def metric_record(self) -> MetricRecord:
        """Find the record `metrics`, which every reply has."""
        record = self.records.get("metrics")
        if not isinstance(record, MetricRecord):
            raise self.error("no record 'metrics'", "a MetricRecord")
        return record

    def seconds(self) -> dict[str, float]:
        """Read how long each activity took, in seconds: the entries of `metrics` that begin with "seconds."."""
        found = {}
        for key, value in self.metric_record().items():
            if key.startswith("seconds."):
                activity = key.removeprefix("seconds.")
                if activity not in ACTIVITIES:
                    raise self.error(short(key), f"seconds of {', '.join(ACTIVITIES)}")
                if type(value) is not float or not 0 <= value <= MAX_SECONDS:
                    raise self.error(f"{short(key)} = {short(value)}", f"a number of seconds from 0 to {MAX_SECONDS:g}")
                found[activity] = value
        return found


def largest_magnitude(vector: Tensor) -> float:
    """Largest |v| of a (d,) vector, float32 or bfloat16. Infinity or NaN if the vector has one; 0 if d = 0."""
    # Without the sign bit, the bits of floats read as whole numbers are in the order of the magnitudes, and NaN comes
    # after infinity. So one pass over integers finds the largest value, and also tells whether all are finite.
    bits = vector.view(torch.uint16 if vector.dtype == torch.bfloat16 else torch.uint32).numpy()
    magnitude = np.array(np.iinfo(bits.dtype).max >> 1, bits.dtype)
    largest = max((np.max(bits[start:stop] & magnitude) for start, stop in blocks(len(bits))), default=0)
    return float(torch.from_numpy(np.array(largest, bits.dtype)).view(vector.dtype))


def from_json(text: str) -> Any:
    """What an untrusted JSON text says; None if it is not JSON."""
    try:
        return json.loads(text)
    # ValueError: not JSON, or a number of thousands of digits. RecursionError: thousands of nested brackets.
    except (ValueError, RecursionError):
        return None


def json_list(text: str, kind: type) -> list[Any] | None:
    """The list that an untrusted JSON text says, if all items have exactly this type; None if it is anything else."""
    found = from_json(text)
    return found if isinstance(found, list) and all(type(item) is kind for item in found) else None
