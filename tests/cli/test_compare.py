from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from matu_flwr.compare import one_run
from matu_flwr.launch.flower import LaunchError
from matu_flwr.launch.launcher import claimed
from tests.support.command import matu
from tests.support.places import data_folder


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Run configs of the cells, none of which runs."""
    found = []

    def run_in_process(folder: Path, arguments: dict[str, Any], *, shown: bool) -> None:
        found.append(arguments["run_config"])
        raise LaunchError("not run here")

    monkeypatch.setattr(one_run, "run_in_process", run_in_process)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MATU_DATA_DIR", str(data_folder(tmp_path / "data")))
    (tmp_path / "pyproject.toml").touch()
    return found


def test_suite_and_seed_of_the_experiment_count_unless_others_are_typed(
    configs: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "e.yaml").write_text("suite: real-4\nseed: 5\nkeep-checkpoints: 3\n")
    options = ["compare", "--strategies", "matu", "--seeds", "1", "-c", "experiment=e.yaml"]
    matu(*options, status=1)
    matu(*options, "--suite", "offline", "--seed", "0", status=1)
    experiment = {"strategy": "matu", "experiment": str(tmp_path / "e.yaml")}
    folders = [config.pop("state-dir") for config in configs]
    assert configs == [experiment | {"seed": 5}, experiment | {"seed": 0, "suite": "offline"}]
    assert [Path(folder).relative_to(tmp_path / "comparisons").parts[0] for folder in folders] == ["real-4", "offline"]


def test_a_suite_may_be_typed_as_a_setting(configs: list[dict[str, Any]]) -> None:
    matu("compare", "--strategies", "matu", "--seeds", "1", "-c", "suite=real-4", status=1)
    assert configs[0]["suite"] == "real-4"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--suite offlin", "unknown suite 'offlin'"),
        ("--strategies mattu", "unknown strategy 'mattu'"),
        ("--strategies matu,fedavg:backbone.weights=none.pt", "backbone.weights = 'none.pt' is not a file"),
        ("--suite real-4 -c data-dir=none", "none' is not a folder"),
        ("--out-dir pyproject.toml", "pyproject.toml is a file, expected a folder; name another --out-dir"),
        ("--app data", "data is not a Flower app: it has no pyproject.toml"),
        ("--nodes 1 -c min-nodes=2", "min-nodes = 2 with 1 simulated nodes"),
        ("--cpus 5000", "each client is to get 5000 CPUs"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(
    configs: list[dict[str, Any]], tmp_path: Path, options: str, text: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert text in matu("compare", "--seeds", "1", *options.split(), status=1)
    assert configs == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_comparison_of_one_node_does_not_wait_for_two(configs: list[dict[str, Any]]) -> None:
    matu("compare", "--strategies", "matu", "--seeds", "1", "--nodes", "1", status=1)
    assert configs[0]["min-nodes"] == 1


def test_a_folder_serves_one_comparison_at_a_time(configs: list[dict[str, Any]], tmp_path: Path) -> None:
    target = tmp_path / "comparisons" / "offline"
    target.mkdir(parents=True)
    with claimed(target, "a comparison"):
        text = matu("compare", "--strategies", "matu", "--seeds", "1", status=1)
    assert f"another command is at work on a comparison in {target}: wait for it, or name another --out-dir" in text
    assert configs == []
