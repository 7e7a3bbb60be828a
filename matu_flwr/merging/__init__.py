"""The mathematics of MaTU: tensors in, tensors out. No Flower, no files, no clock, no random numbers."""

from matu_flwr.choices import PayloadKind, VectorDtype
from matu_flwr.merging.aggregate import MergeResult, aggregate
from matu_flwr.merging.clipping import ClipOptions, clip_updates
from matu_flwr.merging.errors import MergeError
from matu_flwr.merging.masks import PackedMasks, pack, packed_length, unpack
from matu_flwr.merging.options import MAX_MAGNITUDE, MAX_RESCALER, PAPER, MergeOptions
from matu_flwr.merging.quantise import as_sent
from matu_flwr.merging.robust import HolderMean
from matu_flwr.merging.task_graph import TaskGraph
from matu_flwr.merging.task_vectors import (
    ClientUpdate,
    SeparateTaskVectors,
    TaskVectors,
    UnifiedTaskVector,
    without_modulators,
)
from matu_flwr.merging.unify import unify, warm_up

__all__ = [
    "MAX_MAGNITUDE",
    "MAX_RESCALER",
    "PAPER",
    "ClientUpdate",
    "ClipOptions",
    "HolderMean",
    "MergeError",
    "MergeOptions",
    "MergeResult",
    "PackedMasks",
    "PayloadKind",
    "SeparateTaskVectors",
    "TaskGraph",
    "TaskVectors",
    "UnifiedTaskVector",
    "VectorDtype",
    "aggregate",
    "as_sent",
    "clip_updates",
    "pack",
    "packed_length",
    "unify",
    "unpack",
    "warm_up",
    "without_modulators",
]
