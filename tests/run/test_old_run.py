"""A run folder that an earlier release wrote still opens: `old-run`, of two rounds, four tasks and three clients.

It was made in one process from the code of before the rooms of this package were set up, with the small default, LoRA
of rank 1 and a suite of four generated tasks; its pictures were left out. Nothing in it may be written anew.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from matu_flwr import load_finetuned
from matu_flwr.cli import app
from matu_flwr.config.settings import DEFAULTS
from matu_flwr.run.checkpoint import CheckpointError, find_checkpoint
from matu_flwr.run.history import read_history
from matu_flwr.run.resume import settings_of

OLD = Path(__file__).with_name("old-run")
TASKS = ["dots", "gratings", "squares", "stripes"]


@pytest.fixture
def old(tmp_path):
    """A copy, because reports are written into a run's folder."""
    return Path(shutil.copytree(OLD, tmp_path / "old-run"))


def said(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_show(old):
    lines = said("show", old).splitlines()
    assert lines[0].split() == ["strategy", "matu,", "2", "rounds,", "seed", "0"]
    rounds = [line for line in lines if line.startswith("round ")]
    assert [line.split("  ")[0] for line in rounds] == ["round 0/2", "round 1/2", "round 2/2"]
    assert all("accuracy ." in line for line in rounds)
    assert [next(line for line in reversed(lines) if line.startswith(task)).split()[0] for task in TASKS] == TASKS
    assert any(line.startswith("completed in ") for line in lines)


def test_report_is_the_one_of_then(old):
    said("report", old, "--tensorboard", old / "board")
    assert (old / "summary.json").read_bytes() == (OLD / "summary.json").read_bytes()
    assert {path.name for path in old.glob("*.png")} == {"curves.png", "task_graph.png"}
    assert list((old / "board").iterdir())


def test_status(old):
    lines = [line.rstrip() for line in said("status", old).splitlines()]
    assert lines[1].startswith("state       completed in ")
    assert lines[2].startswith("method      matu on suite ")
    assert lines[3].startswith("rounds      2 of 2 done, last event ")
    assert lines[4].startswith("checkpoint  round 2 of 2, ")
    assert [line.split()[0] for line in lines[-3:]] == ["client-000", "client-001", "client-002"]


@pytest.mark.parametrize("source", ["task-vector", "unified"])
def test_a_fine_tuned_model_comes_back(source):
    model = load_finetuned(OLD, "gratings", source)
    images = torch.arange(2 * 32 * 32 * 3).remainder(251).to(torch.uint8).view(2, 32, 32, 3)
    logits = model.logits(images)
    assert logits.shape == (2, len(model.classes)) == (2, 8)
    assert bool(torch.isfinite(logits).all())
    assert set(model.predict(images)) <= set(model.classes)


def test_it_can_be_resumed_where_it_was_cut_off(old):
    history = old / "history.jsonl"
    with pytest.raises(CheckpointError, match="has completed: there is nothing to resume"):
        settings_of({"resume-from": str(old)})
    _, checkpoint, tensors = find_checkpoint(old)
    history.write_bytes(history.read_bytes()[: checkpoint.history.bytes] + b'{"event": "acc')
    settings, found = settings_of({"resume-from": str(old)})
    assert (found.checkpoint.round, found.checkpoint.rounds) == (2, 2)
    assert found.tensors.keys() == tensors.keys()
    stored = json.loads((old / "checkpoints" / "round-000002.json").read_text())["settings"]
    gone = ("evaluate", "train.optimizer", "backbone.last-blocks", "partition.classes-per-holder")
    assert [stored.pop(key) for key in gone] == ["ride", "adamw", 1, 2]
    # Settings that came later have their defaults.
    assert settings.flat() == DEFAULTS | stored | {"out-dir": str(old), "resume-from": str(old)}


def test_its_events_are_all_read():
    kinds = [event["event"] for event in read_history(OLD / "history.jsonl")]
    assert (kinds[0], kinds[-1]) == ("plan", "end")
    assert {kind: kinds.count(kind) for kind in ("client", "accuracy", "round")} == {
        "client": 9,
        "accuracy": 4,
        "round": 2,
    }
