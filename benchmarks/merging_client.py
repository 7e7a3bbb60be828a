"""Compare the client's `unify` with the copy bandwidth of this machine, and with a plain program in torch.

The plain program stacks all tasks in one tensor. `unify` has to move T · d · 4 bytes read, d · 4 written, and T · d / 8
of masks written. Data are random. Times are taken in turn, and memory in a new process for each figure.

    python benchmarks/merging_client.py --json merging_client.json
    python benchmarks/merging_client.py --sizes vit-b-32 --tasks 8 --operator paper
    python benchmarks/merging_client.py --device cuda

Needs torch, numpy, rich and, on a CPU, numba; neither Flower nor Ray.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import measuring
import torch
from torch import Tensor

from matu_flwr.merging import PackedMasks, UnifiedTaskVector, pack, unify


def stacked(task_vectors: dict[str, Tensor], switches: measuring.Operator) -> UnifiedTaskVector:
    """What one writes with torch from the definition of the method: all tasks in one tensor."""
    tasks = sorted(task_vectors)
    taus = torch.stack([task_vectors[task] for task in tasks])  # (T, d)
    sigma = taus.sum(dim=0, dtype=torch.float64).sign().float()
    agree = (taus.sign() == sigma) & (sigma != 0)  # (T, d) bool
    size = taus.abs()
    if switches.magnitude == "max":
        mu = (size * agree).amax(dim=0)
    else:
        mu = (size.mean(dim=0, dtype=torch.float64) * sigma.abs()).float()
    masks = PackedMasks({task: pack(agree[row]) for row, task in enumerate(tasks)}, taus.shape[1])

    def ratios(own: Tensor, where: Tensor) -> dict[str, float]:
        above, below = (torch.sum(sizes, dim=1, dtype=torch.float64) for sizes in (size * own, mu * where))
        return dict(zip(tasks, torch.where(below > 0, above / below, torch.zeros_like(below)).tolist(), strict=True))

    if switches.reconstruction == "masked":
        return UnifiedTaskVector(sigma * mu, masks, ratios(torch.ones_like(agree), agree))
    differ = ~agree & (sigma != 0)
    return UnifiedTaskVector(sigma * mu, masks, ratios(agree, agree), ratios(differ, differ))


def stacked_needs(d: int, tasks: int) -> int:
    """Bytes at the worst moment: tasks, their stack, magnitudes, two sets of bits, two products, one in float64."""
    return d * tasks * (4 + 4 + 4 + 1 + 1 + 4 + 4 + 8)


def vectors(d: int, tasks: int, device: str = "cpu") -> dict[str, Tensor]:
    return {f"task{t:03}": measuring.random_vector(d, t, device) for t in range(tasks)}


def must_move(d: int, tasks: int) -> int:
    return 4 * tasks * d + 4 * d + tasks * d // 8


def check(found: UnifiedTaskVector, expected: UnifiedTaskVector) -> bool:
    """Are both the same masks, and the same vector and rescalers to rounding?"""
    assert isinstance(found.masks, PackedMasks)
    assert isinstance(expected.masks, PackedMasks)
    bits = all(torch.equal(found.masks.bits[task], expected.masks.bits[task]) for task in found.tasks)
    scales = all(
        mine.keys() == theirs.keys() and all(abs(mine[task] - theirs[task]) <= 1e-9 * theirs[task] for task in mine)
        for mine, theirs in ((found.rescalers, expected.rescalers), (found.opposites, expected.opposites))
    )
    return torch.allclose(found.vector, expected.vector, rtol=1e-6, atol=0) and bits and scales


def measure(
    copy: measuring.Copy, name: str, d: int, tasks: int, repeats: int, switches: measuring.Operator
) -> dict[str, Any]:
    row: dict[str, Any] = {"size": name, "d": d, "tasks": tasks}
    inputs = 4 * d * tasks
    if inputs + 4 * d + tasks * d // 8 > measuring.room(copy.device):
        return row | {"skipped": f"{inputs / 2**30:.1f} GiB of task vectors do not fit the memory"}
    task_vectors = vectors(d, tasks, copy.device)
    work: dict[str, Any] = {"unify": lambda: switches.unify(task_vectors)}
    if stacked_needs(d, tasks) - inputs < measuring.room(copy.device):
        row["same"] = check(switches.unify(task_vectors), stacked(task_vectors, switches))
        work["stacked"] = lambda: stacked(task_vectors, switches)
    spent = measuring.in_turn(copy, work, repeats)
    row |= {
        "seconds": measuring.summary(spent["unify"]),
        "copy_gb_per_second": measuring.summary([copy.bytes / value / 1e9 for value in spent["copy"]]),
        "share_of_copy": measuring.share_of_copy(spent, "unify", must_move(d, tasks), copy),
        "share_on_cores": measuring.share_of_copy(spent, "unify", must_move(d, tasks), copy, " on cores"),
    }
    if "stacked" in work:
        row["stacked_seconds"] = measuring.summary(spent["stacked"])
        row["times_faster"] = measuring.times_faster(spent, "unify", "stacked")
    else:
        row["stacked_skipped"] = f"{stacked_needs(d, tasks) / 2**30:.1f} GiB do not fit the memory"
    return row


def peak(d: int, tasks: int, kind: str, switches: measuring.Operator) -> dict[str, int]:
    """In this process: bytes beyond the task vectors, results included and working memory alone."""
    unify(vectors(1000, 2))  # loads the kernels
    task_vectors = vectors(d, tasks)
    found, result = measuring.peak_above_now(
        lambda: switches.unify(task_vectors) if kind == "unify" else stacked(task_vectors, switches)
    )
    outputs = 4 * d + sum(bits.numel() for bits in result.masks.bits.values())
    return {"peak": found, "working": found - outputs}


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(measuring.SIZES), help="names, or numbers of parameters")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 8, 30])
    parser.add_argument("--peak", nargs=3, metavar=("D", "T", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    switches = measuring.OPERATORS[arguments.operator]
    if arguments.peak:
        print(json.dumps(peak(int(arguments.peak[0]), int(arguments.peak[1]), arguments.peak[2], switches)))
        return
    copy = measuring.Copy(arguments.device)
    rows = []
    for name in arguments.sizes:
        d = measuring.SIZES.get(name) or int(name)
        for tasks in arguments.tasks:
            row = measure(copy, name, d, tasks, arguments.repeats, switches)
            rows.append(row)
            if arguments.device == "cpu" and "skipped" not in row and Path("/proc/self/clear_refs").exists():
                for kind in ("unify", "stacked") if "times_faster" in row else ("unify",):
                    which = ("--peak", str(d), str(tasks), kind, "--operator", arguments.operator)
                    found = measuring.fresh_process(__file__, *which)
                    row[f"{kind}_working_mib"] = round(found["working"] / measuring.MIB, 1)
    columns = {
        "size": "size", "tasks": "T", "seconds": "unify s", "copy_gb_per_second": "copy GB/s",
        "share_of_copy": "share of copy", "share_on_cores": "on cores",
        "times_faster": "× stacked", "unify_working_mib": "working MiB",
        "stacked_working_mib": "stacked MiB", "same": "same", "skipped": "skipped",
    }  # fmt: skip
    title = f"elect, mask, rescale, pack, operator {arguments.operator}: median (lowest to highest)"
    measuring.table(title, columns, rows)
    found = {"machine": measuring.machine(arguments.device), "operator": arguments.operator, "measurements": rows}
    measuring.write(arguments.json, found)


if __name__ == "__main__":
    main()
