"""A made-up run: twelve tasks in six pairs, ten clients, every kind of event."""

from __future__ import annotations

import math
import random
from typing import Any

Event = dict[str, Any]

GROUPS = {
    "digits-hand": "digits",
    "digits-printed": "digits",
    "letters-serif": "letters",
    "letters-sans": "letters",
    "shapes-filled": "shapes",
    "shapes-outline": "shapes",
    "orientation-gratings": "orientations",
    "orientation-stripes": "orientations",
    "colour-patches": "colours",
    "colour-objects": "colours",
    "count-dots": "counts",
    "count-squares": "counts",
}
CLIENTS = [f"client-{i:03}" for i in range(10)]
BYTES = {"vector": 3_276_800, "masks": 204_800, "heads": 15_440, "scalars": 96, "total": 3_497_136}


def holders(task: str) -> list[str]:
    at = list(GROUPS).index(task)
    return sorted({CLIENTS[at % 10], CLIENTS[(3 * at + 1) % 10]})


def held(client: str) -> list[str]:
    return sorted(task for task in GROUPS if client in holders(task))


def plan(rounds: int = 30, out_dir: str = "/runs/a", **changes: Any) -> Event:
    return {
        "event": "plan",
        "time": "2026-01-02T03:04:05+00:00",
        "run_id": "123456789",
        "strategy": "matu",
        "preset": "",
        "suite": "offline",
        "rounds": rounds,
        "seed": 0,
        "settings": {"suite": "offline", "rounds": rounds, "out-dir": out_dir, "train": {"steps": 10}},
        "backbone": {
            "name": "vit_mini_patch8_32",
            "weights": "pretrained",
            "trainable": "all parameters",
            "d": 819_200,
            "total": 819_200,
            "tensors": 40,
            "parts": {"patch_embed": 19_200, "blocks.0": 200_000, "blocks.1": 200_000, "blocks.2": 400_000},
            "fingerprint": "9f" * 32,
            "image_size": 32,
            "heads": "average",
        },
        "tasks": [
            {"name": task, "group": group, "classes": 10, "train": 450, "test": 200, "holders": holders(task)}
            for task, group in GROUPS.items()
        ],
        "clients": [
            {"client": name, "partition": i, "tasks": dict.fromkeys(held(name), 225)} for i, name in enumerate(CLIENTS)
        ],
        "predicted": {
            "bytes_up_per_client": dict.fromkeys(CLIENTS, BYTES["total"]),
            "bytes_down_per_client": dict.fromkeys(CLIENTS, BYTES["total"]),
            "server_memory_bytes": 900_000_000,
            "client_memory_bytes": 40_000_000,
        },
        "notes": [],
        "versions": {"matu_flwr": "0.1.0", "flwr": "1.41.0"},
    } | changes


def client(round_: int, name: str, error: str | None = None, status: str = "ok", phase: str = "train") -> Event:
    return {
        "event": "client",
        "round": round_,
        "client": name,
        "partition": CLIENTS.index(name),
        "phase": phase,
        "status": status,
        "error": error,
        "bytes_down": BYTES,
        "bytes_up": BYTES if status == "ok" else None,
        "seconds": {"train": 1.8} if status == "ok" else {},
        "tasks": {task: {"examples": 225, "train_loss": 0.6} for task in held(name)} if status == "ok" else {},
    }


def accuracy(round_: int, values: dict[str, float], source: str = "clients") -> Event:
    worst = min(values, key=lambda task: (values[task], task))
    return {
        "event": "accuracy",
        "round": round_,
        "accuracy": values,
        "loss": {task: 1 - value for task, value in values.items()},
        "mean_accuracy": math.fsum(values.values()) / len(values),
        "worst_task": worst,
        "worst_accuracy": values[worst],
        "source": source,
    }


def graph(reach: float, seed: int = 0) -> tuple[list[str], list[list[float]], list[list[float]]]:
    """Order, S and z: pairs of a group lie `reach` above ½, the rest is noise of a tenth of it."""
    chance, order = random.Random(seed), sorted(GROUPS)
    s = [[1.0] * len(order) for _ in order]
    for i, a in enumerate(order):
        for j, b in enumerate(order[:i]):
            s[i][j] = s[j][i] = 0.5 + chance.gauss(0, reach / 10) + (reach if GROUPS[a] == GROUPS[b] else 0)
    return order, s, [[(value - 0.5) * 2 * math.sqrt(819_200) for value in row] for row in s]


def round_(number: int, seconds: float = 4.1, failed: int = 0, **changes: Any) -> Event:
    order, similarity, z = graph(0.02, number)
    return {
        "event": "round",
        "round": number,
        "clients": len(CLIENTS),
        "failed": failed,
        "bytes_up": (len(CLIENTS) - failed) * BYTES["total"],
        "bytes_down": len(CLIENTS) * BYTES["total"],
        "seconds": {"total": seconds, "server": 0.4},
        "tasks_without_holder": [],
        "order": order,
        "similarity": similarity,
        "z": z,
        "related": related(),
    } | changes


def related() -> dict[str, list[str]]:
    return {task: [other for other in GROUPS if other != task and GROUPS[other] == GROUPS[task]] for task in GROUPS}


def end(out_dir: str = "/runs/a", reach: float = 0.02, **changes: Any) -> Event:
    order, similarity, z = graph(reach)
    return {
        "event": "end",
        "time": "2026-01-02T03:10:05+00:00",
        "status": "completed",
        "error": None,
        "seconds": 360.4,
        "artefacts": {"summary": f"{out_dir}/summary.json", "task vectors": f"{out_dir}/task_vectors.safetensors"},
        "similarity": {"order": order, "values": similarity, "z": z},
        "related": related(),
        "peak_memory_bytes": 1_100_000_000,
    } | changes


def history(rounds: int = 30, out_dir: str = "/runs/a", seconds: float = 4.1, reach: float = 0.02) -> list[Event]:
    """A completed run; accuracy of round r arrives during round r + 1, that of the last in the closing test."""
    chance = random.Random(1)
    top = {task: 0.55 + 0.42 * chance.random() for task in GROUPS}

    def tested(number: int) -> Event:
        risen = 1 - math.exp(-number / 7)
        values = {t: 0.1 + (top[t] - 0.1) * risen + (chance.gauss(0, 0.015) if number else 0) for t in sorted(GROUPS)}
        return accuracy(number, {task: min(round(value, 3), 1.0) for task, value in values.items()})

    events = [plan(rounds, out_dir)]
    for number in range(1, rounds + 1):
        events += [client(number, name) for name in CLIENTS]
        events += [tested(number - 1), round_(number, seconds)]
    events += [client(rounds, name, phase="evaluate") for name in CLIENTS]
    return [*events, tested(rounds), end(out_dir, reach)]
