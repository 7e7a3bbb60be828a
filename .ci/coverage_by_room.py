"""Print how much of each room the tests ran, from the data that `make coverage` has just written."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from coverage import Coverage


def room_of(file: str) -> str:
    """Name the folder of `matu_flwr` that a file is in; the kernels count by themselves, loose files as `(hall)`."""
    match PurePosixPath(file).parts:
        case ("matu_flwr", "merging", "kernels", *_):
            return "merging/kernels"
        case ("matu_flwr", room, _, *_):
            return room
        case ("matu_flwr", _):
            return "(hall)"
        case _:
            return "(apps)"


def by_room(files: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Add up lines and branches: room -> (how many ran, how many there are), and `all` last."""
    rooms: dict[str, tuple[int, int]] = {}
    for file, measured in sorted(files.items(), key=lambda item: room_of(item[0])):
        summary = measured["summary"]
        for room in (room_of(file), "all"):
            ran, there = rooms.get(room, (0, 0))
            rooms[room] = (
                ran + summary["covered_lines"] + summary["covered_branches"],
                there + summary["num_statements"] + summary["num_branches"],
            )
    total = rooms.pop("all")
    return {**rooms, "all": total}


def main() -> None:
    """Print a Markdown table, as it stands in CONTRIBUTING.md."""
    coverage = Coverage()
    coverage.load()
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        coverage.json_report(outfile=report.name)
        files = json.load(report)["files"]
    print("| room | lines and branches | ran |\n|---|---|---|")
    for room, (ran, there) in by_room(files).items():
        print(f"| {room} | {there} | {100 * ran / there:.1f} % |" if there else f"| {room} | 0 | – |")


if __name__ == "__main__":
    main()
