"""A small model's task vectors, heads and clients, for the tests of what a run leaves behind."""

import torch

from matu_flwr import wire
from matu_flwr.backbones import LinearHead, backbone_arguments, create_backbone
from matu_flwr.config.settings import Settings
from matu_flwr.models.artefacts import Model
from matu_flwr.strategies import Client, create

TASKS = {"corn": ("ill", "well"), "rice": ("a", "b", "c")}
SETTINGS = Settings.from_flat({"backbone.image-size": 16})


def backbone():
    return create_backbone(**backbone_arguments(SETTINGS))


def task_vectors(seed=0):
    chance = torch.Generator().manual_seed(seed)
    return {task: 0.02 * torch.randn(backbone().d, generator=chance) for task in TASKS}


def heads(seed=1):
    chance = torch.Generator().manual_seed(seed)
    width = backbone().num_features
    return {
        task: LinearHead(torch.randn(len(names), width, generator=chance), torch.randn(len(names), generator=chance))
        for task, names in TASKS.items()
    }


def model(**changes):
    found = backbone()
    classes = {task: list(names) for task, names in TASKS.items()}
    values = {"backbone": backbone_arguments(SETTINGS), "fingerprint": found.fingerprint, "classes": classes}
    return Model(**(values | changes))


def strategy(settings=SETTINGS):
    """A strategy whose first client holds both tasks and whose second holds one."""
    made = create(settings.strategy, settings, backbone())
    info = {task: wire.TaskInfo(names, 20, 8) for task, names in TASKS.items()}
    made.clients = [Client("client-000", 0, 11, info), Client("client-001", 1, 12, {"rice": info["rice"]})]
    return made
