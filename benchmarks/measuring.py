"""Helpers of the merging benchmarks: copy bandwidth, repeated measurements, peak memory, tables and JSON.

A single time says little about another machine, and not much about this one while it is busy. So every time is reported
beside the time of a plain copy of as much memory, and beside that of a plain program for the same work. All of them are
measured in turn, in one run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from matu_flwr.choices import Magnitude, Reconstruction
from matu_flwr.merging import PAPER, MergeOptions, UnifiedTaskVector, unify
from matu_flwr.merging.kernels import Kernels

SIZES = {"lora": 600_000, "vit-tiny": 5_500_000, "vit-b-32": 87_800_000}  # parameters that are fine-tuned
MIB = 2**20
SLOW = 5.0  # seconds


@dataclass(frozen=True)
class Operator:
    """The switches that are measured, of the client and of the server."""

    magnitude: Magnitude = "mean"
    reconstruction: Reconstruction = "complete"
    options: MergeOptions = field(default_factory=MergeOptions)

    def unify(self, task_vectors: Mapping[str, Tensor]) -> UnifiedTaskVector:
        return unify(task_vectors, magnitude=self.magnitude, reconstruction=self.reconstruction)

    def shown(self) -> dict[str, Any]:
        return asdict(self)


OPERATORS = {"default": Operator(), "paper": Operator(**PAPER, options=MergeOptions.paper())}


def parser(description: str | None) -> argparse.ArgumentParser:
    """What every benchmark understands."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--repeats", type=int, default=5, help="measurements of each figure, in turn")
    found.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    found.add_argument("--operator", default="default", choices=list(OPERATORS), help="whose switches")
    found.add_argument("--json", type=Path, help="also write the numbers there")
    return found


def machine(device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    names = re.findall(r"model name\s*:\s*(.*)", cpuinfo()) or [platform.machine()]
    return {
        "processor": names[0],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(physical_memory() / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Bytes that a new process can have without swapping."""
    path = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", path.read_text()) if path.exists() else None
    return int(found[1]) * 1024 if found else physical_memory() // 2


def room(device: str) -> int:
    """Bytes that a measurement on this device may take: nine tenths of what is free."""
    if device == "cuda":
        torch.cuda.empty_cache()  # what PyTorch keeps of earlier measurements is free too
        return torch.cuda.mem_get_info()[0] * 9 // 10
    return available_memory() * 9 // 10


def seconds(work: Callable[[], Any], device: str) -> tuple[float, float]:
    """Of the wall's clock, and of this process's cores together."""
    if device == "cuda":
        torch.cuda.synchronize()
    start, cores = time.perf_counter(), time.process_time()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    spent = time.perf_counter() - start, time.process_time() - cores
    del result  # after the clock stopped: giving memory back is not part of it
    return spent


def in_plain_torch(work: Callable[[], Any]) -> Any:
    """The result of the same work where no device has kernels: what the specification computes by itself."""
    with ExitStack() as stack:
        for name in ("unify", "aggregate", "quantise"):  # the modules, not the functions that have their names
            module = importlib.import_module(f"matu_flwr.merging.{name}")
            stack.enter_context(mock.patch.object(module, "for_device", return_value=Kernels()))
        return work()


class Copy:
    """A plain copy between two buffers that exist: what this machine's memory can do, in bytes read and written."""

    def __init__(self, device: str) -> None:
        self.device = device
        most = (256 if device == "cuda" else 64) * MIB  # long enough that its launch does not count
        self.source = torch.ones(most, device=device)
        self.target = torch.zeros(most, device=device)

    @property
    def bytes(self) -> int:
        return 2 * self.source.numel() * self.source.element_size()

    def seconds(self) -> tuple[float, float]:
        return seconds(lambda: self.target.copy_(self.source), self.device)


def in_turn(copy: Copy, work: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, and of the copy, one after the other `repeats` times after one that is not counted.

    What took longer than SLOW in the uncounted turn and in the first counted one, too, is left out from then on. "NAME
    on cores" has the seconds of all cores together: what other programs on the machine disturb less.
    """
    calls: dict[str, Callable[[], tuple[float, float]]] = {"copy": copy.seconds}
    calls |= {name: partial(seconds, call, copy.device) for name, call in work.items()}
    best = {name: call()[0] for name, call in calls.items()}
    spent: dict[str, list[float]] = {name: [] for call in calls for name in (call, f"{call} on cores")}
    for turn in range(repeats):
        for name, call in calls.items():
            if turn == 0 or best[name] < SLOW:
                wall, cores = call()
                best[name] = min(best[name], wall)
                spent[name].append(wall)
                spent[f"{name} on cores"].append(cores)
    return spent


def summary(ratios: Sequence[float]) -> dict[str, float]:
    """Median, and the lowest and highest of the runs."""
    found = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def share_of_copy(
    spent: Mapping[str, Sequence[float]], name: str, moved: int, copy: Copy, on: str = ""
) -> dict[str, float]:
    """Bytes per second of a measurement, divided by those of the copy in the same turn; on = " on cores": of these."""
    turns = zip(spent[name + on], spent["copy" + on], strict=False)
    return summary([(moved / mine) / (copy.bytes / theirs) for mine, theirs in turns])


def times_faster(spent: Mapping[str, Sequence[float]], name: str, than: str) -> dict[str, float]:
    """How often `name` fits into the time of `than`."""
    return summary([theirs / mine for mine, theirs in zip(spent[name], spent[than], strict=False)])


def fresh_process(script: str, *arguments: str) -> dict[str, Any]:
    """What a benchmark run again with these arguments prints as JSON: its own peak of memory, and no one else's."""
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def status(field: str) -> int:
    """A field of this process's memory, in bytes."""
    found = re.search(field + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, field
    return int(found[1]) * 1024


def peak_above_now(work: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes of resident memory that `work` needed at most beyond what was there, its result included."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    result = work()
    return status("VmHWM") - before, result


def random_vector(d: int, seed: int, device: str = "cpu") -> Tensor:
    """Made quickly: uniform in -1..1."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.empty(d, device=device).uniform_(-1, 1, generator=generator)


def shown(value: Any) -> str:
    """One cell: a summary as median and spread, a number with three digits."""
    if isinstance(value, dict):
        return f"{shown(value['median'])} ({shown(value['low'])}–{shown(value['high'])})"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "–" if value is None else str(value)


def table(title: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows; `columns` is the heading of each key."""
    found = Table(title=title, title_justify="left")
    for heading in columns.values():
        found.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        found.add_row(*(shown(row.get(key)) for key in columns))
    Console(width=max(500, Console().width)).print(found)


def write(path: Path | None, content: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
