"""Nodes with their own images: `data-path` and `tasks` in the node config instead of a share of a suite."""

import logging

import numpy as np
import pytest
from PIL import Image

import client_app
from matu_flwr.backbones import backbone_arguments, create_backbone
from matu_flwr.config.settings import Settings
from matu_flwr.strategies import FederationError, create
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


def test_a_site_with_other_classes_is_left_out_with_the_reason(tmp_path, caplog):
    make_images(tmp_path / "north", "scans", ["dark", "light"])
    make_images(tmp_path / "south", "scans", ["dark", "very light"])
    nodes = [{"site": name, "data-path": str(tmp_path / name)} for name in ("north", "south")]
    strategy, grid, _ = federation(tmp_path, nodes)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    logging.getLogger("flwr").propagate = True
    with caplog.at_level(logging.WARNING, logger="flwr"):
        clients = strategy.register(grid)
    assert [client.name for client in clients] == ["north"]
    assert "south takes no part: task 'scans' has classes ['dark', 'very light'], client 'north' has" in caplog.text


def test_a_node_that_does_not_say_what_it_holds(tmp_path):
    strategy, grid, _ = federation(tmp_path, [{"site": "north"}], **{"min-nodes": 1})
    with pytest.raises(FederationError, match=r"(?s)none of 1 nodes can take part.*needs partition-id and num-part"):
        strategy.register(grid)
    strategy, grid, _ = federation(tmp_path, [{}], **{"min-nodes": 1})
    with pytest.raises(FederationError, match="give the node a name, site="):
        strategy.register(grid)
