"""How messages between server and clients are stored in Flower's records, and how many bytes they take.

No other part of the package knows this format. The server sends a `Downlink`, a client answers with an `Uplink`. Both
become a `RecordDict` with these records (d parameters, C classes, F features):

    unified  ArrayRecord   `vector`: (d,) float32, or (d,) uint16 that holds the bits of bfloat16, which Flower's
                           arrays do not have. With int8 or int4: codes in uint8, and `vector/scales`,
                           (ceil(d / 128),) uint16 with the bits of bfloat16
    vectors  ArrayRecord   <task> and <task>/scales, in the place of `unified`, if a method sends one vector per task
    masks    ArrayRecord   <task>: (ceil(d / 8),) uint8, one bit per parameter; left out if every mask is 1 exactly
                           where the vector is not zero and every rescaler is 1, as with a single task
    heads    ArrayRecord   <task>/weight (C, F) and <task>/bias (C,), float32; left out if heads are not shared
    scalars  ConfigRecord  protocol, round, fingerprint, tasks, dtype, compression, rescalers, ...
    metrics  MetricRecord  counts of right answers, losses, seconds (only in replies)

With compression, each array of `unified`, `vectors` and `masks` is a zstd frame in a row of uint8 (docs/lab/wire.md).

The start θ_p is never sent: both sides build it and compare its fingerprint. Nothing in a message is trusted. Sizes
are compared with the expected ones before anything is decoded. An error says who sent the message, what was found and
what was expected.
"""

from matu_flwr.merging import VectorDtype
from matu_flwr.wire.compression import Compression
from matu_flwr.wire.decode import decode_announcement, decode_downlink, decode_settings, decode_uplink
from matu_flwr.wire.encode import (
    count_bytes,
    encode_announcement,
    encode_downlink,
    encode_question,
    encode_uplink,
    predict_bytes,
)
from matu_flwr.wire.payloads import (
    Announcement,
    Downlink,
    Expected,
    TaskInfo,
    TaskMetrics,
    Uplink,
    WireError,
)

__all__ = [
    "Announcement",
    "Compression",
    "Downlink",
    "Expected",
    "TaskInfo",
    "TaskMetrics",
    "Uplink",
    "VectorDtype",
    "WireError",
    "count_bytes",
    "decode_announcement",
    "decode_downlink",
    "decode_settings",
    "decode_uplink",
    "encode_announcement",
    "encode_downlink",
    "encode_question",
    "encode_uplink",
    "predict_bytes",
]
