"""Nodes with their own images: `data-path` and `tasks` in the node config instead of a share of a suite."""

import logging

import numpy as np
import pytest
from PIL import Image

import client_app
from matu_flwr.backbones import backbone_arguments, create_backbone
from matu_flwr.config.settings import Settings
from matu_flwr.federation import registration
from matu_flwr.strategies import FederationError, ManyTaskStrategy, create
from matu_flwr.tasks.loaders.generated import FAMILIES
from tests.support import whole_run
from tests.support.federation import tiny_values
from tests.support.local_grid import LocalGrid


def make_images(root, task, classes, count=12):
    rng = np.random.default_rng(len(task))
    for split, images in (("train", count), ("test", 4)):
        for level, name in enumerate(classes):
            folder = root / task / split / name
            folder.mkdir(parents=True)
            for i in range(images):
                pixels = rng.integers(0, 60, (20, 24, 3)) + 90 * level
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


def federation(tmp_path, nodes, **values):
    logging.getLogger("flwr").setLevel(logging.ERROR)
    settings = Settings.from_run_config(
        {"rounds": 2, "train.steps": 2, "train.batch-size": 8, "state-dir": str(tmp_path / "state"), **values}
    )
    backbone = create_backbone(**backbone_arguments(settings))
    events = []
    strategy = create("matu", settings, backbone, observer=events.append)
    return strategy, LocalGrid(client_app.app, nodes), events


def test_sites_with_their_own_folders_federate(tmp_path):
    make_images(tmp_path / "north", "scans", ["dark", "light"])
    make_images(tmp_path / "north", "leaves", ["ill", "well"])
    make_images(tmp_path / "south", "scans", ["dark", "light"])
    nodes = [
        {"site": "south", "data-path": str(tmp_path / "south"), "tasks": "scans"},
        {"site": "north", "data-path": str(tmp_path / "north"), "tasks": "scans, leaves"},
    ]
    strategy, grid, events = federation(tmp_path, nodes)
    strategy.start(grid)
    assert [client.name for client in strategy.clients] == ["north", "south"]
    assert {task: [client.name for client in strategy.holders(task)] for task in strategy.classes} == {
        "leaves": ["north"],
        "scans": ["north", "south"],
    }
    assert sorted(strategy.task_vectors) == ["leaves", "scans"]
    assert all(event["status"] == "ok" for event in events if event["event"] == "client")


def test_all_folders_are_tasks_unless_named(tmp_path):
    make_images(tmp_path / "north", "scans", ["dark", "light"])
    make_images(tmp_path / "north", "leaves", ["ill", "well"])
    nodes = [{"site": "north", "data-path": str(tmp_path / "north")}]
    strategy, grid, _ = federation(tmp_path, nodes, **{"min-nodes": 1})
    strategy.register(grid)
    assert list(strategy.classes) == ["leaves", "scans"]


def test_a_misnamed_folder_at_the_first_partition_turns_nobody_else_away(tmp_path, caplog):
    for partition in range(3):
        make_images(tmp_path / str(partition), "scans", ["dark", "light" if partition else "very light"])
    nodes = [{"partition-id": i, "data-path": str(tmp_path / str(i))} for i in range(3)]
    strategy, grid, _ = federation(tmp_path, nodes)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    logging.getLogger("flwr").propagate = True
    with caplog.at_level(logging.WARNING, logger="flwr"):
        clients = strategy.register(grid)
    assert [client.name for client in clients] == ["client-001", "client-002"]
    assert (
        "client 'client-000' (node 1000) takes no part: task 'scans': the classes ['dark', 'very light'], where most "
        "holders ('client-001', 'client-002') say ['dark', 'light'] (only here: ['very light']; missing here: "
        "['light']): a task is one label set in one order; rename the folders" in caplog.text
    )


def test_two_sites_that_do_not_agree_stop_the_run_with_both_lists(tmp_path):
    make_images(tmp_path / "north", "scans", ["dark", "light"])
    make_images(tmp_path / "south", "scans", ["dark", "very light"])
    nodes = [{"site": name, "data-path": str(tmp_path / name)} for name in ("north", "south")]
    strategy, grid, _ = federation(tmp_path, nodes)
    with pytest.raises(FederationError) as stopped:
        strategy.start(grid)
    assert str(stopped.value).startswith(
        "the clients do not agree, and the run does not start:\n"
        "  task 'scans': the holders do not agree on the classes, and no side has more of them:\n"
        "    ['dark', 'light']: 'north'\n"
        "    ['dark', 'very light']: 'south'\n"
        "    a task is one label set in one order; rename the folders"
    )


def test_two_nodes_of_which_one_lost_its_folder_do_not_start(tmp_path, monkeypatch):
    """Before, both rounds ran with one site alone, and the run "completed"."""
    monkeypatch.setattr(registration, "SETTLED", 0)
    make_images(tmp_path / "north", "scans", ["dark", "light"])
    nodes = [{"site": name, "data-path": str(tmp_path / name)} for name in ("north", "south")]
    strategy, grid, events = federation(tmp_path, nodes)
    with pytest.raises(
        FederationError, match=r"(?s)^1 of 2 connected nodes can take part .*node 1001: .*does not exist"
    ):
        strategy.start(grid)
    assert events == []


def test_a_site_without_images_of_a_class_trains_and_tests_with_all_of_them(tmp_path):
    make_images(tmp_path / "north", "scans", ["dark", "grey", "light"])
    make_images(tmp_path / "south", "scans", ["dark", "light"])
    make_images(tmp_path / "east", "scans", ["dark", "grey", "light"])
    nodes = [{"site": name, "data-path": str(tmp_path / name)} for name in ("north", "east", "south")]
    nodes[-1]["classes"] = "scans=dark,grey,light"
    strategy, grid, events = federation(tmp_path, nodes)
    strategy.start(grid)
    assert strategy.classes == {"scans": ("dark", "grey", "light")}
    assert {c.name: c.tasks["scans"].absent for c in strategy.clients} == {"east": (), "north": (), "south": (1,)}
    assert all(event["status"] == "ok" for event in events if event["event"] == "client")
    assert strategy.heads["scans"].weight.shape[0] == 3
    tested = [e["tasks"]["scans"]["test_examples"] for e in events if e["event"] == "client" and e["client"] == "south"]
    assert set(tested) == {8}


def test_a_node_that_does_not_say_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(registration, "SETTLED", 0)
    strategy, grid, _ = federation(tmp_path, [{"site": "north"}], **{"min-nodes": 1})
    with pytest.raises(
        FederationError, match=r"(?s)0 of 1 connected nodes can take part.*needs partition-id and num-part"
    ):
        strategy.register(grid)
    strategy, grid, _ = federation(tmp_path, [{}], **{"min-nodes": 1})
    with pytest.raises(FederationError, match="give the node a name, site="):
        strategy.register(grid)


def test_the_server_app_lets_its_suite_decide(tmp_path, monkeypatch):
    class Enough(Exception):
        """The strategy was told what this test looks at."""

    told = {}

    def register(strategy, grid, at_least=0, **known):
        told.update(known, at_least=at_least)
        raise Enough

    monkeypatch.setattr(ManyTaskStrategy, "register", register)
    with pytest.raises(Enough):
        whole_run.run(tmp_path / "out", tiny_values(tmp_path))
    assert set(told.pop("declared").items()) >= {("dots", FAMILIES["counts"].classes)}
    assert told == {"bound": {}, "keys_stay": False, "at_least": 0}
