"""Unify and merge task vectors that are larger than memory, from memory-mapped safetensors, in a new process.

T files of d parameters are written into a temporary folder (`--folder`) and removed afterwards. `unify` reads them, and
`aggregate` reads them as the unified vectors of T clients with 3 tasks each. Its results go into a file as well.

Reported are seconds, and the largest amount of anonymous memory, which is memory that the system cannot take back.
Pages of files it can, so a machine, container or cgroup with that much memory is enough.

    python benchmarks/merging_files.py --json merging_files.json
    python benchmarks/merging_files.py --size 86000000 --tasks 30 --folder /var/tmp

Needs torch, numpy, safetensors, rich and numba; neither Flower nor Ray.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from matu_flwr.merging import (
    ClientUpdate,
    PackedMasks,
    UnifiedTaskVector,
    aggregate,
    packed_length,
    unify,
)

FIRST = 1 << 20  # parameters that are merged again in memory, to compare
HELD = 3


def write_files(folder: Path, d: int, tasks: int) -> None:
    for t in range(tasks):
        save_file({"tau": measuring.random_vector(d, t)}, folder / f"task{t:03}.safetensors")


def mapped(folder: Path, files: ExitStack) -> dict[str, Tensor]:
    """The task vectors where they are: pages are read when they are looked at."""
    return {
        path.stem: files.enter_context(safe_open(path, "pt")).get_tensor("tau")
        for path in sorted(folder.glob("task*.safetensors"))
    }


def watched(work: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """Seconds, and the most anonymous memory, looked at every hundredth of a second."""
    most, done = [measuring.status("RssAnon")], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most.append(measuring.status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        result = work()
    finally:
        done.set()
        watcher.join()
    return {
        "seconds": round(time.perf_counter() - start, 3),
        "anonymous_mib": round(max(most) / measuring.MIB, 1),
    }, result


def client_side(folder: Path, switches: measuring.Operator) -> dict[str, Any]:
    unify({"a": torch.ones(8)})  # loads the kernels
    with ExitStack() as files:
        taus = mapped(folder, files)
        found, unified = watched(lambda: switches.unify(taus))
        first = switches.unify({task: tau[:FIRST].clone() for task, tau in taus.items()})
        same = torch.equal(first.vector, unified.vector[:FIRST])
        for task in taus:
            part = unified.masks.block(task, 0, first.d)
            same &= torch.equal(first.masks[task], part)
        d = unified.d
    return found | {"d": d, "tasks": len(unified.tasks), "same": same}


def reply(
    client: int, names: list[str], vector: Tensor, bits: list[Tensor], switches: measuring.Operator
) -> ClientUpdate:
    held = [names[(client + k) % len(names)] for k in range(min(HELD, len(names)))]
    d = vector.shape[0]
    masks = PackedMasks({task: bits[k] for k, task in enumerate(held)}, d)
    opposites = dict.fromkeys(held, 0.5) if switches.reconstruction == "complete" else {}
    unified = UnifiedTaskVector(vector, masks, dict.fromkeys(held, 0.9), opposites)
    return ClientUpdate(unified, dict.fromkeys(held, 100 + client), f"client{client:04}")


def server_side(folder: Path, switches: measuring.Operator) -> dict[str, Any]:
    """As many clients as there are files; their masks are random and in memory, N · 3 · d / 8 bytes."""
    options = replace(switches.options, epsilon=0.0, epsilon_unit="similarity")  # everybody may be related
    unify({"a": torch.ones(8)})  # loads the kernels
    with ExitStack() as files:
        vectors = mapped(folder, files)
        names, d = list(vectors), next(iter(vectors.values())).shape[0]
        chance = torch.Generator().manual_seed(0)
        whole, updates, firsts = d // 8 * 8, [], []
        for n, vector in enumerate(vectors.values()):
            bits = [
                torch.randint(0, 256, (packed_length(d),), dtype=torch.uint8, generator=chance) for _ in range(HELD)
            ]
            for plane in bits:
                plane[whole // 8 :] = 0
            updates.append(reply(n, names, vector, bits, switches))
            part = min(FIRST, whole)
            planes = [plane[: part // 8].clone() for plane in bits]
            firsts.append(reply(n, names, vector[:part].clone(), planes, switches))
        out = torch.from_numpy(np.memmap(folder / "merged", np.float32, "w+", shape=(len(names), d)))
        found, result = watched(lambda: aggregate(updates, options, out=out))
        # The graph is of all parameters; with it the first ones follow from themselves. Without the cross-task step:
        alone = replace(options, kappa=0)
        again = aggregate(updates, alone, out=out)
        first = aggregate(firsts, alone)
        same = all(
            torch.equal(first.task_vectors[t], again.task_vectors[t][: first.task_vectors[t].shape[0]]) for t in names
        )
        same &= torch.equal(again.similarity, result.similarity)
    return found | {"d": d, "tasks": len(names), "clients": len(names), "same": same}


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--size", type=int, default=20_000_000, help="parameters")
    parser.add_argument("--tasks", type=int, default=12, help="files")
    parser.add_argument("--folder", type=Path, help="where the files are made; default: the system's temporary folder")
    parser.add_argument("--side", choices=["client", "server"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        sides = {"client": client_side, "server": server_side}
        print(json.dumps(sides[arguments.side](arguments.folder, measuring.OPERATORS[arguments.operator])))
        return
    needed = 2 * 4 * arguments.size * arguments.tasks
    folder = Path(tempfile.mkdtemp(prefix="matu-files-", dir=arguments.folder))
    try:
        free = shutil.disk_usage(folder).free
        if needed > free * 9 // 10:
            parser.error(
                f"{needed / 2**30:.1f} GiB of files do not fit the {free / 2**30:.1f} GiB free in {folder.parent}"
            )
        copy = measuring.Copy("cpu")
        write_files(folder, arguments.size, arguments.tasks)
        rows = []
        for side in ("client", "server"):
            row: dict[str, Any] = {"side": side, "files_gib": round(4 * arguments.size * arguments.tasks / 2**30, 2)}
            row["copy_seconds"] = copy.seconds()[0]
            which = ("--side", side, "--folder", str(folder), "--operator", arguments.operator)
            rows.append(row | measuring.fresh_process(__file__, *which))
            gb_per_second = row["files_gib"] * 2**30 / rows[-1]["seconds"] / (copy.bytes / row["copy_seconds"])
            rows[-1]["share_of_copy"] = round(gb_per_second, 4)
    finally:
        shutil.rmtree(folder)
    columns = {
        "side": "side", "tasks": "T", "d": "d", "files_gib": "files GiB", "anonymous_mib": "anonymous MiB",
        "seconds": "s", "share_of_copy": "share of copy", "same": "same",
    }  # fmt: skip
    measuring.table("memory-mapped files", columns, rows)
    measuring.write(arguments.json, {"machine": measuring.machine("cpu"), "measurements": rows})


if __name__ == "__main__":
    main()
