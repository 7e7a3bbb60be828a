from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from matu_flwr.compare import one_run
from matu_flwr.launch.launcher import LaunchError
from tests.support.command import matu


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Run configs of the cells, none of which runs."""
    found = []

    def run_in_process(folder: Path, arguments: dict[str, Any], *, shown: bool) -> None:
        found.append(arguments["run_config"])
        raise LaunchError("not run here")

    monkeypatch.setattr(one_run, "run_in_process", run_in_process)
    monkeypatch.chdir(tmp_path)
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
