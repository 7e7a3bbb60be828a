"""What is predicted before the first round, against what the wire really counts."""

import json
from datetime import datetime

import numpy as np
import pytest

from matu_flwr import wire
from matu_flwr.config.settings import Settings
from matu_flwr.merging import unify
from matu_flwr.run.history import read_history
from matu_flwr.run.plan import notes, now, plan_event, predictions, resident_bytes, trainable, versions
from matu_flwr.run.summary import plan_of
from tests.models import models as made
from tests.support import whole_run
from tests.support.federation import tiny_values


def settings(**changes):
    return Settings.from_flat({"backbone.image-size": 16} | changes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("heads", ["average", "local"])
def test_predicted_bytes_are_what_the_wire_counts(dtype, heads):
    chosen = settings(**{"wire.vector-dtype": dtype, "train.heads": heads})
    strategy = made.strategy(chosen)
    predicted = predictions(strategy, chosen)["bytes_up_per_client"]
    for client in strategy.clients:
        vectors = {task: made.task_vectors()[task] for task in client.tasks}
        shared = {task: made.heads()[task] for task in client.tasks} if heads == "average" else {}
        examples = dict.fromkeys(client.tasks, 20)
        uplink = wire.Uplink(1, strategy.model.fingerprint, unify(vectors), examples, shared, {})
        counted = wire.count_bytes(wire.encode_uplink(uplink, dtype))
        arrays = counted["vector"] + counted["masks"] + counted["heads"]
        several = len(vectors) > 1  # one task: its mask and rescaler are implied
        names = [
            "vector",
            *(["vector/scales"] if dtype.startswith("int") else ()),
            *(vectors if several else ()),
            *(f"{t}/{part}" for t in shared for part in ("weight", "bias")),
        ]
        # Flower counts an array's name and its header of 128 bytes; rescalers travel with the scalars
        assert arrays - sum(128 + len(name) for name in names) == predicted[client.name] - 4 * several * len(vectors)
        assert counted["total"] == pytest.approx(predicted[client.name], rel=0.01)


def test_predicted_bytes_by_hand():
    predicted = predictions(made.strategy(), made.SETTINGS)["bytes_up_per_client"]
    d, f = made.backbone().d, made.backbone().num_features
    heads = {"client-000": 4 * (2 + 3) * (f + 1), "client-001": 4 * 3 * (f + 1)}
    assert predicted == {
        "client-000": 2 * d + 2 * (-(-d // 8) + 4) + heads["client-000"],  # two tasks: two masks, two rescalers
        "client-001": 2 * d + heads["client-001"],  # bfloat16; one task: its mask is implied
    }


def test_quantised_replies_are_held_as_bfloat16():
    """Fewer bytes in flight than with bfloat16, as many in the server's memory."""
    found = {d: predictions(made.strategy(c := settings(**{"wire.vector-dtype": d})), c) for d in ("bfloat16", "int4")}
    up = {d: sum(predicted["bytes_up_per_client"].values()) for d, predicted in found.items()}
    held = {d: predicted["server_memory_bytes"] - 5 * max(predicted["bytes_up_per_client"].values()) * 2
            for d, predicted in found.items()}  # fmt: skip
    assert up["int4"] < 0.5 * up["bfloat16"]
    assert held["int4"] == pytest.approx(held["bfloat16"], rel=0.01)


def test_a_method_that_shares_nothing_sends_nothing():
    chosen = settings(strategy="individual")
    predicted = predictions(made.strategy(chosen), chosen)
    assert set(predicted["bytes_up_per_client"].values()) == {0}
    assert predicted["server_memory_bytes"] <= resident_bytes()


def test_predicted_memory_grows_with_what_is_held():
    few, many = (predictions(made.strategy(s), s) for s in (settings(window=1), settings(window=4)))
    assert few["server_memory_bytes"] < many["server_memory_bytes"]
    assert few["client_memory_bytes"] == 4 * made.backbone().d * (4 + 2 + 2 * 2)


def test_the_event():
    event = plan_event(made.strategy(), made.SETTINGS, 123, {"corn": "plants"}, made.backbone())
    assert event["event"] == "plan"
    assert event["run_id"] == "123"
    assert [(task["name"], task["group"]) for task in event["tasks"]] == [("corn", "plants"), ("rice", "")]
    assert event["tasks"][1] == {
        "name": "rice",
        "group": "",
        "classes": 3,
        "train": 40,
        "test": 16,
        "holders": ["client-000", "client-001"],
    }
    assert event["clients"][1] == {"client": "client-001", "partition": 1, "tasks": {"rice": 20}}
    described = event["backbone"]
    assert described["d"] == described["total"] == sum(described["parts"].values()) == made.backbone().d
    assert described["trainable"] == "all parameters"
    assert described["image_size"] == 16
    assert event["settings"]["backbone"]["image-size"] == 16
    assert list(event["changed"].items()) == sorted(made.SETTINGS.changed().items())
    assert event["changed"]["backbone.image-size"] == 16
    assert {"matu_flwr", "flwr", "ray", "torch", "timm", "python"} <= event["versions"].keys()
    assert json.loads(json.dumps(event, allow_nan=False)) == event


def test_what_was_typed_reaches_the_run_and_its_plan(tmp_path):
    """Flower hands the ServerApp every key, most at their defaults; what was typed stands in the grid's run."""
    typed = tiny_values(tmp_path, rounds=1, matu__preset="paper", matu__payload="update", evaluate_every=1)
    whole_run.run(tmp_path / "run", typed)
    plan = plan_of(read_history(tmp_path / "run" / "history.jsonl"))
    assert (plan["settings"]["matu"]["payload"], plan["settings"]["matu"]["magnitude"]) == ("update", "max")
    assert "matu.payload" not in plan["changed"]
    assert (plan["changed"]["matu.magnitude"], plan["changed"]["rounds"]) == ("max", 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainable": "lora", "lora-rank": 4}, "LoRA adapters of rank 4 on qkv,attn.proj,fc1,fc2"),
        ({}, "all parameters"),
        ({"linearised": True}, "all parameters, linearised at θ_p"),
    ],
)
def test_what_is_trained_in_words(changes, words):
    chosen = settings(**{f"backbone.{key}": value for key, value in changes.items()})
    assert trainable(chosen.backbone) == words


def test_frozen_parameters_take_memory_at_a_client():
    few, many = (predictions(made.strategy(), made.SETTINGS, frozen) for frozen in (0, 1000))
    assert many["client_memory_bytes"] - few["client_memory_bytes"] == 4000


def test_a_note_where_clients_hold_more_than_was_asked_for():
    chosen = settings(**{"partition.max-tasks": 1})
    (note,) = notes(made.strategy(chosen), chosen)
    assert note.startswith("2 clients hold up to 2 tasks, more than partition.max-tasks = 1")
    assert notes(made.strategy(), made.SETTINGS) == []


def test_the_clock_is_utc_and_memory_is_in_bytes():
    assert datetime.fromisoformat(now()).utcoffset().total_seconds() == 0
    assert 10**7 < resident_bytes() < 10**11


def test_a_package_that_is_not_installed_has_no_version():
    """Images for real nodes have no Ray."""
    assert versions("numpy", "no-such-package-9f3") == {"numpy": np.__version__}
