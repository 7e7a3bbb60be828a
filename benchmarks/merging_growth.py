"""How time grows with parameters d, tasks T and clients N, over a decade each, with the fitted exponent.

`unify` against d and T, `aggregate` against d, T and N; each client holds 2 tasks. An exponent of 1 is proportional;
the similarity of tasks adds a part in T². Medians of repeats; the exponent is the slope of a line through logarithms.

    python benchmarks/merging_growth.py --json merging_growth.json

Needs torch, numpy, rich, pydantic, PyYAML and numba; neither Flower nor Ray.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import measuring
import numpy as np
from merging_client import vectors
from merging_server import replies

from matu_flwr.merging import aggregate
from matu_flwr.setting_sections import MatuSettings


def unify_of(d: int, tasks: int, device: str, switches: MatuSettings) -> Callable[[], Any]:
    taus = vectors(d, tasks, device)
    return lambda: switches.unify(taus)


def aggregate_of(d: int, tasks: int, clients: int, device: str, switches: MatuSettings) -> Callable[[], Any]:
    updates = replies(d, clients, tasks, min(2, tasks), device, switches.reconstruction)
    options = replace(switches.merge_options(), epsilon=0.0, epsilon_unit="similarity")  # everybody may be related
    return lambda: aggregate(updates, options)


def exponent(at: list[int], seconds: list[float]) -> float:
    slope, _ = np.polyfit(np.log(at), np.log(seconds), 1)
    return round(float(slope), 3)


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--base", type=int, default=2_000_000, help="parameters of the smallest measurement")
    parser.add_argument("--steps", type=int, default=4, help="measurements over each decade")
    arguments = parser.parse_args()
    base, device, switches = arguments.base, arguments.device, measuring.OPERATORS[arguments.operator]
    factors = np.geomspace(1, 10, arguments.steps)
    series: list[tuple[str, str, list[int], Callable[[int], Callable[[], Any]]]] = [
        ("unify", "d", [round(base * f) for f in factors], lambda d: unify_of(d, 8, device, switches)),
        ("unify", "T", [round(3 * f) for f in factors], lambda tasks: unify_of(base, tasks, device, switches)),
        ("aggregate", "d", [round(base * f) for f in factors], lambda d: aggregate_of(d, 8, 10, device, switches)),
        (
            "aggregate",
            "T",
            [round(3 * f) for f in factors],
            lambda tasks: aggregate_of(base, tasks, 30, device, switches),
        ),
        ("aggregate", "N", [round(10 * f) for f in factors], lambda n: aggregate_of(base, 8, n, device, switches)),
    ]
    copy = measuring.Copy(device)
    rows = []
    for what, against, at, prepare in series:
        medians = []
        for value in at:
            work = prepare(value)
            spent = measuring.in_turn(copy, {what: work}, arguments.repeats)
            medians.append(statistics.median(spent[what]))
        rows.append(
            {
                "what": what,
                "against": against,
                "at": at,
                "seconds": [round(value, 5) for value in medians],
                "exponent": exponent(at, medians),
            }
        )
    shown = [
        row | {"at": " ".join(map(str, row["at"])), "seconds": " ".join(f"{s:.3g}" for s in row["seconds"])}
        for row in rows
    ]
    columns = {"what": "what", "against": "against", "at": "values", "seconds": "seconds", "exponent": "exponent"}
    measuring.table("growth", columns, shown)
    measuring.write(arguments.json, {"machine": measuring.machine(device), "measurements": rows})


if __name__ == "__main__":
    main()
