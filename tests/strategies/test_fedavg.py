"""FedAvg over clients with different tasks: one vector for everybody, no masks."""

import pytest
import torch

from matu_flwr.backbones import zero_head
from matu_flwr.client import fit
from matu_flwr.client.node import node_of
from matu_flwr.merging import PAPER, ClientUpdate, unify
from matu_flwr.merging.codes import vector_bytes
from matu_flwr.seeds import derive_seed
from tests.support.federation import Federation
from tests.support.hostile import AS_FLOATS


def update(client, vector, **examples):
    """What the server gets of a client: its one vector, under all of its tasks."""
    return ClientUpdate(unify(dict.fromkeys(examples, torch.tensor(vector)), **PAPER), examples, client)


@pytest.fixture
def strategy(tmp_path):
    """Registered, with a model of three parameters."""
    run = Federation(tmp_path, strategy="fedavg")
    run.strategy.register(run.grid)
    run.strategy.d = 3
    return run.strategy


def test_the_mean_is_weighted_by_all_images_of_a_client(strategy):
    updates = [update("a", [1.0, -2.0, 0.0], dots=5, stripes=10), update("b", [5.0, 2.0, 4.0], dots=5)]
    assert strategy.merge(updates) is None
    # weights 15/20 and 5/20, by hand; every task has the same vector, also those that nobody sent
    assert sorted(strategy.task_vectors) == ["dots", "gratings", "squares", "stripes"]
    for vector in strategy.task_vectors.values():
        assert vector.tolist() == [2.0, -1.0, 1.0]


def test_the_order_of_replies_plays_no_part(strategy):
    chance = torch.Generator().manual_seed(0)
    updates = [update(name, torch.randn(3, generator=chance).tolist(), dots=n) for n, name in enumerate("abcdefg", 1)]
    strategy.merge(updates)
    forwards = strategy.task_vectors["dots"]
    strategy.merge(updates[::-1])
    assert torch.equal(forwards, strategy.task_vectors["dots"])


def test_everybody_starts_from_the_one_vector(tmp_path):
    run = Federation(tmp_path, strategy="fedavg", rounds=1)
    run.strategy.register(run.grid)
    assert all(run.strategy.downlink_vector(client) is None for client in run.strategy.clients)
    run.run()
    mean = run.strategy.task_vectors["dots"]
    for client in run.strategy.clients:
        sent = run.strategy.downlink_vector(client)
        assert all(torch.equal(sent.reconstruct(task), mean) for task in client.tasks)


def test_a_round_is_joint_training_by_hand(tmp_path):
    run = Federation(tmp_path, strategy="fedavg", rounds=1, **AS_FLOATS).run()
    vectors, images = [], []
    for partition in range(4):
        work = run.by_hand(partition, tmp_path)
        vectors.append(work.train().vectors.vector)
        images.append(sum(len(task.train) for task in work.node.tasks.values()))
    expected = sum(n / sum(images) * vector.double() for n, vector in zip(images, vectors, strict=True))
    torch.testing.assert_close(run.strategy.task_vectors["dots"].double(), expected, rtol=1e-6, atol=1e-9)


def test_one_client_with_one_task_is_local_fine_tuning(tmp_path):
    suite = tmp_path / "one.yaml"
    suite.write_text(
        "name: one\ntasks: {dots: {loader: generated, options: {family: counts, style: dots}}}\nmax_train: 48\n"
    )
    values = {"num_clients": 1, "min_nodes": 1, "rounds": 1, "suite": str(suite), **AS_FLOATS}
    run = Federation(tmp_path, strategy="fedavg", **values).run()
    node = node_of(run.settings, {"partition-id": 0, "num-partitions": 1}, run.backbone.image_size)
    (task,) = node.tasks
    alone = fit(
        run.backbone,
        None,
        zero_head(len(node.tasks[task].classes), run.backbone.num_features),
        node.tasks[task].train,
        run.settings.train,
        seed=derive_seed(run.settings.seed, "fit", 1, node.client, task),
        task=task,
    )
    assert torch.equal(run.strategy.task_vectors[task], alone.task_vector)
    assert torch.equal(run.strategy.heads[task].weight, alone.head.weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_a_client_sends_and_gets_one_vector_without_masks(tmp_path, dtype):
    codec = {"wire__vector_dtype": dtype, "wire__compression": "none"}
    run = Federation(tmp_path, strategy="fedavg", rounds=2, **codec, grid={"wire": True}).run()
    several = run.of("client", lambda event: len(event["tasks"]) > 1)
    assert several
    for event in run.of("client"):
        assert event["status"] == "ok"
        assert event["bytes_up"]["masks"] == event["bytes_down"]["masks"] == 0
    size = vector_bytes(run.backbone.d, dtype)
    trained = [event for event in several if event["phase"] == "train"]
    assert {event["bytes_up"]["vector"] - size for event in trained} < set(range(400))
    assert all(len(event["related"]) == 0 for event in run.of("round"))
