"""Payloads to Flower records, and their bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from matu_flwr.backbones import LinearHead
from matu_flwr.merging import (
    PackedMasks,
    PayloadKind,
    SeparateTaskVectors,
    TaskVectors,
    UnifiedTaskVector,
    pack,
    packed_length,
)
from matu_flwr.settings import Scalar
from matu_flwr.wire.payloads import PROTOCOL, Announcement, Downlink, TaskMetrics, Uplink, VectorDtype


def encode_downlink(downlink: Downlink, dtype: VectorDtype = "float32") -> RecordDict:
    """Records of a message to a client."""
    scalars: dict[str, Any] = {
        "protocol": PROTOCOL,
        "round": downlink.round,
        "fingerprint": downlink.fingerprint,
        "tasks": list(downlink.tasks),
        "evaluate": downlink.evaluate,
        "settings": json.dumps(downlink.settings),
        "experiment": downlink.experiment,
        "attempt": downlink.attempt,
        "trained": downlink.trained,
    }
    return _encode(scalars, downlink.unified, downlink.heads, dtype)


def encode_uplink(uplink: Uplink, dtype: VectorDtype = "float32") -> RecordDict:
    """Records of a client's reply."""
    tasks = sorted(uplink.num_examples)
    scalars: dict[str, Any] = {
        "protocol": PROTOCOL,
        "round": uplink.round,
        "fingerprint": uplink.fingerprint,
        "tasks": tasks,
        "num-examples": [uplink.num_examples[task] for task in tasks],
    }
    records = _encode(scalars, uplink.unified, uplink.heads, dtype)
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


def _encode(
    scalars: dict[str, Any], unified: TaskVectors | None, heads: Mapping[str, LinearHead], dtype: VectorDtype
) -> RecordDict:
    records = RecordDict()
    if isinstance(unified, SeparateTaskVectors):
        records["vectors"] = ArrayRecord({t: _vector_array(unified.vectors[t], dtype) for t in unified.tasks})
        scalars |= {"dtype": dtype}
    elif unified is not None:
        records["unified"] = ArrayRecord({"vector": _vector_array(unified.vector, dtype)})
        scalars |= {"dtype": dtype, "rescalers": [float(unified.rescalers[task]) for task in unified.tasks]}
        if not _masks_are_implied(unified):
            if unified.opposites:
                scalars |= {"opposites": [float(unified.opposites[task]) for task in unified.tasks]}
            records["masks"] = ArrayRecord({task: Array(_bits(unified, task).numpy()) for task in unified.tasks})
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


def _vector_array(vector: Tensor, dtype: VectorDtype) -> Array:
    if dtype == "bfloat16":
        return Array(vector.to(torch.bfloat16).view(torch.uint16).numpy())
    return Array(vector.float().numpy())


def _bits(unified: UnifiedTaskVector, task: str) -> Tensor:
    masks = unified.masks
    return masks.bits[task] if isinstance(masks, PackedMasks) else pack(masks[task])


def encode_question(settings: Mapping[str, Scalar], experiment: str) -> RecordDict:
    """Records of the server's question who a client is."""
    return RecordDict(
        {
            "scalars": ConfigRecord(
                {"protocol": PROTOCOL, "round": 0, "settings": json.dumps(dict(settings)), "experiment": experiment}
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
    complete). Separate: b·d/8 for each.
    """
    vector = d * (2 if dtype == "bfloat16" else 4)
    if kind == "nothing":
        return 0
    if kind == "separate":
        return num_tasks * vector
    return vector if num_tasks == 1 else vector + num_tasks * (packed_length(d) + 4)
