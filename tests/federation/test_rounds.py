"""The server's loop by hand: who is asked when, which round's models a test is of, and when a run stops."""

import re

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from matu_flwr.seeds import derive_seed
from matu_flwr.strategies import FederationError
from tests.support.scripted import Scripted

TWO = {"dots": 30, "stripes": 10}
FOUR = [{"dots": 10}, {"dots": 20}, {"stripes": 30}, {"dots": 5, "stripes": 5}]
EVERYBODY = {f"client-00{i}" for i in range(4)}


# --- which round's models are tested ---


def test_what_is_tested_in_a_round_is_what_the_round_before_gave():
    """Round r is tested by the messages of round r + 1; the last one by messages of its own."""
    right = {(1, "train"): 1, (2, "train"): 2, (3, "train"): 3, (3, "evaluate"): 4}
    run = Scripted(
        "individual", [TWO, TWO], rounds=3, tested=lambda round_, phase, *_: (right[round_, phase], 10, 0.5)
    ).run()
    found = {event["round"]: event["accuracy"] for event in run.of("accuracy")}
    assert found == {round_: {"dots": (round_ + 1) / 10, "stripes": (round_ + 1) / 10} for round_ in range(4)}
    for phase, earlier in (("train", 1), ("evaluate", 0)):
        for event in run.of("client", phase=phase):
            assert [task["evaluated_round"] for task in event["tasks"].values()] == [event["round"] - earlier] * 2


def test_when_clients_are_asked_to_test():
    run = Scripted("individual", FOUR, rounds=5, evaluate_every=2).run()
    asked = {d.round for phase, _, d in run.asked if phase == "train" and d.evaluate}
    assert sorted(asked) == [1, 3, 5]  # the models of rounds 0, 2 and 4
    assert sorted(run.rounds_of("evaluate")) == [5]
    assert all(set(clients) == EVERYBODY for clients in run.rounds_of("evaluate").values())
    assert [event["round"] for event in run.of("accuracy")] == [0, 2, 4, 5]
    assert [event["round"] for event in run.of("round") if event["tested"]] == [2, 4, 5]


def test_a_run_without_rounds_asks_nobody():
    run = Scripted("individual", [TWO, TWO])
    run.strategy.start(run.grid, num_rounds=0)
    assert run.asked == []


def test_accuracy_and_loss_are_over_all_test_images():
    counts = {"client-000": (3, 4, 1.0), "client-001": (1, 6, 0.5)}
    run = Scripted("individual", [{"dots": 9}] * 2, rounds=1, tested=lambda _, __, client, ___: counts[client]).run()
    for event in run.of("accuracy"):
        assert event["accuracy"] == {"dots": 0.4}  # 4 of 10
        assert event["loss"] == {"dots": pytest.approx(0.7)}  # (4 · 1 + 6 · 0.5) / 10
        assert (event["mean_accuracy"], event["worst_task"], event["worst_accuracy"]) == (0.4, "dots", 0.4)


# --- who is asked ---


def test_those_with_the_most_tasks_are_asked_first():
    hands = [{"a": 1}, {"a": 1, "b": 1}, {"b": 1}, {"a": 1, "b": 1, "c": 1}]
    run = Scripted("individual", hands, rounds=1).run()
    assert run.rounds_of("train") == {1: ["client-003", "client-001", "client-000", "client-002"]}


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 10), (0.5, 5), (0.34, 3), (0.36, 4), (0.01, 1)])
def test_a_share_of_the_clients_is_drawn_anew_every_round(fraction, count):
    strategy = Scripted("individual", [{"a": 1}] * 10, fraction_train=fraction).registered().strategy
    drawn = [strategy.sample(round_) for round_ in range(1, 9)]
    for clients in drawn:
        partitions = [client.partition for client in clients]
        assert len(partitions) == count
        assert partitions == sorted(set(partitions))
    assert len({tuple(client.name for client in clients) for clients in drawn}) > 1 or count == 10
    assert strategy.sample(3) == drawn[2]


def test_who_is_drawn_is_a_matter_of_seed_and_round():
    strategy = Scripted("individual", [{"a": 1}] * 10, fraction_train=0.4, seed=7).registered().strategy
    drawn = np.random.default_rng(derive_seed(7, "sample", 3)).choice(10, 4, replace=False)
    assert [client.partition for client in strategy.sample(3)] == sorted(drawn)


def test_the_loss_of_training_is_told_of_training_alone():
    run = Scripted("individual", [TWO, TWO], rounds=1).run()
    for event in run.of("client"):
        for task, images in TWO.items():
            told = event["tasks"][task]
            assert told["examples"] == images
            assert told.get("train_loss") == (0.25 if event["phase"] == "train" else None)
            assert (told["test_correct"], told["test_examples"], told["test_loss"]) == (1, 2, 0.5)


@pytest.mark.parametrize("strategy", ["ties", "emr", "task-arithmetic"])
def test_one_shot_methods_take_everybody_in_the_last_round_alone(strategy):
    """Whoever was drawn trains alone before it; what is merged comes from all."""
    run = Scripted(strategy, FOUR, rounds=3, fraction_train=0.5).run()
    trained = run.rounds_of("train")
    assert {round_: len(clients) for round_, clients in trained.items()} == {1: 2, 2: 2, 3: 4}
    assert set(trained[3]) == EVERYBODY
    assert [event["clients"] for event in run.of("round")] == [2, 2, 4]
    assert sorted(run.strategy.task_vectors) == ["dots", "stripes"]


def test_a_client_is_told_the_last_round_of_which_the_server_has_its_reply():
    run = Scripted(
        "individual", FOUR, rounds=3, fails=lambda round_, phase, client: (round_, client) == (2, "client-001")
    ).run()
    told = {(phase, d.round, client): d.trained for phase, client, d in run.asked}
    assert [told["train", round_, "client-000"] for round_ in (1, 2, 3)] == [0, 1, 2]
    assert [told["train", round_, "client-001"] for round_ in (1, 2, 3)] == [0, 1, 1]
    assert told["evaluate", 3, "client-001"] == 3  # a test is no training
    assert run.strategy.trained == dict.fromkeys(sorted(EVERYBODY), 3)


# --- how many may fail ---


def failing(count, phase="train"):
    """In round 2 the first clients raise."""
    return lambda round_, asked, client: round_ == 2 and asked == phase and int(client[-1]) < count


@pytest.mark.parametrize(("allowed", "most"), [(0.0, 0), (0.25, 1), (0.3, 1), (0.5, 2), (0.75, 3)])
def test_exactly_the_fraction_may_fail_and_one_more_stops_the_run(allowed, most):
    values = {"rounds": 3, "max_failed_fraction": allowed, "min_nodes": 1}
    run = Scripted("individual", FOUR, fails=failing(most), **values).run()
    assert [event["failed"] for event in run.of("round")] == [0, most, 0]
    text = f"round 2: {most + 1} of 4 clients failed, more than max-failed-fraction = {allowed:g} allows"
    stopped = Scripted("individual", FOUR, fails=failing(most + 1), **values)
    with pytest.raises(FederationError, match=re.escape(text)):
        stopped.run()
    assert [event["round"] for event in stopped.of("round")] == [1]
    assert stopped.strategy.completed == 1


def test_the_fraction_is_of_those_that_were_asked():
    """One of two that were drawn is a half, though it is one of four that are there."""
    values = {"rounds": 2, "fraction_train": 0.5, "max_failed_fraction": 0.4}
    first = Scripted("individual", FOUR, **values).run().rounds_of("train")[1][0]
    with pytest.raises(FederationError, match=r"^round 1: 1 of 2 clients failed, more than max-failed-fr"):
        Scripted("individual", FOUR, fails=lambda _, __, client: client == first, **values).run()


def test_a_round_of_tests_may_fail_as_one_of_training_may():
    values = {"rounds": 2, "max_failed_fraction": 0.5}
    Scripted("individual", FOUR, fails=failing(2, "evaluate"), **values).run()
    with pytest.raises(FederationError, match="round 2: 3 of 4 clients failed"):
        Scripted("individual", FOUR, fails=failing(3, "evaluate"), **values).run()


def test_what_a_round_says_of_itself():
    run = Scripted("individual", FOUR, rounds=2, max_failed_fraction=0.5, fails=failing(2)).run()
    first, second = run.of("round")
    assert (first["clients"], first["failed"], first["tasks_without_holder"]) == (4, 0, [])
    assert (second["clients"], second["failed"], second["tasks_without_holder"]) == (4, 2, [])
    for event in (first, second):
        replies = run.of("client", phase="train", round=event["round"])
        assert event["bytes_up"] == sum(reply["bytes_up"]["total"] for reply in replies if reply["bytes_up"])
        assert event["bytes_down"] == sum(reply["bytes_down"]["total"] for reply in replies)
    lost = Scripted(
        "individual", FOUR, rounds=1, max_failed_fraction=0.5, fails=lambda _, __, client: client[-1] in "23"
    ).run()
    assert lost.of("round")[0]["tasks_without_holder"] == ["stripes"]


# --- what is merged ---


def test_only_those_who_answered_are_merged():
    """dots: 10 images of the first client, 20 of the second; the first fails in round 2."""
    after = {}
    Scripted(
        "pertask-fedavg",
        [{"dots": 10}, {"dots": 20}],
        rounds=2,
        min_nodes=1,
        vector=lambda round_, client, _: [3.0 * round_ if client == "client-000" else 0.0, 0.0, 0.0, float(round_)],
        bias=lambda round_, client, _: [3.0 * round_ if client == "client-000" else 0.0, 1.0],
        fails=failing(1),
        after_round=lambda strategy: after.setdefault(
            strategy.completed, (strategy.task_vectors["dots"].tolist(), strategy.heads["dots"].bias.tolist())
        ),
    ).run()
    assert after == {1: ([1.0, 0.0, 0.0, 1.0], [1.0, 1.0]), 2: ([0.0, 0.0, 0.0, 2.0], [0.0, 1.0])}


# --- replies that nobody waits for, and those that never come ---


def by_hand(run, replies):
    """Round 1 of training without Flower's loop; `replies` chooses among those of the clients, in partition order."""
    run.registered()
    messages = run.strategy.configure_train(1, ArrayRecord(), ConfigRecord(), run.grid)
    found = sorted(run.grid.send_and_receive(messages), key=lambda reply: reply.metadata.src_node_id)
    run.strategy.aggregate_train(1, replies(found))
    return run


def test_a_second_reply_and_one_of_a_stranger_are_passed_over():
    def twice(replies):
        stranger = Message(RecordDict(), reply_to=replies[0])
        stranger.metadata.__dict__["_src_node_id"] = 77
        return [*replies, replies[0], stranger]

    run = by_hand(Scripted("pertask-fedavg", [{"dots": 10}, {"dots": 20}], rounds=1), twice)
    events = run.of("client")
    assert [(event["client"], event["status"]) for event in events] == [("client-000", "ok"), ("client-001", "ok")]
    (round_,) = run.of("round")
    assert (round_["clients"], round_["failed"]) == (2, 0)
    assert round_["bytes_up"] == sum(event["bytes_up"]["total"] for event in events)


def test_a_client_that_never_answers_has_failed_once():
    # The one reply that comes is measured by what its training steps can do: the scripted vectors are long.
    run = Scripted("pertask-fedavg", [{"dots": 10}, {"dots": 20}], rounds=1, min_nodes=1, train__lr=1.0)
    by_hand(run, lambda replies: replies[1:])
    failed = [(event["client"], event["status"], event["error"]) for event in run.of("client")]
    assert failed == [("client-001", "ok", None), ("client-000", "failed", "no reply")]
    assert run.of("round")[0]["failed"] == 1
