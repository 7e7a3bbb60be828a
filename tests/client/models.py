"""A backbone of some hundred parameters, and images that it can learn."""

import numpy as np
import torch
from torch import nn

from matu_flwr.backbones import Backbone
from matu_flwr.client import ImageSet
from matu_flwr.vectors import ParameterLayout


class Tiny(nn.Module):
    """(B, 3, 8, 8) -> (B, 5): means over patches, then two small layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 6)
        self.second = nn.Linear(6, 5)

    def forward(self, pixels):
        patches = nn.functional.avg_pool2d(pixels, 4).flatten(1)  # (B, 3, 8, 8) -> (B, 12)
        return self.second(torch.tanh(self.first(patches)))


class Blocks(nn.Module):
    """The same with a row of two blocks, as a vision transformer has."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 6)
        self.blocks = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 5))

    def forward(self, pixels):
        return self.blocks(torch.tanh(self.first(nn.functional.avg_pool2d(pixels, 4).flatten(1))))


def backbone(seed=0, kind=Tiny):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = kind()
    parameters = dict(module.named_parameters())
    layout = ParameterLayout.of(parameters)
    theta_p = layout.flatten(parameters)
    half = (0.5, 0.5, 0.5)
    return Backbone(
        name="tiny",
        tower=module,
        module=module,
        trainable=parameters,
        layout=layout,
        theta_p=theta_p,
        fingerprint=layout.fingerprint(theta_p),
        total=layout.d,
        image_size=8,
        num_features=5,
        clip=False,
        mean=half,
        std=half,
    )


def images(count=24, classes=3, seed=0):
    """Class c is bright in colour c."""
    chance = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % classes
    pixels = chance.integers(0, 90, (count, 8, 8, 3), dtype=np.uint8)
    for place, label in enumerate(labels):
        pixels[place, :, :, label % 3] += 120
    return ImageSet(pixels, labels, np.arange(count))
