"""The whole round in one process: registration, downlink, local training, checked replies, merge."""

import re

import numpy as np
import pytest
import torch
from flwr.app import Array, MessageType

from client_app import num_examples
from matu_flwr.client.client_round import ClientRound
from matu_flwr.config.settings import Settings, SettingsError
from matu_flwr.merging import ClientUpdate, MergeOptions, aggregate, unify
from matu_flwr.strategies import FederationError, available, create, method
from matu_flwr.strategies.matu import merge_options, unified
from tests.support.federation import Federation
from tests.support.hostile import AS_FLOATS


def corrupt(partition, change):
    """A tamper function that changes the training replies of one client."""

    def tamper(reply, node_config):
        if node_config["partition-id"] == partition and "unified" in reply.content:
            change(reply.content)
        return reply

    return tamper


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_a_federation_runs_and_reports_every_round(tmp_path):
    run = Federation(tmp_path, rounds=3).run()
    assert [event["round"] for event in run.of("round")] == [1, 2, 3]
    assert [event["round"] for event in run.of("accuracy")] == [0, 1, 2, 3]
    assert sorted(run.strategy.task_vectors) == ["dots", "gratings", "squares", "stripes"]
    assert all(vector.norm() > 0 for vector in run.strategy.task_vectors.values())
    replies = run.of("client", lambda event: event["phase"] == "train")
    assert len(replies) == 3 * 4
    assert all(event["status"] == "ok" and event["bytes_up"]["total"] > 0 for event in replies)
    # every test image of every task is counted once: the shares of the holders cover the test set
    tested = sum(task["test_examples"] for event in replies if event["round"] == 2 for task in event["tasks"].values())
    assert tested == 4 * 24


def test_the_same_seed_gives_the_same_bits_whatever_the_node_ids(tmp_path):
    one = Federation(tmp_path, fraction_train=0.5, rounds=3).run()
    two = Federation(tmp_path, fraction_train=0.5, rounds=3, grid={"node_ids": [907, 12, 555, 3]}).run()
    assert same(one.strategy.task_vectors, two.strategy.task_vectors)
    assert [event["client"] for event in one.of("client")] != []
    assert sorted(event["client"] for event in one.of("client")) == sorted(e["client"] for e in two.of("client"))
    other = Federation(tmp_path, fraction_train=0.5, rounds=3, seed=1).run()
    assert not same(one.strategy.task_vectors, other.strategy.task_vectors)


def test_flowers_own_serialiser_changes_nothing(tmp_path):
    plain = Federation(tmp_path).run()
    wired = Federation(tmp_path, grid={"wire": True}).run()
    assert same(plain.strategy.task_vectors, wired.strategy.task_vectors)


@pytest.mark.parametrize("payload", ["vector", "update"])
@pytest.mark.parametrize("downlink", ["client", "global"])
def test_the_first_round_is_the_slow_way_by_hand(tmp_path, payload, downlink):
    """One round through Flower = every client trained by hand, then `aggregate`."""
    run = Federation(tmp_path, rounds=1, matu__payload=payload, matu__downlink=downlink, **AS_FLOATS).run()
    updates = []
    for partition in range(4):
        work = run.by_hand(partition, tmp_path)
        updates.append(ClientUpdate(work.train().vectors, num_examples(work.node), work.node.client))
    expected = aggregate(reversed(updates), merge_options(run.settings.matu))
    assert same(run.strategy.task_vectors, expected.task_vectors)
    assert torch.equal(run.strategy.graph.similarity, expected.similarity)


def test_downlink_is_the_clients_own_operator(tmp_path):
    run = Federation(tmp_path, rounds=1).run()
    for client in run.strategy.clients:
        sent = run.strategy.downlink_vector(client)
        expected = unified(run.settings.matu, {task: run.strategy.task_vectors[task] for task in client.tasks})
        assert torch.equal(sent.vector, expected.vector)
        assert (sent.rescalers, sent.opposites) == (expected.rescalers, expected.opposites)


def test_global_downlink_is_one_vector_for_everybody(tmp_path):
    run = Federation(tmp_path, rounds=2, matu__downlink="global", grid={"wire": True}).run()
    vectors = [run.strategy.downlink_vector(client).vector for client in run.strategy.clients]
    assert all(torch.equal(vector, vectors[0]) for vector in vectors)
    everything = unified(run.settings.matu, run.strategy.task_vectors)
    for client in run.strategy.clients:
        for task in client.tasks:
            received = run.strategy.downlink_vector(client).reconstruct(task)
            assert torch.equal(received, everything.reconstruct(task))
    assert all(event["status"] == "ok" for event in run.of("client"))


def test_updates_add_up_and_vectors_replace(tmp_path):
    run = Federation(tmp_path, rounds=1)
    strategy = run.strategy
    strategy.register(run.grid)
    tau = torch.arange(run.backbone.d, dtype=torch.float32)
    update = ClientUpdate(unify({"dots": tau}), {"dots": 3}, "a")
    strategy.merge([update])
    strategy.merge([update])
    assert torch.equal(strategy.task_vectors["dots"], 2 * tau)
    vectors = Federation(tmp_path, matu__payload="vector").strategy
    vectors.merge([update])
    vectors.merge([update])
    assert torch.equal(vectors.task_vectors["dots"], tau)


@pytest.mark.parametrize("payload", ["vector", "update"])
def test_memory_of_an_earlier_merge_is_used_again_and_nothing_kept_points_there(tmp_path, payload):
    """Rounds with other tasks each time, against `aggregate` into memory of its own."""
    strategy = Federation(tmp_path, matu__payload=payload).strategy
    chance, expected, rooms = torch.Generator().manual_seed(0), {}, set()
    for tasks in (["dots", "gratings", "squares"], ["squares"], ["gratings", "stripes"], ["dots"]):
        vectors = {task: torch.randn(strategy.d, generator=chance) for task in tasks}
        update = ClientUpdate(unify(vectors), dict.fromkeys(tasks, 3), "a")
        strategy.merge([update])
        for task, tau in aggregate([update], strategy.options).task_vectors.items():
            expected[task] = expected[task] + tau if payload == "update" and task in expected else tau
        assert same(strategy.task_vectors, expected)
        rooms.add(strategy._merged.data_ptr())
    assert len(rooms) == 1


def test_a_task_without_a_holder_in_a_round_stays_as_it_was(tmp_path):
    run = Federation(tmp_path, rounds=1).run()
    before = {task: vector.clone() for task, vector in run.strategy.task_vectors.items()}
    step = torch.full((run.backbone.d,), 1e-3)  # about as long as those of the round before
    run.strategy.merge([ClientUpdate(unify({"dots": step}), {"dots": 5}, "a")])
    assert not torch.equal(run.strategy.task_vectors["dots"], before["dots"])
    for task in ("squares", "stripes", "gratings"):
        assert torch.equal(run.strategy.task_vectors[task], before[task])


def test_kappa_zero_is_the_mean_over_holders_through_the_channel(tmp_path):
    run = Federation(tmp_path, rounds=1, matu__kappa=0).run()
    assert all(not others for event in run.of("round") for others in event["related"].values())


def test_individual_shares_nothing_and_keeps_its_own_models(tmp_path):
    run = Federation(tmp_path, rounds=3, strategy="individual").run()
    assert run.strategy.task_vectors == {}
    assert run.strategy.heads == {}
    for event in run.of("client"):
        assert event["bytes_up"]["vector"] == event["bytes_up"]["masks"] == event["bytes_up"]["heads"] == 0
    losses = {event["round"]: event["loss"] for event in run.of("accuracy")}
    assert losses[3] != losses[0], "the models that are tested are the clients' own, trained ones"
    assert len(list((tmp_path / "state").rglob("round-000003.safetensors"))) == 4


def test_local_heads_stay_at_the_clients(tmp_path):
    run = Federation(tmp_path, rounds=2, train__heads="local").run()
    assert run.strategy.heads == {}
    assert all(event["bytes_up"]["heads"] == 0 for event in run.of("client"))
    assert len(list((tmp_path / "state").rglob("round-000002.safetensors"))) == 4


def test_averaged_heads_are_the_example_weighted_mean(tmp_path):
    sent = {}

    def listen(reply, node_config):
        if "heads" in reply.content:
            scalars = reply.content["scalars"]
            for task, examples in zip(scalars["tasks"], scalars["num-examples"], strict=True):
                bias = reply.content["heads"][f"{task}/bias"].numpy()
                sent.setdefault(task, []).append((node_config["partition-id"], examples, bias))
        return reply

    run = Federation(tmp_path, rounds=1, grid={"tamper": listen}).run()
    absent = {client.partition: client.tasks for client in run.strategy.clients}
    for task, head in run.strategy.heads.items():
        for row, found in enumerate(head.bias.tolist()):
            # A class counts only where there are images of it; where nobody has any, the row stays at zero.
            those = [(n, bias) for who, n, bias in sent[task] if row not in absent[who][task].absent]
            total = sum(n for n, _ in those)
            expected = sum(n / total * float(bias[row]) for n, bias in those)
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_bfloat16_halves_the_vector_and_barely_moves_the_result(tmp_path):
    full = Federation(tmp_path, rounds=1, **AS_FLOATS).run()
    half = Federation(tmp_path, rounds=1, wire__vector_dtype="bfloat16", wire__compression="none").run()
    for task, vector in full.strategy.task_vectors.items():
        error = (half.strategy.task_vectors[task] - vector).norm() / vector.norm()
        assert 0 < error < 2**-8
    sizes = [run.of("client")[0]["bytes_up"]["vector"] for run in (full, half)]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.001)


@pytest.mark.parametrize(("dtype", "bits", "most"), [("int8", 8.125, 0.01), ("int4", 4.125, 0.15)])
def test_quantised_vectors_are_smaller_and_move_the_result_little(tmp_path, dtype, bits, most):
    full = Federation(tmp_path, rounds=1, **AS_FLOATS).run()
    codec = {"wire__vector_dtype": dtype, "wire__compression": "none"}
    small = Federation(tmp_path, rounds=1, **codec, grid={"wire": True}).run()
    for task, vector in full.strategy.task_vectors.items():
        error = (small.strategy.task_vectors[task] - vector).norm() / vector.norm()
        assert 0 < error < most
    sizes = [run.of("client")[0]["bytes_up"]["vector"] for run in (full, small)]
    assert sizes[1] == pytest.approx(sizes[0] * bits / 32, rel=0.02)


OTHER_CODECS = [
    ("float32", "none"),
    ("float32", "zstd"),
    ("bfloat16", "none"),
    ("int8", "none"),
    ("int8", "zstd"),
    ("int4", "zstd"),
]


# The default and the smallest every day; every pair of dtype and compression is read back in tests/wire.
@pytest.mark.parametrize(
    ("dtype", "compression"),
    [("bfloat16", "zstd"), ("int4", "none")] + [pytest.param(*pair, marks=pytest.mark.long) for pair in OTHER_CODECS],
)
def test_every_codec_learns(tmp_path, dtype, compression):
    values = {"wire__vector_dtype": dtype, "wire__compression": compression, "matu__error_feedback": dtype == "int4"}
    run = Federation(tmp_path, rounds=3, train__steps=6, **values, grid={"wire": True}).run()
    assert all(event["status"] == "ok" for event in run.of("client"))
    first, last = run.of("accuracy")[0], run.of("accuracy")[-1]
    assert last["mean_accuracy"] > 2 * (2 / 6 + 2 / 8) / 4  # twice chance
    assert last["mean_accuracy"] > first["mean_accuracy"] + 0.1


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_compression_changes_bytes_and_nothing_else(tmp_path, dtype):
    plain = Federation(tmp_path, rounds=2, wire__vector_dtype=dtype, wire__compression="none").run()
    small = Federation(tmp_path, rounds=2, wire__vector_dtype=dtype, wire__compression="zstd").run()
    assert same(plain.strategy.task_vectors, small.strategy.task_vectors)
    for up in ("bytes_up", "bytes_down"):
        for one, other in zip(plain.of("client"), small.of("client"), strict=True):
            assert other[up]["total"] < one[up]["total"] or one[up]["vector"] == 0
            assert other[up]["masks"] < one[up]["masks"] or one[up]["masks"] == 0


# --- bad replies ---


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r: r.pop("masks"), "no record 'masks'"),
        (lambda r: r.pop("unified"), "no record 'unified'"),
        (lambda r: r.pop("scalars"), "no record 'scalars'"),
        (lambda r: r["scalars"].__setitem__("fingerprint", "0" * 64), "θ_p differs"),
        (lambda r: r["scalars"].__setitem__("round", 7), "a payload of round 7"),
        (lambda r: r["unified"].__setitem__("vector", Array(np.ones(5, np.float32))), "unified vector of"),
    ],
)
def test_a_bad_reply_is_refused_and_nothing_else_changes(tmp_path, change, text):
    values = {"rounds": 1, "num_clients": 2, "min_nodes": 1, **AS_FLOATS}
    broken = Federation(tmp_path, **values, grid={"tamper": corrupt(1, change)}).run()
    refused = broken.of("client", lambda event: event["status"] == "refused")
    assert [event["client"] for event in refused] == ["client-001"]
    assert "client 'client-001'" in refused[0]["error"]
    assert text in refused[0]["error"]
    # the others' work of the round is what it is without that client
    alone = Federation(tmp_path, **values, grid={"tamper": lambda r, c: keep_only(r, c, 0)}, round_timeout=1.0).run()
    assert same(broken.strategy.task_vectors, alone.strategy.task_vectors)


def keep_only(reply, node_config, partition):
    if node_config["partition-id"] != partition and "unified" in reply.content:
        return None
    return reply


def test_nan_from_a_client_never_reaches_the_state(tmp_path):
    def poison(records):
        vector = records["unified"]["vector"].numpy()
        vector[17] = np.nan
        records["unified"]["vector"] = Array(vector)

    run = Federation(tmp_path, rounds=2, **AS_FLOATS, grid={"tamper": corrupt(2, poison)}).run()
    refused = run.of("client", lambda event: event["status"] == "refused")
    assert {event["client"] for event in refused} == {"client-002"}
    assert all("NaN or infinity in the unified vector" in event["error"] for event in refused)
    assert all(torch.isfinite(vector).all() for vector in run.strategy.task_vectors.values())


def test_too_many_failures_stop_the_run_with_reasons_by_partition(tmp_path):
    def drop_three(reply, node_config):
        if node_config["partition-id"] in (0, 1, 3) and reply.metadata.message_type == MessageType.TRAIN:
            reply.content.pop("scalars", None)
        return reply

    run = Federation(tmp_path, grid={"tamper": drop_three})
    with pytest.raises(FederationError) as error:
        run.run()
    text = str(error.value)
    assert "round 1: 3 of 4 clients failed, more than max-failed-fraction = 0.5 allows" in text
    assert re.findall(r"client-00\d", text)[::2] == ["client-000", "client-001", "client-003"]


def test_a_client_that_raises_is_reported_with_its_reason(tmp_path, monkeypatch):
    original = ClientRound.train

    def failing(self):
        if self.node.partition == 1:
            raise RuntimeError("disk on fire")
        return original(self)

    monkeypatch.setattr(ClientRound, "train", failing)
    run = Federation(tmp_path, rounds=1).run()
    failed = run.of("client", lambda event: event["status"] == "failed")
    assert [(event["client"], event["error"]) for event in failed] == [
        ("client-001", "RuntimeError: disk on fire (code 2)")
    ]


def test_no_usable_client_is_one_clear_error(tmp_path):
    def other_backbone(reply, node_config):
        reply.content["scalars"]["fingerprint"] = "f" * 64
        return reply

    run = Federation(tmp_path, grid={"tamper": other_backbone})
    with pytest.raises(FederationError, match=r"(?s)^0 of 4 connected nodes can take part.*θ_p differs"):
        run.run()


def test_a_taken_name_and_disagreeing_classes_are_refused(tmp_path):
    def rename(reply, node_config):
        scalars = reply.content.get("scalars", {})
        if "client" in scalars and node_config["partition-id"] == 1:
            scalars["client"] = "client-000"
        if "client" in scalars and node_config["partition-id"] == 3:
            scalars["classes"] = ['["x", "y"]'] * len(scalars["tasks"])
            scalars["absent"] = ["[]"] * len(scalars["tasks"])
        return reply

    everything = {"partition__min_tasks": 4, "partition__max_tasks": 4}
    run = Federation(tmp_path, num_clients=6, grid={"tamper": rename}, **everything)
    clients = run.strategy.register(run.grid)
    # Nobody can tell which of the two is client-000, whoever answered first.
    assert [client.name for client in clients] == ["client-002", "client-004", "client-005"]


def test_too_few_nodes(tmp_path):
    run = Federation(tmp_path, num_clients=1, min_nodes=2, node_timeout=0.01)
    with pytest.raises(
        FederationError, match=r"^1 of 1 connected nodes can take part after \d s, wanted 2 \(min-nodes = 2\)"
    ):
        run.run()


# --- registry ---


def test_registry_names_methods_and_suggests():
    assert {"matu", "individual"} <= available().keys()
    assert method("matu").paper == "https://arxiv.org/abs/2502.06376"
    with pytest.raises(
        SettingsError, match=r"unknown strategy 'matuu'; did you mean 'matu'\? available: matu, pertask-fedavg, fedavg"
    ):
        create("matuu", Settings(), None)


def test_every_round_of_the_history_carries_the_task_graph(tmp_path):
    run = Federation(tmp_path, rounds=2).run()
    for event in run.of("round"):
        assert event["order"] == ["dots", "gratings", "squares", "stripes"]
        matrix = np.array(event["similarity"])
        assert matrix.shape == (4, 4)
        assert np.array_equal(matrix, matrix.T)


def test_merge_options_are_the_settings(tmp_path):
    run = Federation(tmp_path, matu__preset="paper")
    assert run.strategy.options == MergeOptions.paper()
