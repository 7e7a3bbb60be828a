"""What is decided before the first round: who holds what, how many bytes will travel, how much memory it takes."""

from __future__ import annotations

import contextlib
import platform
import resource
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from matu_flwr import __version__, wire
from matu_flwr.backbones import Backbone
from matu_flwr.config.sections import BackboneSettings
from matu_flwr.config.settings import Settings
from matu_flwr.events import PlanEvent, Predicted
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.registration import Client
from matu_flwr.merging import VectorDtype
from matu_flwr.merging.codes import held_as

# Copies of one payload that Flower makes while a message is in flight (array, .npy bytes, chunks, inflated object).
FLOWER_COPIES = 5


def plan_event(
    strategy: ManyTaskStrategy, settings: Settings, run_id: int, groups: Mapping[str, str], backbone: Backbone
) -> PlanEvent:
    """Build the plan event of the history; `groups` gives a task's related group where it is known."""
    names = list(strategy.classes)
    return {
        "event": "plan",
        "time": now(),
        "run_id": str(run_id),
        "strategy": settings.strategy,
        "preset": settings.matu.preset,
        "suite": settings.suite,
        "rounds": strategy.num_rounds,
        "seed": settings.seed,
        "settings": settings.model_dump(mode="json", by_alias=True),
        "changed": settings.changed(),
        "backbone": {
            "name": backbone.name,
            "weights": settings.backbone.weights,
            "trainable": trainable(settings.backbone),
            "d": backbone.d,
            "total": backbone.total,
            "tensors": len(backbone.layout.shapes),
            "parts": backbone.parts(),
            "fingerprint": backbone.fingerprint,
            "image_size": backbone.image_size,
            "heads": settings.train.heads,
        },
        "tasks": [
            {
                "name": task,
                "group": groups.get(task, ""),
                "classes": len(strategy.classes[task]),
                "train": sum(client.tasks[task].train for client in strategy.holders(task)),
                "test": sum(client.tasks[task].test for client in strategy.holders(task)),
                "holders": [client.name for client in strategy.holders(task)],
            }
            for task in names
        ],
        "clients": [
            {
                "client": client.name,
                "partition": client.partition,
                "tasks": {task: info.train for task, info in sorted(client.tasks.items())},
            }
            for client in strategy.clients
        ],
        "predicted": predictions(strategy, settings, backbone.total - backbone.d),
        "notes": notes(strategy, settings),
        "versions": {
            "matu_flwr": __version__,
            **versions("flwr", "ray", "torch", "timm"),
            "python": platform.python_version(),
        },
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of those packages that are installed: without simulations there is no Ray."""
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def trainable(chosen: BackboneSettings) -> str:
    """What the task vector covers, in words."""
    words = {
        "full": "all parameters",
        "lora": f"LoRA adapters of rank {chosen.lora_rank} on {chosen.lora_targets}",
        "blocks": f"the last {chosen.last_blocks} blocks and what follows them",
    }
    return words[chosen.trainable] + (", linearised at θ_p" if chosen.linearised else "")


def predictions(strategy: ManyTaskStrategy, settings: Settings, frozen: int = 0) -> Predicted:
    """Bytes per client and round, and peak memory of server and client, from sizes, tasks and clients alone."""
    d, dtype, rule = strategy.d, settings.wire.vector_dtype, strategy.rule
    kind = rule.payload(settings, settings.rounds)  # one-shot methods send in the last round
    plain = rule.one_vector or not settings.matu.modulators

    def heads(client: Client) -> int:
        if not rule.shares_heads(settings, settings.rounds):
            return 0
        return sum(4 * len(info.classes) * (strategy.model.num_features + 1) for info in client.tasks.values())

    def bytes_by_client(dtype: VectorDtype) -> dict[str, int]:
        return {
            c.name: heads(c) + wire.predict_bytes(d, 1 if plain else len(c.tasks), dtype, kind)
            for c in strategy.clients
        }

    payload = bytes_by_client(dtype)
    vector = 4 * strategy.model.d
    most_tasks = max(len(client.tasks) for client in strategy.clients)
    in_flight = min(settings.window, len(strategy.clients)) * FLOWER_COPIES * max(payload.values())
    replies = sum(bytes_by_client(held_as(dtype)).values()) * settings.fraction_train
    state = 0 if kind == "nothing" else 2 * len(strategy.classes) * vector  # τ^t, and the merge's result
    return {
        "bytes_up_per_client": payload,
        "bytes_down_per_client": payload,
        "server_memory_bytes": int(resident_bytes() + in_flight + replies + state),
        # weights, gradient and two moments of AdamW; received and new unified vector; a vector and a start per task
        "client_memory_bytes": int(4 * frozen + vector * (4 + 2 + 2 * most_tasks)),
    }


def notes(strategy: ManyTaskStrategy, settings: Settings) -> list[str]:
    """Decisions that a reader of the settings would not expect."""
    found = []
    most = max(len(client.tasks) for client in strategy.clients)
    if most > settings.partition.max_tasks:
        found.append(
            f"{len(strategy.clients)} clients hold up to {most} tasks, more than partition.max-tasks = "
            f"{settings.partition.max_tasks}, so that every task has a holder"
        )
    return found


def now() -> str:
    """UTC time, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def resident_bytes() -> int:
    """Peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
