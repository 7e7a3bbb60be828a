"""The example of docs/extending.md, as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from matu_flwr.strategies.registry import METHODS
from tests.support.federation import Federation

GUIDE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture
def fedmedian():
    """Run the guide's code, and forget the entry afterwards."""
    names = {}
    for code in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        exec(code, names)  # the guide's own code
    yield names["FedMedian"]
    del METHODS["fedmedian"]


def test_the_example_is_a_strategy(tmp_path, fedmedian):
    run = Federation(tmp_path, strategy="fedmedian", rounds=2).run()
    assert isinstance(run.strategy, fedmedian)
    assert all(event["status"] == "ok" for event in run.of("client"))
    first, last = run.of("accuracy")[0], run.of("accuracy")[-1]
    assert last["mean_accuracy"] > first["mean_accuracy"]
    assert len({id(vector) for vector in run.strategy.task_vectors.values()}) == 1
    assert torch.equal(run.strategy.median, run.strategy.task_vectors["dots"])


def test_the_guide_names_what_there_is():
    from matu_flwr.client import rules

    for name in re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE):
        assert hasattr(rules, name)


def test_the_table_of_methods_is_complete():
    text = (Path(__file__).parents[1] / "docs" / "strategies.md").read_text(encoding="utf-8")
    table = text[text.index("| `strategy` |") : text.index("Variants of MaTU")]
    assert set(re.findall(r"`([a-z-]+)`", table)) >= set(METHODS)
