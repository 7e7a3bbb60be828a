"""A node that is started anew has another id: its client goes on by its name."""

import pytest
import torch
from flwr.app import Context, RecordDict

from tests.support.federation import Federation


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(
        "matu_flwr.federation.registration.log", lambda level, text, *values: lines.append(text % values)
    )
    return lines


def move(federation, partition, config=None):
    """The node of a partition goes; another with its configuration, or with `config`, comes."""
    contexts = federation.grid.contexts
    (old,) = [i for i, context in contexts.items() if context.node_config["partition-id"] == partition]
    context = contexts.pop(old)
    new = old + 5000
    contexts[new] = Context(1, new, {**context.node_config, **(config or {})}, RecordDict(), {})


def run(folder, after):
    """Three rounds; `after(federation, round)` is called when one is done."""
    found = Federation(
        folder,
        rounds=3,
        max_failed_fraction=1.0,
        train__heads="local",
        after_round=lambda strategy: after(found, strategy.completed),
    )
    return found.run()


def status(federation, client, phase="train"):
    found = federation.of("client", lambda e: e["client"] == client and e["phase"] == phase)
    return {event["round"]: event["status"] for event in found}


def test_a_client_comes_back_under_another_id(tmp_path, said):
    undisturbed = run(tmp_path / "one", lambda federation, round_: None)
    moved = run(tmp_path / "two", lambda federation, round_: move(federation, 1) if round_ == 1 else None)
    assert status(moved, "client-001") == {1: "ok", 2: "ok", 3: "ok"}
    assert said == ["client client-001 is back, as node 6001"]
    one, other = undisturbed.strategy.task_vectors, moved.strategy.task_vectors
    assert all(torch.equal(one[task], other[task]) for task in one)


@pytest.mark.parametrize("config", [{"site": "somebody"}, {"num-partitions": 5}], ids=["name", "tasks"])
def test_another_client_does_not_take_its_place(tmp_path, said, config):
    found = run(tmp_path, lambda federation, round_: move(federation, 1, config) if round_ == 1 else None)
    assert status(found, "client-001")[2] == status(found, "client-001")[3] == "failed"
    name = config.get("site", "client-001")
    assert said == [f"node 6001 ({name}) takes no part: it is new, or has other tasks than before"]  # asked once
    assert {round_ for e in found.of("client") if e["client"] == "client-000" for round_ in [e["round"]]} >= {1, 2, 3}


def test_nobody_is_asked_while_all_are_there(tmp_path):
    def newcomer(federation, round_):
        federation.grid.contexts[9000] = Context(1, 9000, {"site": "late"}, RecordDict(), {})

    found = run(tmp_path, newcomer)
    assert {event["client"] for event in found.of("client")} == {f"client-00{i}" for i in range(4)}
    assert found.strategy._asked == set()
