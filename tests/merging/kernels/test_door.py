"""The door to the kernels: what each device gets, who may know them, and that kept machine code is never stale."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from matu_flwr.merging import kernels
from matu_flwr.merging.kernels import Kernels, for_device

ROOT = Path(__file__).parents[3]
MERGING = ROOT / "matu_flwr" / "merging"


def names(found: Kernels) -> dict[str, str | None]:
    return {name: getattr(kernel, "__name__", None) for name, kernel in found._asdict().items()}


def test_a_cpu_has_compiled_loops_for_everything():
    assert names(for_device(torch.device("cpu"))) == {
        "unify": "unify_on_cpu",
        "merge": "MergeOnCpu",
        "quantise": "quantise_on_cpu",
        "dequantise": "dequantise_on_cpu",
    }


def test_a_device_without_kernels_runs_plain_torch():
    assert for_device(torch.device("mps")) == Kernels()
    with mock.patch.object(kernels, "find_spec", return_value=None):
        assert for_device(torch.device("cuda")) == Kernels()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with PyTorch for CUDA only")
def test_a_gpu_with_triton_has_two():
    found = names(for_device(torch.device("cuda")))
    assert found == {"unify": "unify_in_triton", "merge": "MergeInTriton", "quantise": None, "dequantise": None}


# ---------------------------------------------------------------- who knows whom


def imported(path: Path) -> set[str]:
    """Modules that a file imports anywhere, inside functions too; `from a import b` may mean module a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found |= {node.module, f"{node.module}.{alias.name}"}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_merging_has_no_circle():
    files = {module_of(path): path for path in MERGING.rglob("*.py") if path != MERGING / "__init__.py"}
    left = {name: imported(path) & files.keys() - {name} for name, path in files.items()}
    for name, needs in left.items():
        if name.startswith("matu_flwr.merging.kernels."):
            needs.discard(
                "matu_flwr.merging.kernels"
            )  # `from merging.kernels import lanes` is the module, not the door
    while ready := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in ready}
    assert left == {}, "these modules import each other in a circle"


def test_nobody_knows_a_kernel_but_through_the_door():
    modules = {module_of(path) for path in (MERGING / "kernels").glob("*.py")} - {"matu_flwr.merging.kernels"}
    package = [path for path in (ROOT / "matu_flwr").rglob("*.py") if path.parent != MERGING / "kernels"]
    assert {path.name: found for path in package if (found := imported(path) & modules)} == {}
    assert len(modules) >= 9


# ---------------------------------------------------------------- machine code that is kept

PROBE = """
from matu_flwr.merging.kernels import lanes

@lanes.compiled("uint64(uint64)")
def ones(word):
    return lanes.count_ones(word)
"""

ASK = """
import json
from matu_flwr.merging.kernels import probe
stats = probe.ones.stats
hits, misses = sum(stats.cache_hits.values()), sum(stats.cache_misses.values())
print(json.dumps({"ones": int(probe.ones(7)), "hits": hits, "misses": misses}))
"""


@pytest.fixture
def package(tmp_path):
    """A copy of `merging` with one small kernel more."""
    (tmp_path / "matu_flwr").mkdir()
    (tmp_path / "matu_flwr" / "__init__.py").touch()
    copy = tmp_path / "matu_flwr" / "merging"
    shutil.copytree(MERGING, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "kernels" / "probe.py").write_text(PROBE, encoding="utf-8")
    for package in (copy, copy / "kernels"):
        (package / "__init__.py").write_text("")  # without torch, which takes seconds to load
    return copy


def ask(package: Path, **environment: str) -> dict[str, int]:
    """What the kernel gives in a fresh process, and whether its code was on disk."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("NUMBA", "PYTHON", "XDG"))}
    done = subprocess.run(
        [sys.executable, "-B", "-c", ASK], cwd=package.parents[1], env={**inherited, **environment},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


COMPILED, LOADED = {"ones": 3, "hits": 0, "misses": 1}, {"ones": 3, "hits": 1, "misses": 0}


def test_kept_code_is_good_as_long_as_every_source_is_the_same(package):
    lanes, probe = package / "kernels" / "lanes.py", package / "kernels" / "probe.py"
    assert ask(package) == COMPILED
    os.utime(lanes, (1, 1))
    os.utime(probe, (1, 1))
    assert ask(package) == LOADED, "a date is no change"
    lanes.write_text(lanes.read_text().replace("builder.ctpop(word)", "builder.add(builder.ctpop(word), word)"))
    assert ask(package) == {"ones": 10, "hits": 0, "misses": 1}, "code of the lanes before was used"
    codes = package / "codes.py"  # numbers of it are compiled in
    codes.write_text(codes.read_text() + "# changed\n")
    assert ask(package)["misses"] == 1


def test_kernels_work_where_no_folder_can_hold_their_code(package):
    """A container whose file system is read-only."""
    (package / "kernels" / "__pycache__").write_text("a file where the folder would be")
    nowhere = package / "kernels" / "probe.py" / "home"
    for _ in range(2):
        assert ask(package, HOME=str(nowhere)) == COMPILED


def test_numba_s_own_setting_of_a_folder_counts(package, tmp_path):
    kept = tmp_path / "kept"
    assert ask(package, NUMBA_CACHE_DIR=str(kept)) == COMPILED
    assert ask(package, NUMBA_CACHE_DIR=str(kept)) == LOADED
    assert list(kept.rglob("probe.ones*.nbc"))
    assert not (package / "kernels" / "__pycache__").exists()


def test_copies_of_the_sources_in_other_places_share_one_folder(package, tmp_path):
    """Each run of a simulation has its own copy of the app."""
    kept = tmp_path / "kept"
    copy = tmp_path / "another" / "matu_flwr"
    shutil.copytree(package.parent, copy)
    assert ask(package, NUMBA_CACHE_DIR=str(kept)) == COMPILED
    assert ask(copy / "merging", NUMBA_CACHE_DIR=str(kept)) == LOADED
    # Other sources have another folder, also while the first ones are in use.
    (copy / "merging" / "codes.py").write_text("# changed\n")
    assert ask(copy / "merging", NUMBA_CACHE_DIR=str(kept)) == COMPILED
    assert ask(package, NUMBA_CACHE_DIR=str(kept)) == LOADED
