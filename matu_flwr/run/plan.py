"""The plan of a run, made before the first round: who holds what, and the bytes and the memory to expect."""

from __future__ import annotations

import contextlib
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
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

# Copies of one payload that Flower holds while a message is in flight: the array, its .npy bytes, the chunks, and the
# object put together from them.
FLOWER_COPIES = 5


def plan_event(
    strategy: ManyTaskStrategy,
    settings: Settings,
    run_id: int,
    groups: Mapping[str, str],
    backbone: Backbone,
    remarks: Sequence[str] = (),
) -> PlanEvent:
    """Build the plan event of the history.

    `groups` names a task's group of related tasks, if known. `remarks` says what is odd about the tasks' files.
    """
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
        "notes": [*notes(strategy, settings), *remarks],
        "versions": {
            "matu_flwr": __version__,
            **versions("flwr", "ray", "torch", "timm"),
            "python": platform.python_version(),
        },
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of the named packages. Packages that are not installed are left out: Ray is only needed to simulate."""
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def trainable(chosen: BackboneSettings) -> str:
    """Say in words which parameters are trained."""
    words = {
        "full": "all parameters",
        "lora": f"LoRA adapters of rank {chosen.lora_rank} on {chosen.lora_targets}",
    }
    return words[chosen.trainable] + (", linearised at θ_p" if chosen.linearised else "")


def predictions(strategy: ManyTaskStrategy, settings: Settings, frozen: int = 0) -> Predicted:
    """Predict bytes per client and round, and the peak memory of server and client, in bytes.

    Everything follows from the number of parameters, the clients and their tasks. `frozen` is the number of the
    backbone's parameters that are not trained.
    """
    d, dtype, rule = strategy.d, settings.wire.vector_dtype, strategy.rule
    # Asked for the last round, because one-shot methods send nothing before.
    kind = rule.payload(settings, settings.rounds)
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
    # Twice, because the old task vectors τ^t are still needed while the merge builds the new ones.
    state = 0 if kind == "nothing" else 2 * len(strategy.classes) * vector
    return {
        "bytes_up_per_client": payload,
        "bytes_down_per_client": payload,
        "server_memory_bytes": int(resident_bytes() + in_flight + replies + state),
        # 4 = weights, gradient and the two moments of AdamW. 2 = received and new unified vector. 2 per task = the
        # task vector and the point where its training starts. Frozen weights have no gradient: 4 bytes each.
        "client_memory_bytes": int(4 * frozen + vector * (4 + 2 + 2 * most_tasks)),
    }


def notes(strategy: ManyTaskStrategy, settings: Settings) -> list[str]:
    """List decisions that the settings alone would not make you expect."""
    found = []
    most = max(len(client.tasks) for client in strategy.clients)
    if most > settings.partition.max_tasks:
        found.append(
            f"{len(strategy.clients)} clients hold up to {most} tasks, more than partition.max-tasks = "
            f"{settings.partition.max_tasks}, so that every task has a holder"
        )
    return found


def now() -> str:
    """Return the time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def resident_bytes() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    # macOS reports bytes, Linux reports KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
