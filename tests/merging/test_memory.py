"""Peak memory of `unify` and `aggregate` in a fresh process, against the bounds in their docstrings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 2**20
D = 4 * MIB  # parameters: one float32 vector is 16 MiB, one packed mask ½ MiB

MEASURE = """
import json, re, sys, torch
from matu_flwr.merging import ClientUpdate, aggregate, unify

def status(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

def peak_above_now(work):
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
    before = status("VmRSS")
    result = work()
    return status("VmHWM") - before, result

d = int(sys.argv[1])
torch.set_num_threads(2)
unify({"warm": torch.ones(100_000), "up": torch.ones(100_000)})
taus = {f"task{k}": torch.empty(d).normal_() for k in range(2)}
for_unify, unified = peak_above_now(lambda: unify(taus))
del taus
replies = [ClientUpdate(unified, dict.fromkeys(unified.rescalers, 10), f"client{n}") for n in range(2)]
small = [ClientUpdate(unify({"task0": torch.ones(100_000)}), {"task0": 1}, "warm")]
aggregate(small)
for_aggregate, _ = peak_above_now(lambda: aggregate(replies))
print(json.dumps({"unify": for_unify, "aggregate": for_aggregate}))
"""


@pytest.fixture(scope="module")
def peaks() -> dict[str, int]:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux to measure the peak of resident memory")
    command = [sys.executable, "-c", MEASURE, str(D)]
    root = Path(__file__).parents[2]
    # one arena: how much glibc's arenas of other threads hold on to depends on how busy the machine is
    steady = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=root, env=steady)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SLACK = 8 * MIB  # blocks, the allocator, and pages of code that are touched for the first time


def test_unify_needs_its_outputs_and_a_few_blocks(peaks):
    outputs = 4 * D + 2 * D // 8  # one float32 vector and two packed masks
    assert peaks["unify"] >= outputs, "the measurement itself"
    assert peaks["unify"] <= outputs + SLACK


def test_aggregate_needs_its_result_and_blocks(peaks):
    result = 2 * 4 * D  # (T, d) float32
    assert peaks["aggregate"] >= result, "the measurement itself"
    assert peaks["aggregate"] <= result + 2 * SLACK  # each of two threads has its blocks and its allocator's arena
