"""Payloads to Flower records, and their bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from matu_flwr.backbones import LinearHead
from matu_flwr.config.settings import Scalar
from matu_flwr.merging import (
    PackedMasks,
    PayloadKind,
    SeparateTaskVectors,
    TaskVectors,
    UnifiedTaskVector,
    VectorDtype,
    as_sent,
    pack,
    packed_length,
)
from matu_flwr.merging.codes import LEVELS, vector_bytes
from matu_flwr.merging.quantise import quantise
from matu_flwr.wire.compression import Compression, compress
from matu_flwr.wire.payloads import PROTOCOL, Announcement, Downlink, TaskMetrics, Uplink


def encode_downlink(
    downlink: Downlink, dtype: VectorDtype = "float32", compression: Compression = "none"
) -> RecordDict:
    """Records of a message to a client."""
    scalars: dict[str, Any] = {
        "protocol": PROTOCOL,
        "round": downlink.round,
        "fingerprint": downlink.fingerprint,
        "tasks": list(downlink.tasks),
        "evaluate": downlink.evaluate,
        "settings": json.dumps(downlink.settings),
        "experiment": downlink.run_name,
        "attempt": downlink.attempt,
        "trained": downlink.trained,
    }
    return _encode(scalars, downlink.vectors, downlink.heads, Coder(dtype, compression))


def encode_uplink(uplink: Uplink, dtype: VectorDtype = "float32", compression: Compression = "none") -> RecordDict:
    """Records of a client's reply."""
    tasks = sorted(uplink.num_examples)
    scalars: dict[str, Any] = {
        "protocol": PROTOCOL,
        "round": uplink.round,
        "fingerprint": uplink.fingerprint,
        "tasks": tasks,
        "num-examples": [uplink.num_examples[task] for task in tasks],
    }
    records = _encode(scalars, uplink.vectors, uplink.heads, Coder(dtype, compression))
    metrics = [uplink.metrics.get(task, TaskMetrics()) for task in tasks]
    records["metrics"] = MetricRecord(
        {
            "train-loss": [float(m.train_loss) for m in metrics],
            "test-correct": [int(m.test_correct) for m in metrics],
            "test-examples": [int(m.test_examples) for m in metrics],
            "test-loss": [float(m.test_loss) for m in metrics],
            **{f"seconds.{name}": float(value) for name, value in uplink.seconds.items()},
        }
    )
    return records


@dataclass(frozen=True)
class Coder:
    """How vectors and masks of one payload become arrays."""

    dtype: VectorDtype
    compression: Compression

    @property
    def scalars(self) -> dict[str, Any]:
        """What the receiver has to know."""
        return {"dtype": self.dtype, "compression": self.compression}

    def vector(self, name: str, vector: Tensor) -> dict[str, Array]:
        """One array, or codes and `<name>/scales`."""
        if self.dtype in LEVELS:
            found = quantise(vector, self.dtype)
            return {name: self.array(found.codes), f"{name}/scales": self.array(found.scales)}
        return {name: self.array(as_sent(vector, self.dtype))}

    def array(self, values: Tensor) -> Array:
        """As they are, or a compressed frame; bfloat16, which NumPy lacks, as uint16."""
        known = (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()
        return Array(compress(known) if self.compression == "zstd" else known)


def _encode(
    scalars: dict[str, Any], vectors: TaskVectors | None, heads: Mapping[str, LinearHead], coder: Coder
) -> RecordDict:
    records = RecordDict()
    if isinstance(vectors, SeparateTaskVectors):
        arrays = [coder.vector(task, vectors.vectors[task]) for task in vectors.tasks]
        records["vectors"] = ArrayRecord({name: array for found in arrays for name, array in found.items()})
        scalars |= coder.scalars
    elif vectors is not None:
        records["unified"] = ArrayRecord(coder.vector("vector", vectors.vector))
        scalars |= coder.scalars | {"rescalers": [float(vectors.rescalers[task]) for task in vectors.tasks]}
        if not _masks_are_implied(vectors):
            if vectors.opposites:
                scalars |= {"opposites": [float(vectors.opposites[task]) for task in vectors.tasks]}
            records["masks"] = ArrayRecord({task: coder.array(_bits(vectors, task)) for task in vectors.tasks})
    if heads:
        records["heads"] = ArrayRecord(
            {
                f"{task}/{name}": Array(t.contiguous().numpy())
                for task, head in heads.items()
                for name, t in head.tensors().items()
            }
        )
    records["scalars"] = ConfigRecord(scalars)
    return records


def _masks_are_implied(unified: UnifiedTaskVector) -> bool:
    """Every task's vector is the unified vector itself, as with one task or one vector for all: no mask is sent."""
    if any(rescaler != 1 for rescaler in unified.rescalers.values()):
        return False
    support = pack(unified.vector != 0)
    return all(torch.equal(_bits(unified, task), support) for task in unified.tasks)


def _bits(unified: UnifiedTaskVector, task: str) -> Tensor:
    masks = unified.masks
    return masks.bits[task] if isinstance(masks, PackedMasks) else pack(masks[task])


def encode_question(settings: Mapping[str, Scalar], run_name: str) -> RecordDict:
    """Records of the question "who are you?", which the server asks every node."""
    return RecordDict(
        {
            "scalars": ConfigRecord(
                {"protocol": PROTOCOL, "round": 0, "settings": json.dumps(dict(settings)), "experiment": run_name}
            )
        }
    )


def encode_announcement(announcement: Announcement) -> RecordDict:
    """Records of a client's answer."""
    tasks = sorted(announcement.tasks)
    infos = [announcement.tasks[task] for task in tasks]
    return RecordDict(
        {
            "scalars": ConfigRecord(
                {
                    "protocol": PROTOCOL,
                    "round": 0,
                    "client": announcement.client,
                    "partition": announcement.partition,
                    "fingerprint": announcement.fingerprint,
                    "tasks": tasks,
                    "classes": [json.dumps(info.classes) for info in infos],
                    "train": [info.train for info in infos],
                    "test": [info.test for info in infos],
                    "heads": [info.head for info in infos],
                    "data": [info.data for info in infos],
                }
            )
        }
    )


def count_bytes(records: RecordDict) -> dict[str, int]:
    """Bytes of a payload by kind: vector, masks, heads, scalars (with metrics), total."""
    counts = {"vector": 0, "masks": 0, "heads": 0, "scalars": 0}
    kinds = {"unified": "vector", "vectors": "vector", "masks": "masks", "heads": "heads"}
    for name, record in records.items():
        # `count_bytes` of the other records raises on an empty string or list, which a client is free to send.
        size = record.count_bytes() if isinstance(record, ArrayRecord) else len(record.deflate())
        counts[kinds.get(name, "scalars")] += size
    counts["total"] = sum(counts.values())
    return counts


def predict_bytes(d: int, num_tasks: int, dtype: VectorDtype = "float32", kind: PayloadKind = "unified") -> int:
    """Bytes of the vectors of k tasks.

    Unified with modulators: b·d/8, and d/8 + 4 for each of k ≥ 2 tasks (docs/method.md; 4 more with reconstruction =
    complete). Separate: b·d/8 for each. int8 and int4 have the scales in b: 8.125 and 4.125. Compression takes off what
    the data allows.
    """
    vector = vector_bytes(d, dtype)
    if kind == "nothing":
        return 0
    if kind == "separate":
        return num_tasks * vector
    return vector if num_tasks == 1 else vector + num_tasks * (packed_length(d) + 4)
