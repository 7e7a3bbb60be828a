"""Compare the compiled kernels with the same formulas in plain torch, both block by block, on this machine's CPU.

Measured are `unify` of T task vectors, the merge of N replies (8 tasks, 2 of them at a client, task graph and
cross-task step), and coding and reading vectors in 8 and 4 bits. Data are random. Both programs and a plain copy run in
turn, so that a busy machine slows all of them. "times faster" compares the time on the clock. "on cores" compares the
time that all cores spent, which other programs disturb less.

    python benchmarks/merging_kernels.py --json merging_kernels.json
    python benchmarks/merging_kernels.py --sizes 900000 --tasks 2 8 --clients 10 --threads 1

Needs torch, numpy, rich and numba; neither Flower nor Ray.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import measuring
import torch
from merging_client import vectors
from merging_server import replies

from matu_flwr.merging import aggregate
from matu_flwr.merging.aggregate import room_for
from matu_flwr.merging.codes import LEVELS
from matu_flwr.merging.quantise import dequantise, quantise

SIZES = [900_000, 5_500_000, 87_800_000]
TASKS, HELD = 8, 2  # of a merge


def compare(copy: measuring.Copy, repeats: int, row: dict[str, Any], work: Callable[[], Any]) -> dict[str, Any]:
    """The same call with kernels and without."""
    spent = measuring.in_turn(copy, {"kernels": work, "plain": lambda: measuring.in_plain_torch(work)}, repeats)
    return row | {
        "seconds": measuring.summary(spent["kernels"]),
        "plain_seconds": measuring.summary(spent["plain"]),
        "times_faster": measuring.times_faster(spent, "kernels", "plain"),
        "times_faster_on_cores": measuring.times_faster(spent, "kernels on cores", "plain on cores"),
    }


def unify_row(copy: measuring.Copy, repeats: int, d: int, tasks: int, switches: measuring.Operator) -> dict[str, Any]:
    row: dict[str, Any] = {"what": "unify", "d": d, "of": f"{tasks} tasks"}
    if 4 * d * (tasks + 2) + d * tasks // 4 > measuring.room("cpu"):
        return row | {"skipped": f"{4 * d * tasks / 2**30:.1f} GiB of task vectors do not fit the memory"}
    taus = vectors(d, tasks)
    return compare(copy, repeats, row, lambda: switches.unify(taus))


def merge_row(copy: measuring.Copy, repeats: int, d: int, clients: int, switches: measuring.Operator) -> dict[str, Any]:
    row: dict[str, Any] = {"what": "merge", "d": d, "of": f"{clients} replies"}
    needed = clients * (4 * d + HELD * d // 8) + 4 * d * TASKS
    if needed > measuring.room("cpu"):
        return row | {"skipped": f"{needed / 2**30:.1f} GiB of replies and results do not fit the memory"}
    updates = replies(d, clients, TASKS, HELD, "cpu", switches.reconstruction)
    options = replace(switches.options, epsilon=0.0, epsilon_unit="similarity")  # everybody may be related
    room = room_for(len({task for update in updates for task in update.num_examples}), d)
    return compare(copy, repeats, row, lambda: aggregate(updates, options, out=room))


def code_rows(copy: measuring.Copy, repeats: int, d: int) -> list[dict[str, Any]]:
    vector, rows = measuring.random_vector(d, 0), []
    for dtype in LEVELS:
        coded = quantise(vector, dtype)
        row = {"d": d, "of": dtype}
        rows.append(compare(copy, repeats, row | {"what": "quantise"}, partial(quantise, vector, dtype)))
        rows.append(compare(copy, repeats, row | {"what": "dequantise"}, partial(dequantise, coded, d, dtype)))
    return rows


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of parameters")
    parser.add_argument("--tasks", type=int, nargs="*", default=[2, 8, 30], help="of `unify`")
    parser.add_argument("--clients", type=int, nargs="*", default=[10, 30], help="of the merge")
    parser.add_argument("--threads", type=int, default=0, help="of both programs; 0 = as many as PyTorch takes")
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        parser.error(
            "--device cuda: this compares the kernels of a CPU; merging_client and merging_server measure a GPU"
        )
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    switches, copy, rows = measuring.OPERATORS[arguments.operator], measuring.Copy("cpu"), []
    for d in arguments.sizes:
        for tasks in arguments.tasks:
            rows.append(unify_row(copy, arguments.repeats, d, tasks, switches))
            gc.collect()
        for clients in arguments.clients:
            rows.append(merge_row(copy, arguments.repeats, d, clients, switches))
            gc.collect()
        rows += code_rows(copy, arguments.repeats, d)
    columns = {
        "what": "what", "d": "d", "of": "of", "seconds": "kernels s", "plain_seconds": "plain torch s",
        "times_faster": "times faster", "times_faster_on_cores": "on cores", "skipped": "skipped",
    }  # fmt: skip
    measuring.table("kernels against plain torch, block by block: median (lowest to highest)", columns, rows)
    measuring.write(arguments.json, {"machine": measuring.machine("cpu"), "measurements": rows})


if __name__ == "__main__":
    main()
