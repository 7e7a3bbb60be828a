"""Turns `Downlink`, `Uplink` and `Announcement` into Flower records, and counts their bytes."""

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
    """Encode what the server sends to one client in one round. The package's docstring lists the records."""
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
    """Encode a client's reply. Lists have one entry per task, in the order of the tasks' names."""
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
    """How the vectors and masks of one message become Flower's arrays."""

    dtype: VectorDtype
    compression: Compression

    @property
    def scalars(self) -> dict[str, Any]:
        """The entries of the record `scalars` that a receiver needs to decode the arrays."""
        return {"dtype": self.dtype, "compression": self.compression}

    def vector(self, name: str, vector: Tensor) -> dict[str, Array]:
        """Encode a (d,) float32 vector: as one array, or with int8 and int4 as codes and `<name>/scales`."""
        if self.dtype in LEVELS:
            found = quantise(vector, self.dtype)
            return {name: self.array(found.codes), f"{name}/scales": self.array(found.scales)}
        return {name: self.array(as_sent(vector, self.dtype))}

    def array(self, values: Tensor) -> Array:
        """Encode a tensor as it is, or as a compressed frame."""
        # NumPy has no bfloat16, so its bits are sent as uint16.
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
    """Whether every task's vector is the unified vector itself, as with a single task. Then no mask has to be sent."""
    if any(rescaler != 1 for rescaler in unified.rescalers.values()):
        return False
    support = pack(unified.vector != 0)
    return all(torch.equal(_bits(unified, task), support) for task in unified.tasks)


def _bits(unified: UnifiedTaskVector, task: str) -> Tensor:
    """One task's mask, packed: (ceil(d / 8),) uint8."""
    masks = unified.masks
    return masks.bits[task] if isinstance(masks, PackedMasks) else pack(masks[task])


def encode_question(settings: Mapping[str, Scalar], run_name: str) -> RecordDict:
    """Encode the message that asks a node which client it is and which tasks it holds."""
    return RecordDict(
        {
            "scalars": ConfigRecord(
                {"protocol": PROTOCOL, "round": 0, "settings": json.dumps(dict(settings)), "experiment": run_name}
            )
        }
    )


def encode_announcement(announcement: Announcement) -> RecordDict:
    """Encode a client's answer to `encode_question`."""
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
                    "absent": [json.dumps(info.absent) for info in infos],
                }
            )
        }
    )


def count_bytes(records: RecordDict) -> dict[str, int]:
    """Bytes of a message as it is sent, by kind: "vector", "masks", "heads", "scalars" (with metrics) and "total"."""
    counts = {"vector": 0, "masks": 0, "heads": 0, "scalars": 0}
    kinds = {"unified": "vector", "vectors": "vector", "masks": "masks", "heads": "heads"}
    for name, record in records.items():
        # Flower's `count_bytes` fails for an empty string or list in the other records, and a client may send those.
        size = record.count_bytes() if isinstance(record, ArrayRecord) else len(record.deflate())
        counts[kinds.get(name, "scalars")] += size
    counts["total"] = sum(counts.values())
    return counts


def predict_bytes(d: int, num_tasks: int, dtype: VectorDtype = "float32", kind: PayloadKind = "unified") -> int:
    """Bytes of the vectors, masks and rescalers of `num_tasks` tasks, without compression (docs/method.md, Bytes).

    A unified vector takes b·d/8 bytes, with b bits per number: 32, 16, 8.125 (int8 with its scales) or 4.125 (int4).
    With two or more tasks, each adds a mask of d/8 bytes and a rescaler of 4 bytes. The second rescaler of
    `matu.reconstruction` = complete, 4 bytes more per task, is not counted. Separate vectors take b·d/8 bytes each.
    """
    vector = vector_bytes(d, dtype)
    if kind == "nothing":
        return 0
    if kind == "separate":
        return num_tasks * vector
    return vector if num_tasks == 1 else vector + num_tasks * (packed_length(d) + 4)
