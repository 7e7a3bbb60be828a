"""Measure what travels with each codec: bytes of real records, what is lost, and the time to make and read records.

By default, the updates of one round come from a short local training of every task of the generated suite, with the
default backbone. With `--updates` they come from safetensors files with one vector per task, such as a run's
task_vectors.safetensors.

    python benchmarks/wire.py --json wire.json
    python benchmarks/wire.py --updates runs/NAME/task_vectors.safetensors --tasks 1 2 3 8
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from matu_flwr import wire
from matu_flwr.merging import UnifiedTaskVector, as_sent, unify
from matu_flwr.merging.codes import LEVELS
from matu_flwr.merging.masks import bits_of
from matu_flwr.merging.quantise import quantise
from matu_flwr.wire.compression import compress
from matu_flwr.wire.payloads import COMPRESSIONS, DTYPES


def trained(suite: str, steps: int, clients: int = 4) -> dict[str, Tensor]:
    """Updates of one round: every task of the first client that holds it, fine-tuned from θ_p."""
    from matu_flwr.backbones import backbone_arguments, create_backbone
    from matu_flwr.client import ClientState
    from matu_flwr.client.client_round import ClientRound
    from matu_flwr.client.node import node_of
    from matu_flwr.client.rule import Separate
    from matu_flwr.config.settings import Settings
    from matu_flwr.strategies import prepared

    values = {"suite": suite, "strategy": "pertask-fedavg", "train.steps": steps}
    torch.set_num_threads(1)  # as a client has them by default
    settings = prepared(Settings.from_run_config(values))
    backbone = create_backbone(**backbone_arguments(settings))
    updates: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        for partition in range(clients):
            node = node_of(settings, {"partition-id": partition, "num-partitions": clients}, backbone.image_size)
            state = ClientState(Path(folder), "benchmark", node.client)
            work = ClientRound(
                node, backbone, settings, 1, rule=Separate, received=None, heads={}, state=state, kept_from=1
            )
            vectors = work.train().vectors
            assert vectors is not None
            updates = {task: vectors.reconstruct(task) for task in vectors.tasks} | updates
    return updates


def from_file(path: Path) -> dict[str, Tensor]:
    """Vectors by task; of a run's task_vectors.safetensors those, and not the heads beside them."""
    found = load_file(path)
    own = {name.removesuffix("/task_vector"): tau for name, tau in found.items() if name.endswith("/task_vector")}
    return {task: tau.float() for task, tau in (own or found).items()}


def loss(unified: UnifiedTaskVector, updates: dict[str, Tensor]) -> float:
    """‖τ̄ − τ‖ / ‖τ‖, root mean square over the tasks."""
    squares = [
        float((unified.reconstruct(t) - tau).double().norm() / tau.double().norm()) ** 2 for t, tau in updates.items()
    ]
    return math.sqrt(sum(squares) / len(squares))


def measure(updates: dict[str, Tensor], dtype: Any, compression: Any, repeats: int) -> dict[str, Any]:
    """One reply with these tasks through the wire."""
    unified = unify(updates)
    d, k = unified.d, len(updates)
    tasks = unified.tasks
    reply = wire.Uplink(1, "", unified, dict.fromkeys(tasks, 1), {}, {})
    expected = wire.Expected("client", d, "", dict.fromkeys(tasks, 2), 1)
    encoding, decoding = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        records = wire.encode_uplink(reply, dtype, compression)
        middle = time.perf_counter()
        found = wire.decode_uplink(records, expected).vectors
        decoding.append(4 * d / (time.perf_counter() - middle) / 1e6)
        encoding.append(4 * d / (middle - start) / 1e6)
    assert isinstance(found, UnifiedTaskVector)
    counts = wire.count_bytes(records)
    bits = 8 * (counts["vector"] + counts["masks"] + 4 * (len(found.rescalers) + len(found.opposites))) / (d * k)
    vector = unified.vector
    return {
        "tasks": k, "d": d, "dtype": dtype, "compression": compression,
        "vector_bytes": counts["vector"], "mask_bytes": counts["masks"], "bytes": counts["total"],
        "predicted_bytes": wire.predict_bytes(d, k, dtype),
        "bits": round(bits, 3), "times_fewer": round((32 / k + 1) / bits, 2),
        "vector_error": float((found.vector.float() - vector).norm() / vector.norm()),
        "loss": loss(replace(unified, vector=found.vector), updates),
        "encode_mb_per_second": measuring.summary(encoding[1:]),
        "decode_mb_per_second": measuring.summary(decoding[1:]),
    }  # fmt: skip


def entropy(symbols: Tensor) -> float:
    """Bits per symbol, were each coded by itself."""
    counts = torch.bincount(symbols.long().view(-1)).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log2()).sum())


def masks(unified: UnifiedTaskVector) -> dict[str, Any]:
    """Bits per mask bit: each mask by itself, all masks together, and what zstd makes of both orders."""
    planes = torch.stack([unified.masks[task] for task in unified.tasks])  # (k, d) bool
    apart = np.concatenate([bits_of(unified.masks, task).numpy() for task in unified.tasks])
    together = np.packbits(planes.T.contiguous().view(-1).numpy())
    weights = 1 << torch.arange(len(planes))[:, None]
    return {
        "tasks": len(planes),
        "density": float(planes.float().mean()),
        "entropy": sum(entropy(plane) for plane in planes) / len(planes),
        "joint_entropy": entropy((planes * weights).sum(dim=0)) / len(planes),
        "zstd": compress(apart).nbytes / apart.nbytes,
        "zstd_interleaved": compress(together).nbytes / together.nbytes,
    }


def codes(vector: Tensor, tasks: int) -> list[dict[str, Any]]:
    """Bits of sign and magnitude per parameter, as they are, as entropy and by zstd."""
    rows = []
    for dtype in ("int8", "int4"):
        found = quantise(vector, dtype)  # type: ignore[arg-type]
        symbols = found.codes if dtype == "int8" else torch.stack([found.codes & 15, found.codes >> 4])
        packed = found.codes.numpy()
        width = {"int8": 8, "int4": 4}[dtype]
        share = compress(packed).nbytes / packed.nbytes
        rows.append({"tasks": tasks, "dtype": dtype, "bits": width, "entropy": entropy(symbols), "zstd": share * width})
    return rows


def rescalers_from_what_was_sent(unified: UnifiedTaskVector, dtype: Any, updates: dict[str, Tensor]) -> dict[str, Any]:
    """The loss with rescalers made before quantising, as the wire does, and with the same formula after it."""
    sent = replace(unified, vector=as_sent(unified.vector, dtype))
    own, opposite = {}, {}
    size = sent.vector.double().abs()
    for task, tau in updates.items():
        mask, cleared = unified.masks[task], ~unified.masks[task] & (sent.vector != 0)
        own[task], opposite[task] = (
            float(tau.double().abs()[at].sum() / size[at].sum()) if at.any() else 0.0 for at in (mask, cleared)
        )
    after = replace(sent, rescalers=own, opposites=opposite)
    return {"tasks": len(updates), "dtype": dtype, "before": loss(sent, updates), "after": loss(after, updates)}


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--updates", type=Path, help="safetensors with one vector per task")
    parser.add_argument("--suite", default="offline", help="trained on without --updates: a name or a file")
    parser.add_argument("--steps", type=int, default=5, help="of local training, without --updates")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 3, 8], help="k: tasks of a client")
    arguments = parser.parse_args()
    updates = from_file(arguments.updates) if arguments.updates else trained(arguments.suite, arguments.steps)
    rows, mask_rows, code_rows, rescaler_rows = [], [], [], []
    for k in arguments.tasks:
        if k > len(updates):
            parser.error(f"--tasks {k}: there are {len(updates)} vectors: {sorted(updates)}")
        chosen = {task: updates[task] for task in sorted(updates)[:k]}
        for dtype in DTYPES:
            for compression in COMPRESSIONS:
                rows.append(measure(chosen, dtype, compression, arguments.repeats))
        unified = unify(chosen)
        code_rows += codes(unified.vector, k)
        rescaler_rows += [rescalers_from_what_was_sent(unified, dtype, chosen) for dtype in LEVELS]
        if k > 1:
            mask_rows.append(masks(unified))
    columns = {
        "tasks": "k", "dtype": "vector", "compression": "compression",
        "vector_bytes": "vector B", "mask_bytes": "masks B",
        "bits": "bits per parameter and task", "times_fewer": "32/k + 1 over that", "vector_error": "vector error",
        "loss": "channel loss", "encode_mb_per_second": "encode MB/s", "decode_mb_per_second": "decode MB/s",
    }  # fmt: skip
    measuring.table("a reply by codec; MB/s of the vector in float32", columns, rows)
    columns = {
        "tasks": "k", "density": "density", "entropy": "entropy", "joint_entropy": "joint entropy", "zstd": "zstd",
        "zstd_interleaved": "zstd, tasks interleaved",
    }  # fmt: skip
    measuring.table("bits per mask bit", columns, mask_rows)
    columns = {"tasks": "k", "dtype": "codes", "bits": "bits", "entropy": "entropy", "zstd": "zstd"}
    measuring.table("bits per parameter of the vector, without scales", columns, code_rows)
    columns = {"tasks": "k", "dtype": "vector", "before": "before quantising", "after": "after"}
    measuring.table("channel loss by when rescalers are made", columns, rescaler_rows)
    content = {"codecs": rows, "masks": mask_rows, "codes": code_rows, "rescalers": rescaler_rows}
    measuring.write(arguments.json, {"machine": measuring.machine("cpu"), **content})


if __name__ == "__main__":
    main()
