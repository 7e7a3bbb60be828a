"""Compare the server's merge and downlink with the copy bandwidth of this machine, and with a plain program in torch.

There are N clients with k of T tasks each. Every task may learn from others, so the merge has its second pass to do.
The plain program stacks all holders of a task in one tensor.

Bytes counted are those of the packed replies, N · (4 d + k · d / 8), once for every pass that reads them. With
agreement "none" (the default), the second pass does not read them: it only reads and writes the T results of 4 d bytes
each. Results are counted in "all bytes" only. They are written over those of the measurement before, as a strategy does
from round to round. "into new memory" is a merge that has to make room for its results.

    python benchmarks/merging_server.py --json merging_server.json
    python benchmarks/merging_server.py --sizes vit-b-32 --clients 10 --tasks 8 --operator paper
    python benchmarks/merging_server.py --agreement threshold-or-soft
    python benchmarks/merging_server.py --device cuda

Needs torch, numpy, rich and, on a CPU, numba; neither Flower nor Ray.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
import torch
from torch import Tensor

from matu_flwr.merging import (
    ClientUpdate,
    MergeOptions,
    MergeResult,
    PackedMasks,
    UnifiedTaskVector,
    aggregate,
    packed_length,
)
from matu_flwr.merging.aggregate import room_for
from matu_flwr.merging.task_graph import relation_weights


def replies(
    d: int, clients: int, tasks: int, held: int, device: str = "cpu", reconstruction: str = "complete"
) -> list[ClientUpdate]:
    """Client n holds tasks n, n + 1, ... of the ring; vectors and masks are random."""
    updates = []
    for n in range(clients):
        generator = torch.Generator(device).manual_seed(1000 + n)
        names = [f"task{(n + k) % tasks:03}" for k in range(held)]
        bits = {}
        for task in names:
            bits[task] = torch.randint(
                0, 256, (packed_length(d),), dtype=torch.uint8, device=device, generator=generator
            )
            if d % 8:
                bits[task][-1] &= 2 ** (d % 8) - 1
        unified = UnifiedTaskVector(
            measuring.random_vector(d, n, device),
            PackedMasks(bits, d),
            {task: 0.8 + k / 10 for k, task in enumerate(names)},
            {task: 0.4 + k / 10 for k, task in enumerate(names)} if reconstruction == "complete" else {},
        )
        updates.append(ClientUpdate(unified, dict.fromkeys(names, 100 + n), f"client{n:04}"))
    return updates


def stacked(updates: list[ClientUpdate], options: MergeOptions) -> dict[str, Tensor]:
    """What one writes with torch from the definition of the method: all holders of a task in one tensor."""
    tasks = sorted({task for update in updates for task in update.num_examples})
    tau, agreed, signs = {}, {}, []
    for task in tasks:
        holders = [update for update in updates if task in update.num_examples]
        masks = torch.stack([update.vectors.masks[task] for update in holders])  # (n, d)
        vectors = torch.stack([update.vectors.vector for update in holders])
        scales, opposites = (
            torch.tensor([found.get(task, 0.0) for found in by_holder], device=vectors.device)[:, None]
            for by_holder in zip(*((u.vectors.rescalers, u.vectors.opposites) for u in holders), strict=True)
        )
        examples = torch.tensor([float(update.num_examples[task]) for update in holders], device=vectors.device)
        gammas = (examples / examples.sum()).double()
        sign = vectors.sign() * masks if options.signs == "masked" else vectors.sign() * (2.0 * masks - 1)
        alpha = sign.sum(dim=0).abs().double() / len(holders)
        none = options.agreement == "none"
        agreed[task] = torch.ones_like(alpha) if none else torch.where(alpha >= options.rho, 1.0, alpha)
        mean = (gammas[:, None] * (vectors * torch.where(masks, scales, -opposites)).double()).sum(dim=0)
        tau[task] = agreed[task] * mean
        direction = tau[task] if options.signs == "masked" else (examples.double()[:, None] * sign).sum(dim=0)
        signs.append(direction.sign().float())
    plane = torch.stack(signs)  # (T, d)
    dot = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    for part in plane.split(1 << 22, dim=1):  # beyond 2^24 float32 does not count exactly
        dot += (part @ part.T).cpu()
    similarity = 0.5 * (1 + dot / plane.shape[1])
    result = {}
    for row, task in enumerate(tasks):
        order = sorted((-float(similarity[row, other]), name) for other, name in enumerate(tasks) if name != task)
        related = [(name, -score) for score, name in order[: options.kappa] if -score >= options.epsilon]
        if options.relation_weight == "excess":
            related = [(name, max(0.0, 2 * score - 1)) for name, score in related]
        total = sum(
            (weight * tau[name].float().double() for name, weight in related), start=torch.zeros_like(tau[task])
        )
        own = tau[task].float().double()
        result[task] = ((own + agreed[task] * total) / (1 + sum(weight for _, weight in related))).float()
    return result


def stacked_needs(d: int, clients: int, tasks: int, held: int) -> int:
    """Bytes at the worst moment beyond the replies: τ̂ and m̂ in float64 and signs, and the stacks of one task."""
    return d * (tasks * (8 + 8 + 4 + 4) + -(-clients * held // tasks) * (1 + 4 + 4 + 4 + 4 + 8))


def same(found: MergeResult, expected: dict[str, Tensor]) -> bool:
    """Equal to a millionth of the largest number."""
    return all(
        bool((found.task_vectors[task] - tau).abs().max() <= 1e-6 * tau.abs().max()) for task, tau in expected.items()
    )


def downlink(result: MergeResult, updates: list[ClientUpdate], switches: measuring.Operator) -> None:
    """Every client's own unified vector and modulators, one after the other as the server makes them."""
    for update in updates:
        switches.unify({task: result.task_vectors[task] for task in update.num_examples})


def measure(
    copy: measuring.Copy, name: str, d: int, clients: int, arguments: argparse.Namespace, switches: measuring.Operator
) -> dict[str, Any]:
    options = switches.options
    tasks, held = arguments.tasks, min(arguments.held, arguments.tasks)
    packed = clients * (4 * d + held * packed_length(d))
    row: dict[str, Any] = {"size": name, "d": d, "clients": clients, "tasks": tasks, "held": held}
    if packed + 4 * d * (2 * tasks + 1) > measuring.room(copy.device):
        return row | {"skipped": f"{packed / 2**30:.1f} GiB of replies do not fit the memory"}
    updates = replies(d, clients, tasks, held, copy.device, switches.reconstruction)
    room = room_for(tasks, d, updates[0].vectors.vector.device)
    result = aggregate(updates, options, out=room)
    learning = any(sum(weights.values()) > 0 for weights in relation_weights(result.graph, options).values())
    passes = 2 if learning and options.agreement != "none" else 1
    everything = passes * packed + 4 * d * tasks * (3 if learning else 1)
    work: dict[str, Any] = {
        "merge": lambda: aggregate(updates, options, out=room),
        "merge into new memory": lambda: aggregate(updates, options),
        "downlink": lambda: downlink(result, updates, switches),
    }
    if stacked_needs(d, clients, tasks, held) < measuring.room(copy.device):
        row["same"] = same(result, stacked(updates, options))
        work["stacked"] = lambda: stacked(updates, options)
    spent = measuring.in_turn(copy, work, arguments.repeats)
    row |= {
        "learning": learning,
        "passes": passes,
        "seconds": measuring.summary(spent["merge"]),
        "copy_gb_per_second": measuring.summary([copy.bytes / value / 1e9 for value in spent["copy"]]),
        "share_of_copy": measuring.share_of_copy(spent, "merge", passes * packed, copy),
        "share_on_cores": measuring.share_of_copy(spent, "merge", passes * packed, copy, " on cores"),
        "all_share_of_copy": measuring.share_of_copy(spent, "merge", everything, copy),
        "all_share_on_cores": measuring.share_of_copy(spent, "merge", everything, copy, " on cores"),
        "new_memory_seconds": measuring.summary(spent["merge into new memory"]),
        "downlink_seconds": measuring.summary(spent["downlink"]),
        "downlink_share_of_copy": measuring.share_of_copy(
            spent, "downlink", clients * (4 * held * d + 4 * d + held * packed_length(d)), copy
        ),
    }
    if "stacked" in work:
        row["stacked_seconds"] = measuring.summary(spent["stacked"])
        row["times_faster"] = measuring.times_faster(spent, "merge", "stacked")
    else:
        row["stacked_skipped"] = "does not fit the memory"
    return row


def peak(d: int, clients: int, tasks: int, held: int, switches: measuring.Operator) -> dict[str, int]:
    """In this process: bytes beyond the packed replies, the results included and working memory alone."""
    options = switches.options
    aggregate(replies(1000, 2, tasks, held), options)  # loads the kernels
    updates = replies(d, clients, tasks, held, reconstruction=switches.reconstruction)
    found, result = measuring.peak_above_now(lambda: aggregate(updates, options))
    return {"peak": found, "working": found - 4 * d * len(result.tasks)}


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(measuring.SIZES), help="names, or numbers of parameters")
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--held", type=int, default=2, help="tasks of a client")
    parser.add_argument("--signs", choices=["masked", "complete"], help="in the place of the operator's")
    parser.add_argument("--agreement", choices=["none", "threshold-or-soft"], help="in the place of the operator's")
    parser.add_argument("--peak", nargs=2, metavar=("D", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    given = {key: getattr(arguments, key) for key in ("signs", "agreement") if getattr(arguments, key)}
    everybody = {"epsilon": 0.0, "epsilon_unit": "similarity"}  # may be related: the second pass has work
    switches = measuring.OPERATORS[arguments.operator]
    switches = replace(switches, options=replace(switches.options, **everybody, **given))
    if arguments.peak:
        d, clients = map(int, arguments.peak)
        print(json.dumps(peak(d, clients, arguments.tasks, min(arguments.held, arguments.tasks), switches)))
        return
    copy, options = measuring.Copy(arguments.device), switches.options
    rows = []
    for name in arguments.sizes:
        d = measuring.SIZES.get(name) or int(name)
        for clients in arguments.clients:
            row = measure(copy, name, d, clients, arguments, switches)
            rows.append(row)
            if arguments.device == "cpu" and "skipped" not in row and Path("/proc/self/clear_refs").exists():
                shape = ("--tasks", str(arguments.tasks), "--held", str(arguments.held))
                which = ("--operator", arguments.operator, "--signs", options.signs, "--agreement", options.agreement)
                found = measuring.fresh_process(__file__, "--peak", str(d), str(clients), *shape, *which)
                row["working_mib"] = round(found["working"] / measuring.MIB, 1)
    columns = {
        "size": "size", "clients": "N", "tasks": "T", "passes": "passes", "seconds": "merge s",
        "share_of_copy": "share of copy", "share_on_cores": "on cores",
        "all_share_of_copy": "all bytes", "all_share_on_cores": "on cores", "times_faster": "× stacked",
        "new_memory_seconds": "into new memory s", "working_mib": "working MiB",
        "downlink_seconds": "downlink s", "downlink_share_of_copy": "share of copy", "same": "same",
        "skipped": "skipped",
    }  # fmt: skip
    title = f"merge and downlink, {options.signs} signs, agreement {options.agreement}: median (lowest to highest)"
    measuring.table(title, columns, rows)
    found = {"machine": measuring.machine(arguments.device), "switches": switches.shown(), "measurements": rows}
    measuring.write(arguments.json, found)


if __name__ == "__main__":
    main()
