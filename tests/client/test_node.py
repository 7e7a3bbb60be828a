"""What a node holds: its share of a suite, or its own folder. On tiny folders, so that nothing is drawn or decoded."""

import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from matu_flwr.client import node as module
from matu_flwr.client.node import NodeError
from matu_flwr.config.settings import Settings
from matu_flwr.tasks import TaskError
from matu_flwr.tasks.datasets import task_data

TASKS = ("corn", "rice", "wheat")


def draw(root, *, train=24, test=9, classes=("ill", "well")):
    """`train` and `test` images of 8 x 8 pixels per class; no two are the same."""
    chance = np.random.default_rng(len(str(root)))
    for part, count in (("train", train), ("test", test)):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = chance.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i:02}.png")


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    """A folder with three tasks, a suite of them, and a cache."""
    folder = tmp_path_factory.mktemp("farm")
    for task in TASKS:
        draw(folder / "data" / task)
    suite = {"name": "farm", "tasks": {task: {"loader": "folder", "options": {"path": task}} for task in TASKS}}
    (folder / "farm.yaml").write_text(yaml.safe_dump(suite))
    return folder


@pytest.fixture
def settings(farm):
    def make(**changes):
        values = {
            "suite": str(farm / "farm.yaml"),
            "data-dir": str(farm / "data"),
            "cache-dir": str(farm / "cache"),
            "partition.min-examples": 4,
            "partition.max-tasks": 2,
        }
        return Settings.from_flat({**values, **changes})

    return make


def node_of(settings, config):
    """At 8 pixels, as the files are."""
    return module.node_of(settings, config, 8)


def share(partition, of=4, **more):
    return {"partition-id": partition, "num-partitions": of, **more}


def test_shares_are_disjoint_and_cover_every_task(settings):
    nodes = [node_of(settings(), share(i)) for i in range(4)]
    assert [node.client for node in nodes] == ["client-000", "client-001", "client-002", "client-003"]
    assert [node.partition for node in nodes] == [0, 1, 2, 3]
    for task in TASKS:
        held = [node.tasks[task] for node in nodes if task in node.tasks]
        assert sorted(np.concatenate([part.train.index for part in held])) == list(range(48))
        assert sorted(np.concatenate([part.test.index for part in held])) == list(range(18))
        assert all(len(part.train) >= 4 for part in held)
        assert all(part.classes == ("ill", "well") for part in held)
    assert all(1 <= len(node.tasks) <= 2 for node in nodes)


def test_a_share_is_worked_out_once(settings):
    assert node_of(settings(), share(1)) is node_of(settings(), share(1))
    assert node_of(settings(), share(1)) is not node_of(settings(seed=1), share(1))


def test_nodes_of_a_process_share_the_images(settings):
    everything = settings(**{"partition.min-tasks": 3, "partition.max-tasks": 3})
    first, second = (node_of(everything, share(i, of=2)).tasks["corn"] for i in range(2))
    assert first.train.images is second.train.images


def test_the_seed_decides_who_holds_what(settings):
    def indices(seed):
        nodes = [node_of(settings(seed=seed), share(i)) for i in range(4)]
        return [{task: held.train.index.tolist() for task, held in node.tasks.items()} for node in nodes]

    assert indices(0) != indices(1)


def test_a_node_may_have_a_name(settings):
    assert node_of(settings(), share(0, site="Uppsala")).client == "Uppsala"


def test_the_node_s_own_folders_come_before_the_run_s(settings, farm, tmp_path):
    wrong = settings(**{"data-dir": str(tmp_path / "server"), "cache-dir": str(tmp_path / "cache")})
    node = node_of(wrong, share(0, **{"data-dir": str(farm / "data"), "cache-dir": str(farm / "cache")}))
    assert node.tasks
    assert not (tmp_path / "cache").exists()


# --- a site ---


@pytest.fixture
def site(tmp_path):
    draw(tmp_path / "site" / "corn", train=5, test=2)
    draw(tmp_path / "site" / "moss", train=10, test=0)
    for folder in (tmp_path / "site" / "moss" / "test").iterdir():
        folder.rmdir()
    (tmp_path / "site" / "moss" / "test").rmdir()
    (tmp_path / "site" / "notes").mkdir()
    return {"site": "Uppsala", "data-path": str(tmp_path / "site"), "cache-dir": str(tmp_path / "cache")}


def test_a_site_holds_all_its_folders(settings, site):
    node = node_of(settings(), site)
    assert (node.client, node.partition) == ("Uppsala", -1)
    assert {name: (len(task.train), len(task.test)) for name, task in node.tasks.items()} == {
        "corn": (10, 4),
        "moss": (16, 4),  # a fifth is held out
    }
    assert node.tasks["corn"].train.images.shape == (10, 8, 8, 3)
    assert node.tasks["corn"].classes == ("ill", "well")


@pytest.mark.parametrize("named", ["moss", " moss ,", "moss,"])
def test_a_site_may_choose_its_tasks(settings, site, named):
    assert list(node_of(settings(), site | {"tasks": named}).tasks) == ["moss"]


def test_a_site_with_a_partition_id_is_named_by_it(settings, site):
    del site["site"]
    node = node_of(settings(), site | share(2))
    assert (node.client, node.partition) == ("client-002", 2)
    assert set(node.tasks) == {"corn", "moss"}


def test_a_site_may_leave_out_what_cannot_be_read(settings, site, tmp_path):
    broken = tmp_path / "site" / "corn" / "train" / "ill" / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(TaskError, match=r"task 'corn'.*broken\.png.*skip-broken"):
        node_of(settings(), site)
    assert len(node_of(settings(), site | {"skip-broken": True}).tasks["corn"].train) == 10
    with pytest.raises(NodeError, match=r"^node 'Uppsala': node config has skip-broken = 'yes', expected true or fa"):
        node_of(settings(), site | {"skip-broken": "yes"})


# --- what cannot be ---


def test_a_node_needs_a_name(settings):
    with pytest.raises(NodeError, match=r"^node config has neither 'site' nor 'partition-id': give the node a name"):
        node_of(settings(), {})


@pytest.mark.parametrize(
    ("config", "found"),
    [({"partition-id": 1}, "['partition-id']"), ({"site": "a", "num-partitions": 3}, "['num-partitions', 'site']")],
)
def test_half_a_configuration(settings, config, found):
    with pytest.raises(NodeError, match=rf"needs partition-id and num-partitions .*; found {re.escape(found)}$"):
        node_of(settings(), config)


def test_a_partition_beyond_the_last(settings):
    with pytest.raises(NodeError, match=r"^node 'client-004': partition-id = 4, expected 0 to 3$"):
        node_of(settings(), share(4))


def test_a_site_without_tasks(settings, site, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NodeError, match=r"no task folder under data-path .*empty; expected .*<task>/train/<class>/$"):
        node_of(settings(), site | {"data-path": str(tmp_path / "empty")})


def test_a_site_whose_folder_or_task_is_missing(settings, site, tmp_path):
    with pytest.raises(TaskError, match=r"site folder .*nowhere does not exist"):
        node_of(settings(), site | {"data-path": str(tmp_path / "nowhere")})
    with pytest.raises(TaskError, match=r"task 'rye': .* tasks found in .*: corn, moss$"):
        node_of(settings(), site | {"tasks": "rye"})


def test_shares_say_which_files_they_are_of(settings):
    nodes = [node_of(settings(), share(partition)) for partition in range(4)]
    found = {}
    for node in nodes:
        for task, held in node.tasks.items():
            assert len(held.data) == 16
            assert found.setdefault(task, held.data) == held.data
    data = task_data(settings().suite, "corn", 8, 0, settings().data_dir, settings().cache_dir)
    assert module.label_digest(data) == found["corn"]
    assert module.label_digest(replace(data, train_labels=np.roll(data.train_labels, 1))) != found["corn"]
    assert module.label_digest(replace(data, test_labels=data.test_labels[1:])) != found["corn"]


# --- classes that a node does not have ---


def test_a_node_says_which_classes_it_has_no_training_images_of(settings, site, tmp_path):
    assert node_of(settings(), site).tasks["corn"].absent == ()
    told = site | {"classes": "corn = dead, ill, well, x y; moss=ill,well"}
    held = node_of(settings(), told).tasks
    assert held["corn"].classes == ("dead", "ill", "well", "x y")
    assert held["corn"].absent == (0, 3)
    assert sorted(set(held["corn"].train.labels.tolist())) == [1, 2]
    assert (held["moss"].classes, held["moss"].absent) == (("ill", "well"), ())


def test_classes_with_commas_are_written_as_json(settings, site):
    told = site | {"tasks": "corn", "classes": '{"corn": ["ill", "dead, long ago", "well"]}'}
    held = node_of(settings(), told).tasks["corn"]
    assert (held.classes, held.absent) == (("ill", "dead, long ago", "well"), (1,))


def test_a_folder_that_is_no_declared_class_is_refused_at_the_node(settings, site):
    with pytest.raises(TaskError, match=r"corn.train.well is a class that the task does not have"):
        node_of(settings(), site | {"tasks": "corn", "classes": "corn=ill,wel"})


def test_classes_that_the_suite_declares_hold_at_a_site(settings, site, tmp_path):
    suite = {"tasks": {"corn": {"loader": "hub", "options": {"dataset": "x", "classes": ["dead", "ill", "well"]}}}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    here = settings(suite=str(tmp_path / "suite.yaml"))
    assert node_of(here, site).tasks["corn"].classes == ("dead", "ill", "well")
    # what the node says of itself is nearer to it; a suite that only the server has is no error
    assert node_of(here, site | {"classes": "corn=ill,well,worn"}).tasks["corn"].classes == ("ill", "well", "worn")
    assert node_of(settings(suite=str(tmp_path / "none.yaml")), site).tasks["corn"].classes == ("ill", "well")


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        ("corn", "expected each task once with its list of names"),
        ("corn=ill,,well", "task 'corn': found class '', expected every class once"),
        ("corn=ill,well,ill", "task 'corn': found class 'ill', expected every class once"),
        ("corn=ill,well; corn=ill", "expected each task once"),
        ("corn=ill,we\x1bll", r"found class 'we\\x1bll'"),
        ('{"corn": "ill"}', "expected each task once"),
        ('{"corn": []}', "expected each task once"),
        ('{"corn": ["ill"], "corn": ["well"]}', "expected each task once"),
        ('{"corn": [1]}', "expected each task once"),
        ('{"corn": ', "begin like JSON and are not"),
    ],
)
def test_classes_that_cannot_be_read(settings, site, classes, text):
    with pytest.raises(NodeError, match=f"^node 'Uppsala': classes in the node config.*{text}"):
        node_of(settings(), site | {"classes": classes})


@pytest.mark.parametrize("name", ["..", "a/b", "x ", "a\x1b[2J", "y" * 201])
def test_a_node_s_name_is_checked_where_it_is_given(settings, site, name):
    with pytest.raises(NodeError, match=r"^node config has site = .*, expected 1 to 200 bytes of printable"):
        node_of(settings(), site | {"site": name})
