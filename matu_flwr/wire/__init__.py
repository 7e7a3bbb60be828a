"""How payloads lie in Flower's records, and how many bytes they take. The only module that knows.

Server to client (`Downlink`) and back (`Uplink`), both as a `RecordDict`:

    unified  ArrayRecord   vector (d,) float32, or uint16 that carries bfloat16 (Flower's arrays know no bfloat16); or
                           int8 or int4 codes as uint8 and vector/scales (ceil(d / 128),), uint16 that carries bfloat16
    vectors  ArrayRecord   <task> and <task>/scales, instead of `unified`, for methods that send one vector per task
    masks    ArrayRecord   <task> (ceil(d / 8),) uint8, one bit per parameter; absent if there
                           is one task and its mask is where the vector is not zero
    heads    ArrayRecord   <task>/weight (C, F), <task>/bias (C,) float32; absent if heads are not shared
    scalars  ConfigRecord  protocol, round, fingerprint, tasks, dtype, compression, rescalers, ...
    metrics  MetricRecord  accuracy, loss, seconds (replies only)

With compression each array of vectors and masks is a zstd frame, uint8 of its length (docs/lab/wire.md).

θ_p is never sent: both sides build it and compare its fingerprint. Nothing in a payload is trusted: sizes are checked
against what is expected before a byte is decoded, and every refusal names who, what was found and what was expected.
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
