"""What `make dist` builds: the wheel and the source archive, without a network."""

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import matu_flwr

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "matu_flwr"

# One worker builds once for all of them.
pytestmark = pytest.mark.xdist_group("packaging")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


def test_every_place_tells_the_same_name_and_version(metadata):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    without_metadata = re.search(
        r'^    __version__ = "(.*)"$', (PACKAGE / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert metadata["Name"] == project["name"] == citation["title"] == "matu-flwr"
    assert {
        "wheel": metadata["Version"],
        "pyproject.toml": project["version"],
        "CITATION.cff": citation["version"],
        "matu_flwr": matu_flwr.__version__,
        "matu_flwr, not installed": without_metadata[1],
    } == dict.fromkeys(
        ("wheel", "pyproject.toml", "CITATION.cff", "matu_flwr", "matu_flwr, not installed"), project["version"]
    )


def test_the_wheel_says_what_it_needs(metadata):
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert set(metadata.get_all("Provides-Extra")) >= {"lora", "clip", "hub", "privacy", "dev"}
    assert any(need.startswith("flwr[simulation]") for need in metadata.get_all("Requires-Dist"))


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    there = {name for name in wheel.namelist() if ".dist-info/" not in name}
    here = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there == here
    assert there >= {
        "matu_flwr/py.typed",
        "matu_flwr/tasks/class_names.yaml",
        "matu_flwr/tasks/suites/offline.yaml",
        "matu_flwr/tasks/suites/paper-30.yaml",
        "matu_flwr/backbones/assets/vit_mini_clip_32.json",
        "matu_flwr/backbones/assets/vit_mini_clip_32.safetensors",
    }
    weights = "backbones/assets/vit_mini_clip_32.safetensors"
    assert wheel.read(f"matu_flwr/{weights}") == (PACKAGE / weights).read_bytes()


def test_the_wheel_brings_the_command_and_the_licence(wheel):
    by_end = {name.partition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "matu = matu_flwr.cli:app" in wheel.read(by_end["entry_points.txt"]).decode()
    assert wheel.read(by_end["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()


def test_the_source_archive_can_be_worked_with(built):
    """It holds what git holds, so that somebody who has it alone can run the tests."""
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    assert there >= {
        "server_app.py",
        "client_app.py",
        "Makefile",
        "constraints.txt",
        "tests/conftest.py",
        ".ci/run",
        "docker/Dockerfile",
    }
    assert not [name for name in there if name.startswith((".venv", "runs/", "dist/")) or "__pycache__" in name]
