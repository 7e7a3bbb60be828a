"""Classes that a suite declares: what is known of a task without its files."""

import pytest

from matu_flwr.tasks.declared import declared_by, declared_classes
from matu_flwr.tasks.suite import TaskSpec, available_suites, load_suite


@pytest.mark.parametrize(
    ("loader", "options", "classes"),
    [
        ("hub", {"dataset": "x", "classes": ["b", "a"]}, ("b", "a")),
        ("hub", {"dataset": "x", "classes": ["Ku\u0308he "]}, ("K\u00fche",)),
        ("folder", {"classes": ["b", "a"]}, ("b", "a")),
        ("hub", {"dataset": "x"}, ()),
        ("torchvision", {"dataset": "FakeData", "classes": ["b", "a"]}, ("b", "a")),
        ("torchvision", {"dataset": "FakeData"}, ()),
        ("folder", {"path": "x"}, ()),
        ("folder", {"classes": {"0": "zero"}}, ()),
        ("npz", {"path": "x.npz"}, ()),
        ("generated", {"family": "nothing", "style": "x"}, ()),
        ("sklearn-digits", {}, tuple("0123456789")),
    ],
)
def test_what_a_suite_says_of_a_task(loader, options, classes):
    assert declared_classes(TaskSpec("t", loader, options)) == classes


def test_classes_that_are_written_by_hand_for_torchvision():
    svhn = load_suite("paper-8").tasks["svhn"]
    assert len(declared_classes(svhn)) == 10


@pytest.mark.parametrize("suite", available_suites())
def test_every_shipped_suite_can_be_asked(suite):
    assert set(declared_by(load_suite(suite))) == set(load_suite(suite).tasks)


def test_generated_tasks_are_declared_as_they_are_loaded(tmp_path):
    from matu_flwr.tasks import load_task

    for name, spec in list(load_suite("offline").tasks.items())[:3]:
        loaded = load_task(spec, image_size=8, seed=0, data_dir=None, cache_dir=tmp_path)
        assert declared_classes(spec) == loaded.classes, name
