"""Heads and trainable sets through a whole federation: what travels, what is frozen, what is refused."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

import server_app
from matu_flwr.backbones import Prompts, zero_shot_heads
from matu_flwr.backbones.zero_shot import write_heads
from matu_flwr.client.images import normalise
from matu_flwr.federation.registration import Client
from matu_flwr.strategies import FederationError
from matu_flwr.tasks import load_suite, load_task
from matu_flwr.wire import TaskInfo
from tests.support.federation import Federation
from tests.support.marks import long_but

STRATEGIES = ["matu", "fedavg", "individual"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_zero_shot_heads_are_frozen_and_never_travel(tmp_path, strategy):
    run = Federation(tmp_path, strategy=strategy, rounds=2, train__heads="zero-shot").run()
    assert run.strategy.heads == {}
    for event in run.of("client"):
        assert event["status"] == "ok"
        assert event["bytes_up"]["heads"] == event["bytes_down"]["heads"] == 0
    first, *_, last = run.of("accuracy")
    # before any training the tower already knows drawn shapes: 24 test images a task, 6 or 8 classes
    assert sum(first["accuracy"].values()) / 4 > 0.4
    assert first["accuracy"] != last["accuracy"]


def test_zero_shot_accuracy_of_round_0_is_that_of_the_text_tower(tmp_path):
    run = Federation(tmp_path, rounds=1, train__heads="zero-shot").run()
    suite = load_suite(run.settings.suite)
    folders = {"data_dir": None, "cache_dir": tmp_path / "cache"}
    for task, spec in suite.tasks.items():
        data = load_task(spec, image_size=32, seed=0, **folders)
        head = zero_shot_heads("vit_mini_clip_32", {task: Prompts(data.classes, spec.templates)}, "").heads[task]
        run.backbone.load(None)
        with torch.inference_mode():
            pixels = normalise(torch.tensor(data.test_images), run.backbone.mean, run.backbone.std)
            right = head(run.backbone.module(pixels)).argmax(dim=1) == torch.tensor(data.test_labels)
        assert run.of("accuracy")[0]["accuracy"][task] == pytest.approx(float(right.float().mean()))


def test_heads_from_a_file_are_the_text_tower_s(tmp_path):
    suite = load_suite(Federation(tmp_path).settings.suite)
    prompts = {
        name: Prompts(
            load_task(spec, image_size=32, seed=0, data_dir=None, cache_dir=tmp_path / "cache").classes, spec.templates
        )
        for name, spec in suite.tasks.items()
    }
    write_heads(tmp_path / "heads.safetensors", "vit_mini_clip_32", prompts)
    tower = Federation(tmp_path, rounds=1, train__heads="zero-shot").run()
    file = Federation(
        tmp_path, rounds=1, train__heads="zero-shot", backbone__heads_file=str(tmp_path / "heads.safetensors")
    ).run()
    for task, vector in tower.strategy.task_vectors.items():
        torch.testing.assert_close(file.strategy.task_vectors[task], vector, rtol=1e-3, atol=1e-5)


def test_a_node_with_other_prompts_takes_no_part(tmp_path):
    def other_head(reply, node_config):
        scalars = reply.content.get("scalars", {})
        if "client" in scalars and node_config["partition-id"] == 3:
            scalars["heads"] = ["0123456789abcdef"] * len(scalars["heads"])
        return reply

    everybody = {"partition__min_tasks": 4, "partition__max_tasks": 4}
    run = Federation(tmp_path, train__heads="zero-shot", grid={"tamper": other_head}, **everybody)
    clients = run.strategy.register(run.grid)
    assert [client.partition for client in clients] == [0, 1, 2]


@pytest.mark.parametrize("strategy", long_but(["matu"], STRATEGIES))
@pytest.mark.parametrize(
    "options",
    [
        {"backbone__trainable": "lora", "backbone__lora_rank": 2},
        {"backbone__trainable": "lora", "backbone__linearised": True},
    ],
    ids=str,
)
def test_every_trainable_set_through_a_federation(tmp_path, strategy, options):
    run = Federation(tmp_path, strategy=strategy, rounds=2, **options).run()
    assert run.backbone.d < run.backbone.total
    assert all(event["status"] == "ok" for event in run.of("client"))
    if strategy != "individual":
        for vector in run.strategy.task_vectors.values():
            assert vector.shape == (run.backbone.d,)
            assert vector.norm() > 0


def test_nodes_that_train_something_else_are_refused(tmp_path):
    """The fingerprint covers what is frozen and what is trained: a server with full vectors takes no LoRA client."""
    run = Federation(tmp_path, backbone__trainable="lora", backbone__lora_rank=2)
    run.strategy.model = Federation(tmp_path).backbone
    with pytest.raises(FederationError, match=r"(?s)0 of 4 connected nodes can take part.*θ_p differs"):
        run.run()


@pytest.mark.parametrize("heads", ["zero-shot", "local"])
def test_a_head_that_comes_where_none_travels_is_refused(tmp_path, heads):
    def with_head(reply, node_config):
        if node_config["partition-id"] == 1 and "unified" in reply.content:
            task = reply.content["scalars"]["tasks"][0]
            arrays = {f"{task}/weight": np.zeros((6, 128), np.float32), f"{task}/bias": np.zeros(6, np.float32)}
            reply.content["heads"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        return reply

    run = Federation(tmp_path, rounds=1, train__heads=heads, grid={"tamper": with_head}).run()
    refused = run.of("client", lambda event: event["status"] == "refused")
    assert [event["client"] for event in refused] == ["client-001"]
    assert "record 'heads', expected none: no heads are sent in this run" in refused[0]["error"]
    assert run.strategy.heads == {}


# --- heads on the server ---


@pytest.fixture
def said(monkeypatch):
    """What the server app logs; Flower's logger keeps it from pytest."""
    lines = []
    monkeypatch.setattr(server_app, "log", lambda level, text, *values: lines.append(text % values))
    return lines


def test_the_server_takes_only_heads_that_the_clients_announced(tmp_path, said):
    run = Federation(tmp_path, train__heads="zero-shot")
    clients = run.strategy.register(run.grid)
    suite = load_suite(run.settings.suite)
    heads = server_app.frozen_heads(run.settings, suite, clients, run.backbone)
    assert sorted(heads) == ["dots", "gratings", "squares", "stripes"]
    assert said == []
    announced = TaskInfo(suite_classes(clients, "dots"), 5, 1, "another")
    site = [Client("north", 0, 1, {"dots": announced})]
    assert server_app.frozen_heads(run.settings, suite, site, run.backbone) == {}
    assert (
        "the zero-shot head that the clients have for task dots (digest another) cannot be built on the server"
        in said[0]
    )


def suite_classes(clients, task):
    return next(client.tasks[task].classes for client in clients if task in client.tasks)


def test_a_server_that_cannot_build_heads_goes_on_without(tmp_path, said):
    run = Federation(tmp_path, train__heads="zero-shot")
    clients = run.strategy.register(run.grid)
    settings = Federation(tmp_path, train__heads="zero-shot", backbone__heads_file=str(tmp_path / "none")).settings
    assert server_app.frozen_heads(settings, load_suite(settings.suite), clients, run.backbone) == {}
    assert (
        "no zero-shot head for task dots on the server, so it is neither tested nor exported there: heads file"
        in said[0]
    )


def test_a_server_without_the_clients_gpu_tests_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert server_app.server_device("cuda") == "cpu"
