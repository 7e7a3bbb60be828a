"""A pre-trained vision transformer from a local file; runs where MATU_DATA_DIR names the folder with it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from matu_flwr.backbones import create_backbone
from matu_flwr.client.images import normalise
from matu_flwr.tasks import load_suite, load_task

pytestmark = pytest.mark.real_data
NAME = "vit_tiny_patch16_224"
FILE = Path("weights/vit_tiny_p16_224/vit_tiny_p16_224.fp16.safetensors")


@pytest.fixture(scope="module")
def data_dir():
    folder = os.environ.get("MATU_DATA_DIR")
    if not folder:
        pytest.skip("MATU_DATA_DIR is not set: no real data to read")
    if not (Path(folder) / FILE).is_file():
        pytest.skip(f"{FILE} is not under MATU_DATA_DIR: no pre-trained weights to read")
    return Path(folder)


@pytest.fixture(scope="module")
def steel(data_dir, tmp_path_factory):
    """100 training and 100 test images, whole classes mixed."""
    cache = tmp_path_factory.mktemp("real")
    spec = load_suite("real-20").tasks["neu_steel"]
    data = load_task(spec, image_size=64, seed=0, data_dir=data_dir, cache_dir=cache)
    chance = np.random.default_rng(0)
    train = chance.permutation(len(data.train_labels))[:100]
    test = chance.permutation(len(data.test_labels))[:100]
    return data.train_images[train], data.train_labels[train], data.test_images[test], data.test_labels[test]


def nearest_centroid(backbone, steel):
    """Accuracy of the nearest class mean in the space of unit features."""
    train_images, train_labels, test_images, test_labels = steel

    @torch.inference_mode()
    def features(images):
        backbone.load(None)
        found = backbone.module(normalise(torch.from_numpy(images), backbone.mean, backbone.std))
        assert torch.isfinite(found).all()
        return torch.nn.functional.normalize(found, dim=1).numpy()

    known, asked = features(train_images), features(test_images)
    centroids = np.stack([known[train_labels == label].mean(axis=0) for label in range(6)])
    distance = ((asked[:, None, :] - centroids[None, :, :]) ** 2).sum(axis=2)
    return float((distance.argmin(axis=1) == test_labels).mean())


def test_pretrained_features_are_useful(data_dir, steel):
    pretrained = create_backbone(NAME, weights=str(data_dir / FILE), image_size=64)
    random = create_backbone(NAME, weights="random", image_size=64)
    assert pretrained.d == random.d
    assert pretrained.fingerprint != random.fingerprint
    assert nearest_centroid(pretrained, steel) > nearest_centroid(random, steel) + 0.3
