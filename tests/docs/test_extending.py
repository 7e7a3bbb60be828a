"""The example of docs/extending.md, as it stands there, and what the guides list."""

import re
from pathlib import Path

import pytest
import torch

from matu_flwr.client import rule
from matu_flwr.strategies.registry import METHODS
from tests.support.federation import Federation

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "extending.md").read_text(encoding="utf-8")


@pytest.fixture
def example():
    """Run the guide's code, and forget the entry afterwards."""
    names = {}
    for code in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        exec(code, names)  # the guide's own code
    yield names
    del METHODS["fedmedian"]


def test_the_example_is_a_strategy(tmp_path, example):
    run = Federation(tmp_path, strategy="fedmedian", rounds=2).run()
    assert isinstance(run.strategy, example["FedMedian"])
    assert all(event["status"] == "ok" for event in run.of("client"))
    first, last = run.of("accuracy")[0], run.of("accuracy")[-1]
    assert last["mean_accuracy"] > first["mean_accuracy"]
    assert len({id(vector) for vector in run.strategy.task_vectors.values()}) == 1
    assert torch.equal(run.strategy.median, run.strategy.task_vectors["dots"])


def test_the_example_has_both_sides(tmp_path, example):
    """Its rule is the one that clients run, and its pull changes what they send."""
    run = Federation(tmp_path, strategy="fedmedian", rounds=2)
    assert run.strategy.rule is example["FedMedianRule"]
    run.run()
    example["FedMedianRule"].proximal = lambda self: None
    without = Federation(tmp_path, strategy="fedmedian", rounds=2).run()
    assert not torch.equal(run.strategy.median, without.strategy.median)


def test_the_example_checks_its_settings(tmp_path, example):
    from matu_flwr.config.settings import SettingsError

    with pytest.raises(SettingsError, match="'fedmedian' needs two clients or more"):
        Federation(tmp_path, strategy="fedmedian", **{"min-nodes": 1})


def test_the_guide_names_what_there_is():
    named = re.findall(r"^\| `([A-Z]\w+)` \|", GUIDE, re.MULTILINE)
    assert named == ["Separate", "Joint", "Alone"]
    for name in named:
        assert hasattr(rule, name)


def test_the_table_of_methods_is_complete():
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    table = text[text.index("| `strategy` |") : text.index("An option of one method")]
    assert set(re.findall(r"`([a-z-]+)`", table)) >= set(METHODS)
