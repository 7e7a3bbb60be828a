"""Measure how time and memory of merging grow, while one number at a time grows tenfold.

The numbers are the parameters d, the tasks T, the clients N, and the tasks k of a client: d and T for `unify`, all four
for `aggregate`. An exponent of 1 means proportional growth. It is the slope of a line through the logarithms of
medians. The similarity of tasks adds a part that grows with T². Memory is what a new process takes for the task vectors
or packed replies, the results and the work together.

    python benchmarks/merging_growth.py --json merging_growth.json

Needs torch, numpy, rich and numba; neither Flower nor Ray.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import measuring
import numpy as np
from merging_client import vectors
from merging_server import replies

from matu_flwr.merging import aggregate
from matu_flwr.merging.aggregate import room_for


@dataclass(frozen=True)
class Case:
    """One measurement: T tasks of d parameters; for `aggregate` N clients that hold k of them each."""

    what: str
    d: int
    T: int
    N: int = 0
    k: int = 0

    def prepared(self, device: str, switches: measuring.Operator) -> Callable[[], Any]:
        """The work, its inputs made."""
        if self.what == "unify":
            taus = vectors(self.d, self.T, device)
            return lambda: switches.unify(taus)
        updates = replies(self.d, self.N, self.T, self.k, device, switches.reconstruction)
        options = replace(switches.options, epsilon=0.0, epsilon_unit="similarity")  # everybody may be related
        room = room_for(self.T, self.d, updates[0].vectors.vector.device)  # kept, as the strategy does
        return lambda: aggregate(updates, options, out=room)

    def memory(self, switches: measuring.Operator) -> int:
        """Bytes in this process: inputs, results and work."""
        replace(self, d=1000).prepared("cpu", switches)()  # loads the kernels
        return measuring.peak_above_now(lambda: self.prepared("cpu", switches)())[0]


def series(base: int, steps: int) -> dict[tuple[str, str], list[Case]]:
    """Cases that differ in one number, which grows by ten."""

    def decade(case: Case, name: str, low: int) -> tuple[tuple[str, str], list[Case]]:
        return (case.what, name), [replace(case, **{name: round(low * f)}) for f in np.geomspace(1, 10, steps)]

    return dict(
        [
            decade(Case("unify", base, 8), "d", base),
            decade(Case("unify", base, 8), "T", 3),
            decade(Case("aggregate", base, 8, 10, 2), "d", base),
            decade(Case("aggregate", base, 8, 30, 2), "T", 3),
            decade(Case("aggregate", base, 8, 30, 2), "N", 10),
            decade(Case("aggregate", base, 10, 10, 2), "k", 1),
        ]
    )


def exponent(at: list[int], found: list[float]) -> float:
    slope, _ = np.polyfit(np.log(at), np.log(found), 1)
    return round(float(slope), 3)


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--base", type=int, default=2_000_000, help="parameters of the smallest measurement")
    parser.add_argument("--steps", type=int, default=4, help="measurements over each decade")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device, switches = arguments.device, measuring.OPERATORS[arguments.operator]
    if arguments.memory:
        print(json.dumps({"bytes": Case(**json.loads(arguments.memory)).memory(switches)}))
        return
    copy = measuring.Copy(device)
    rows = []
    for (what, against), cases in series(arguments.base, arguments.steps).items():
        at = [getattr(case, against) for case in cases]
        seconds = []
        for case in cases:
            spent = measuring.in_turn(copy, {what: case.prepared(device, switches)}, arguments.repeats)
            seconds.append(round(statistics.median(spent[what]), 5))
        row = {"what": what, "against": against, "at": at, "seconds": seconds, "exponent": exponent(at, seconds)}
        if device == "cpu" and Path("/proc/self/clear_refs").exists():
            which = ("--operator", arguments.operator)
            row["mib"] = [
                round(
                    measuring.fresh_process(__file__, "--memory", json.dumps(asdict(case)), *which)["bytes"] / 2**20, 1
                )
                for case in cases
            ]
            row["memory_exponent"] = exponent(at, row["mib"])
        rows.append(row)
    lists = ("at", "seconds", "mib")
    shown = [row | {key: " ".join(f"{v:.3g}" for v in row[key]) for key in lists if key in row} for row in rows]
    for row in shown:
        row["at"] = row["at"].replace("e+0", "e")
    columns = {
        "what": "what", "against": "against", "at": "values", "seconds": "seconds", "exponent": "exponent",
        "mib": "MiB", "memory_exponent": "exponent",
    }  # fmt: skip
    measuring.table("growth", columns, shown)
    measuring.write(arguments.json, {"machine": measuring.machine(device), "measurements": rows})


if __name__ == "__main__":
    main()
