"""`partition.json`: what a run says of who holds what. On tiny folders, so that nothing is drawn or decoded."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from matu_flwr.client.node import node_of
from matu_flwr.config.settings import Settings
from matu_flwr.run.partition import announced_manifest, remarks, run_manifest
from matu_flwr.run.partition_picture import write_partition
from matu_flwr.run.plan import plan_event
from matu_flwr.tasks import TaskError
from matu_flwr.tasks.partition.manifest import partition_manifest
from matu_flwr.tasks.partition.partition import Share, fingerprint
from tests.models import models as made

TASKS = {"wheat": "cereals", "apple": "", "rice": "cereals"}


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    """A folder with three tasks of 3 classes, 30 training and 12 test images, a suite of them, and a cache."""
    folder = tmp_path_factory.mktemp("farm")
    chance = np.random.default_rng(0)
    for task in TASKS:
        for part, count in (("train", 10), ("test", 4)):
            for name in ("ill", "well", "young"):
                (folder / "data" / task / part / name).mkdir(parents=True)
                for i in range(count):
                    pixels = chance.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / "data" / task / part / name / f"{i:02}.png")
    suite = {
        "name": "farm",
        "tasks": {
            task: {"loader": "folder", "group": group, "options": {"path": task}} for task, group in TASKS.items()
        },
    }
    (folder / "my_farm.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    return folder


@pytest.fixture
def settings(farm):
    def make(**changes):
        values = {
            "suite": str(farm / "my_farm.yaml"),
            "data-dir": str(farm / "data"),
            "cache-dir": str(farm / "cache"),
            "partition.min-examples": 2,
            "partition.max-tasks": 2,
        }
        return Settings.from_flat({**values, **changes})

    return make


@pytest.fixture
def known(farm):
    def make(settings, clients=4):
        return partition_manifest(settings, clients, farm / "data", farm / "cache", 8)

    return make


def registered(settings, count=4, name="client-{:03d}"):
    """Clients of a simulation, as the server knows them: name, partition, and numbers of images."""
    nodes = [node_of(settings, {"partition-id": i, "num-partitions": count}, 8) for i in range(count)]
    return [
        SimpleNamespace(
            name=name.format(i),
            partition=i,
            tasks={
                task: SimpleNamespace(classes=held.classes, train=len(held.train), test=len(held.test))
                for task, held in node.tasks.items()
            },
        )
        for i, node in enumerate(nodes)
    ]


RULES = [
    {},
    {"partition.deal": "dirichlet", "partition.task-alpha": 0.3, "partition.split": "iid"},
]


@pytest.mark.parametrize("changes", RULES)
def test_the_manifest_is_what_the_nodes_hold(settings, known, changes):
    chosen = settings(**changes)
    found = known(chosen)
    nodes = [node_of(chosen, {"partition-id": i, "num-partitions": 4}, 8) for i in range(4)]
    assert found["fingerprint"] == fingerprint(
        [Share(task, held.train.index, held.test.index) for task, held in node.tasks.items()] for node in nodes
    )
    for node, client in zip(nodes, found["clients"], strict=True):
        assert (client["client"], client["partition"]) == (node.client, node.partition)
        assert list(client["tasks"]) == list(node.tasks)
        for task, held in node.tasks.items():
            counts = np.bincount(held.train.labels[held.train.index])
            assert client["tasks"][task] == {
                "train": len(held.train),
                "labels": {str(label): int(counts[label]) for label in np.flatnonzero(counts)},
                "test": len(held.test),
            }


def test_the_manifest_says_what_decided_it(settings, known):
    found = known(settings(seed=3))
    assert list(found) == ["suite", "seed", "partition", "fingerprint", "tasks", "clients"]
    assert (found["suite"], found["seed"]) == ("farm", 3)  # the suite's name: its file lies elsewhere on other machines
    assert found["partition"] == {
        "deal": "even",
        "min-tasks": 1,
        "max-tasks": 2,
        "task-alpha": 1.0,
        "split": "dirichlet",
        "alpha": 0.5,
        "min-examples": 2,
    }
    assert list(found["tasks"]) == list(TASKS)  # the order of the suite
    for task, group in TASKS.items():
        entry = found["tasks"][task]
        assert (entry["group"], entry["classes"]) == (group, ["ill", "well", "young"])
        assert (entry["train"], entry["test"]) == (30, 12)
        assert entry["holders"] == [client["client"] for client in found["clients"] if task in client["tasks"]]
    assert json.loads(json.dumps(found)) == found


def test_two_runs_are_compared_by_their_fingerprints(settings, known):
    assert known(settings())["fingerprint"] == known(settings())["fingerprint"]
    others = [known(settings(seed=1)), known(settings(), 5), *(known(settings(**changes)) for changes in RULES)]
    assert len({found["fingerprint"] for found in others}) == len(others)


def test_what_cannot_be_names_the_task(settings, known):
    with pytest.raises(TaskError, match=r"^task '\w+': 30 training examples cannot give each of 2 holders at least 16"):
        known(settings(**{"partition.min-examples": 16}))


def test_a_simulation_is_known_in_full(settings, known):
    found = run_manifest(settings(), registered(settings()), 8)
    assert found == known(settings())
    named = run_manifest(settings(), registered(settings(), name="site {}"), 8)
    assert [client["client"] for client in named["clients"]] == ["site 0", "site 1", "site 2", "site 3"]
    assert named["fingerprint"] == found["fingerprint"]


def test_of_sites_only_counts_are_known(settings):
    def held(train, test):
        return SimpleNamespace(classes=("ill", "well"), train=train, test=test)

    sites = [
        SimpleNamespace(name="Lund", partition=-1, tasks={"wheat": held(40, 8), "moss": held(7, 3)}),
        SimpleNamespace(name="Alnarp", partition=-1, tasks={"moss": held(5, 2)}),
    ]
    found = run_manifest(settings(), sites, 8)
    assert found == announced_manifest(settings(), sites)
    assert found["fingerprint"] is None
    assert found["tasks"] == {
        "wheat": {
            "group": "cereals",
            "classes": ["ill", "well"],
            "holders": ["Lund"],
            "train": 40,
            "test": 8,
        },
        "moss": {
            "group": "",
            "classes": ["ill", "well"],
            "holders": ["Lund", "Alnarp"],
            "train": 12,
            "test": 5,
        },
    }
    assert found["clients"] == [
        {
            "client": "Lund",
            "partition": -1,
            "tasks": {
                "wheat": {"train": 40, "labels": None, "test": 8},
                "moss": {"train": 7, "labels": None, "test": 3},
            },
        },
        {"client": "Alnarp", "partition": -1, "tasks": {"moss": {"train": 5, "labels": None, "test": 2}}},
    ]


def test_clients_that_are_not_of_the_suite_are_found_out(settings, caplog):
    caplog.set_level("INFO", "flwr")
    clients = registered(settings())
    next(iter(clients[2].tasks.values())).train += 1
    assert run_manifest(settings(), clients, 8)["fingerprint"] is None
    assert "partition.json has counts only: the clients announced other numbers of images than" in caplog.text


def test_a_partition_that_is_missing_leaves_counts(settings):
    clients = registered(settings())
    assert run_manifest(settings(), clients[1:], 8)["fingerprint"] is None


def test_a_server_without_the_data_leaves_counts(settings, tmp_path, caplog):
    caplog.set_level("INFO", "flwr")
    clients = registered(settings())
    elsewhere = settings(**{"data-dir": str(tmp_path / "none"), "cache-dir": str(tmp_path / "cache")})
    found = run_manifest(elsewhere, clients, 8)
    assert found["fingerprint"] is None
    assert [list(client["tasks"]) for client in found["clients"]] == [list(client.tasks) for client in clients]
    assert "partition.json has counts only: task" in caplog.text


@pytest.mark.parametrize("full", [True, False])
def test_both_files_are_written(settings, tmp_path, full):
    clients = registered(settings())
    found = run_manifest(settings(), clients, 8) if full else announced_manifest(settings(), clients)
    written = write_partition(found, tmp_path / "new" / "folder")
    assert written == {
        "partition": str(tmp_path / "new" / "folder" / "partition.json"),
        "partition image": str(tmp_path / "new" / "folder" / "partition.png"),
    }
    assert json.loads((tmp_path / "new" / "folder" / "partition.json").read_text()) == found
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["partition.json", "partition.png"]


def test_what_is_odd_about_the_files_is_a_note_of_the_plan(farm, tmp_path):
    """One line for each task, on the screen and in the history."""
    shutil.copytree(farm / "data", tmp_path / "data")
    (tmp_path / "data" / "rice" / "train" / "ill" / "a.heic").write_bytes(b"?")
    odd = Settings.from_flat({"suite": str(farm / "my_farm.yaml"), "partition.min-examples": 2})
    manifest = partition_manifest(odd, 4, tmp_path / "data", tmp_path / "cache", 8)
    told = remarks(manifest)
    assert told == ["task 'rice': train: files passed over, .heic: 1 (ill/a.heic)"]
    event = plan_event(made.strategy(), made.SETTINGS, 1, {}, made.backbone(), told)
    assert event["notes"][-1:] == told
