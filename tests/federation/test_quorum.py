"""How many usable replies a round needs, and a task."""

import re

import pytest
import torch

from matu_flwr.config.settings import Settings, SettingsError
from matu_flwr.federation.quorum import without_tasks
from matu_flwr.merging import ClientUpdate, SeparateTaskVectors, unify
from matu_flwr.run.console import round_line
from matu_flwr.strategies import FederationError, prepared
from tests.support.scripted import Scripted

FOUR = [{"dots": 10}, {"dots": 20}, {"stripes": 30}, {"dots": 5, "stripes": 5}]


def failing(clients, from_round=2, phase="train"):
    return lambda round_, asked, client: round_ >= from_round and asked == phase and client[-1] in clients


# --- of a round ---


def test_a_round_on_one_site_alone_stops_the_run():
    """Before, both rounds ran with one of two sites, and the run "completed"."""
    run = Scripted("matu", [{"dots": 9}, {"dots": 9}], rounds=3, fails=failing("0"))
    with pytest.raises(FederationError) as stopped:
        run.run()
    assert str(stopped.value) == (
        "round 2: 1 usable replies of 2 clients that were asked, wanted 2 (min-nodes = 2):\n"
        "  client-000: RuntimeError: as the script says (code 2)\n"
        "put right what stands there and resume the run, or lower min-nodes"
    )
    assert run.strategy.completed == 1


def test_the_rule_holds_for_the_last_test_too():
    run = Scripted("matu", [{"dots": 9}, {"dots": 9}], rounds=1, fails=failing("0", 1, "evaluate"))
    with pytest.raises(FederationError, match="round 1: 1 usable replies of 2"):
        run.run()


@pytest.mark.parametrize(
    ("min_nodes", "broken", "stops"), [(3, "0", False), (3, "01", True), (4, "0", True), (1, "012", False)]
)
def test_as_many_replies_as_min_nodes_are_enough(min_nodes, broken, stops):
    values = {"rounds": 2, "max_failed_fraction": 0.9, "min_nodes": min_nodes}
    run = Scripted("matu", FOUR, fails=failing(broken), **values)
    if stops:
        with pytest.raises(FederationError, match=rf"wanted {min_nodes} \(min-nodes = {min_nodes}\)"):
            run.run()
    else:
        run.run()


def test_a_round_that_asks_fewer_may_lose_as_many_as_may_fail():
    # A reply that is alone in round 1 is measured by what its training steps can do: the scripted vectors are long.
    values = {"rounds": 3, "min_nodes": 3, "train__lr": 1.0}
    run = Scripted("matu", FOUR, fraction_train=0.25, **values).run()
    assert all(len(clients) == 1 for clients in run.rounds_of("train").values())
    asked = Scripted("matu", FOUR, fraction_train=0.5, **values).run().rounds_of("train")
    fails = {(2, "train", asked[2][0])}
    lossy = Scripted("matu", FOUR, fraction_train=0.5, fails=lambda *what: what in fails, **values).run()
    assert [event["failed"] for event in lossy.of("round")] == [0, 1, 0]
    broken = Scripted("matu", FOUR, fraction_train=0.5, fails=failing("0123"), **values)
    with pytest.raises(FederationError, match="round 2: 2 of 2 clients failed"):
        broken.run()


# --- of a task ---


@pytest.mark.parametrize("strategy", ["matu", "pertask-fedavg", "matfl"])
def test_a_task_with_too_few_replies_keeps_its_vector_and_head(strategy):
    """From round 2 on, client 3 fails: stripes has one reply of two, dots still has two of three."""
    after = {}

    def kept(strategy):
        vectors = {task: vector.clone() for task, vector in strategy.task_vectors.items()}
        after[strategy.completed] = vectors, dict(strategy.heads)

    alone = {"matu__kappa": 0} if strategy == "matu" else {}  # nothing is borrowed of another task
    run = Scripted(
        strategy,
        FOUR,
        rounds=2,
        min_clients=2,
        **alone,
        fails=failing("3"),
        vector=lambda round_, client, task: [float(round_), float(client[-1]), 1.0, -1.0],
        bias=lambda round_, client, task: [float(round_), 0.5],
        after_round=kept,
    ).run()
    (first, heads), (second, later) = after[1], after[2]
    assert torch.equal(second.get("stripes", torch.zeros(4)), first.get("stripes", torch.zeros(4)))
    assert later["stripes"] is heads["stripes"]
    assert later["dots"].bias.tolist() == [2.0, 0.5]
    if strategy != "matfl":
        assert not torch.equal(second["dots"], first["dots"])
    before, event = run.of("round")
    assert "too_few" not in before
    assert event["too_few"] == {"stripes": 1}
    assert "too few replies: stripes (1)" in round_line(2, 2, None, event)


def test_if_all_tasks_have_too_few_nothing_changes():
    run = Scripted("matu", [{"dots": 9}, {"stripes": 9}], rounds=2, min_clients=2).run()
    assert run.strategy.task_vectors == {}
    assert [event["too_few"] for event in run.of("round")] == [{"dots": 1, "stripes": 1}] * 2


def test_what_is_left_of_an_update_is_what_it_was():
    taus = {task: torch.randn(16, generator=torch.Generator().manual_seed(i)) for i, task in enumerate("abc")}
    for vectors in (unify(taus), SeparateTaskVectors(taus)):
        update = ClientUpdate(vectors, {"a": 1, "b": 2, "c": 3}, "x")
        (found,) = without_tasks([update], {"b": 1})
        assert found.num_examples == {"a": 1, "c": 3}
        assert found.vectors.tasks == ["a", "c"]
        for task in "ac":
            assert torch.equal(found.vectors.reconstruct(task), vectors.reconstruct(task))
        assert without_tasks([update], "abc") == []


@pytest.mark.parametrize(
    ("strategy", "why"), [("fedavg", "has one vector for all tasks"), ("individual", "sends nothing to merge")]
)
def test_min_clients_where_tasks_are_not_merged_one_by_one(strategy, why):
    text = f"min-clients = 2: strategy {strategy!r} {why}, so that no task can be left as it is; set min-nodes"
    with pytest.raises(SettingsError, match="^" + re.escape(text)):
        prepared(Settings.from_flat({"strategy": strategy, "min-clients": 2}))
