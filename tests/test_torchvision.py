"""torchvision beside a torch that does not know its operators; each case in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Stands in for torchvision: its first import leaves a submodule behind and stops, as a CUDA wheel beside CPU torch.
FAKE = """
import torch
from . import half
try:
    torch.library.infer_schema
    torch.ops.torchvision.nms.default
except AttributeError:
    raise RuntimeError("operator torchvision::nms does not exist") from None
whole = half.times
"""


def run(code, folder=None):
    """What the code prints, in a process whose first import folder is `folder`."""
    start = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]\n" if folder else ""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", start + code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def package(tmp_path):
    """Write a package `torchvision` whose __init__ is `text`."""

    def write(text):
        folder = tmp_path / "torchvision"
        folder.mkdir()
        (folder / "__init__.py").write_text(text)
        (folder / "half.py").write_text("times = 1\n")
        return tmp_path

    return write


def test_missing_operators_are_declared_and_the_import_is_made_anew(package):
    code = """
from matu_flwr._torchvision import ensure_importable
ensure_importable()
import torchvision, torch
print(torchvision.whole, torch.ops.torchvision.nms.default is not None, torch.ops.torchvision.qnms.default is not None)
"""
    assert run(code, package(FAKE)) == ["1", "True", "True"]


def test_without_help_that_import_fails(package):
    code = """
try:
    import torchvision
except RuntimeError as error:
    print(error)
"""
    assert " ".join(run(code, package(FAKE))) == "operator torchvision::nms does not exist"


def test_other_errors_pass_through(package):
    code = """
from matu_flwr._torchvision import ensure_importable
try:
    ensure_importable()
except RuntimeError as error:
    print(error)
"""
    assert run(code, package("raise RuntimeError('something else')\n")) == ["something", "else"]


def test_nothing_happens_where_torchvision_is_imported_already():
    code = """
import sys, types
sys.modules["torchvision"] = stand_in = types.ModuleType("torchvision")
from matu_flwr._torchvision import ensure_importable
ensure_importable()
print(sys.modules["torchvision"] is stand_in)
"""
    assert run(code) == ["True"]


def test_the_installed_torchvision_can_be_imported_and_used():
    code = """
from matu_flwr._torchvision import ensure_importable
ensure_importable()
ensure_importable()
from torchvision.datasets import ImageFolder
print(ImageFolder.__name__)
"""
    assert run(code) == ["ImageFolder"]
