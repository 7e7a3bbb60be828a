"""`matu pretrain` on a very small scale, and the weights that ship."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from matu_flwr.backbones import BackboneError, create_backbone, mini_clip
from matu_flwr.cli import app
from matu_flwr.pretraining import corpus
from matu_flwr.pretraining.contrastive import Recipe, Towers, augment, contrastive_loss, pretrain, rate
from matu_flwr.pretraining.evaluation import zero_shot_accuracy
from tests.support.command import matu

ONE = ["--steps", "1", "--batch-size", "8", "--pool", "32", "--threads", "1"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- training ---


def test_the_loss_by_hand():
    """Two pairs, unit embeddings e1, e2, scale 1, texts true of their own image only.

    Logits are the identity: log-softmax of the diagonal is 1 - log(e + 1) = -0.3133; both directions alike.
    """
    eye = torch.eye(2)
    assert contrastive_loss(eye, eye, eye.bool(), torch.tensor(1.0)).item() == pytest.approx(0.3133, abs=1e-4)
    """Both texts true of both images: the mean of -0.3133 and 0 - log(e + 1) = -1.3133."""
    assert contrastive_loss(eye, eye, torch.ones(2, 2).bool(), torch.tensor(1.0)).item() == pytest.approx(
        0.8133, abs=1e-4
    )


def test_truth_is_known_for_every_pair_of_a_batch():
    built, _ = corpus.build(300, seed=0)
    rows = np.arange(64)
    _, truth = built.captions(rows, np.random.default_rng(0))
    assert truth.shape == (64, 64)
    assert truth.diagonal().all()
    assert 64 < int(truth.sum()) < 64 * 64 / 2  # "something red" is true of every red thing


def test_augmentation_moves_pixels_and_keeps_the_picture():
    images = torch.randint(60, 200, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    still = augment(images, 0, torch.Generator().manual_seed(1))
    assert still.shape == (5, 32, 32, 3)
    for before, after in zip(images.float(), still, strict=True):  # an affine change of brightness
        assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 0.999
    assert (augment(images, 2, torch.Generator().manual_seed(1)) != still).any()


def test_the_rate_rises_and_falls():
    assert [round(rate(step, 10, 0.2), 3) for step in (1, 2, 6, 10)] == [0.5, 1.0, 0.5, 0.0]


@pytest.mark.long
def test_pre_training_learns_and_is_a_function_of_the_seed():
    built, _ = corpus.build(400, seed=0)
    losses = []
    torch.set_num_threads(1)
    one, other = (pretrain(built, Recipe(25, 64), 0, lambda step, loss: losses.append(loss)) for _ in range(2))
    assert sum(losses[20:25]) < sum(losses[:5]) - 2
    assert losses[:25] == losses[25:]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# --- the command ---


@pytest.mark.long
def test_the_command_writes_weights_and_card(tmp_path):
    done = CliRunner().invoke(app, ["pretrain", str(tmp_path), *ONE])
    assert done.exit_code == 0, done.output
    assert "drawn scenes (Apache-2.0)" in done.output
    card = json.loads((tmp_path / "vit_mini_clip_32.json").read_text())
    weights = tmp_path / "vit_mini_clip_32.safetensors"
    assert card["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert card["recipe"]["steps"] == 1
    assert card["data"]["command"].startswith("matu pretrain OUT --steps 1 --batch-size 8")
    towers = Towers()
    towers.load_state_dict({key: tensor.float() for key, tensor in load_file(weights).items()})


def test_user_errors_are_one_line(tmp_path):
    done = CliRunner().invoke(app, ["pretrain", str(tmp_path), "--pool", "4", "--batch-size", "8", "--threads", "1"])
    assert done.exit_code == 1
    assert "error: batch-size = 8 is larger than the corpus of 4 images" in done.output
    arguments = [*ONE, "--data-dir", str(tmp_path / "none"), "--cache-dir", str(tmp_path)]
    done = CliRunner().invoke(app, ["pretrain", str(tmp_path), *arguments])
    assert done.exit_code == 1
    assert "error: task 'fashion_mnist':" in done.output


# --- the weights that ship ---


def test_the_shipped_file_is_the_card_s():
    path = mini_clip.weights_path()
    card = mini_clip.card()
    assert path.stat().st_size == card["bytes"] < 4_000_000
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"]
    state = load_file(path)
    assert all(tensor.dtype == torch.float16 and torch.isfinite(tensor).all() for tensor in state.values())
    Towers().load_state_dict({key: tensor.float() for key, tensor in state.items()})
    for key in ("sources", "seed", "command", "seconds"):
        assert key in card["data"]
    assert all(source["licence"] for source in card["data"]["sources"])


@pytest.mark.long
def test_zero_shot_accuracy_on_families_that_were_never_drawn_is_the_card_s():
    towers = Towers()
    path = mini_clip.weights_path()
    towers.load_state_dict({key: tensor.float() for key, tensor in load_file(path).items()})
    found = zero_shot_accuracy(towers.eval().vision, towers.text)
    promised = mini_clip.card()["zero-shot on held-out families"]
    assert found.keys() == promised.keys()
    for family, numbers in found.items():
        assert numbers["accuracy"] == pytest.approx(promised[family]["accuracy"], abs=0.02)
        assert numbers["accuracy"] > 1.5 * numbers["chance"], family


def test_the_shipped_weights_are_the_default_start():
    backbone = create_backbone(mini_clip.NAME)
    vision = {k.removeprefix("vision."): t for k, t in load_file(mini_clip.weights_path()).items() if "vision." in k}
    assert torch.equal(backbone.theta_p, torch.cat([vision[key].float().flatten() for key in backbone.parameters()]))
    assert create_backbone(mini_clip.NAME, weights="random").fingerprint != backbone.fingerprint


def test_a_bundle_without_the_file_finds_the_installed_package(monkeypatch, tmp_path):
    """Flower's app bundle leaves the file behind: it is found where the package is installed, and else asked for."""
    monkeypatch.setattr(mini_clip, "__file__", str(tmp_path / "mini_clip.py"))
    assert mini_clip.weights_path().name == "vit_mini_clip_32.safetensors"

    def nothing(name):
        raise mini_clip.PackageNotFoundError(name)

    monkeypatch.setattr(mini_clip, "distribution", nothing)
    with pytest.raises(BackboneError, match=r"run `pip install matu-flwr` in this node's environment"):
        mini_clip.weights_path()


# --- real images ---


@pytest.fixture(scope="module")
def data_dir():
    folder = os.environ.get("MATU_DATA_DIR")
    if not folder:
        pytest.skip("MATU_DATA_DIR is not set: no real data to read")
    return Path(folder)


@pytest.mark.real_data
@pytest.mark.long
def test_real_images_are_training_images_of_sets_outside_real_12(data_dir, decoded):
    from matu_flwr.tasks import load_suite, load_task

    images, facts, sources = corpus.real(data_dir, decoded, 0)
    assert len(images) == len(facts) == sum(source["images"] for source in sources)
    assert {source["part"] for source in sources} == {"train"}
    assert not corpus.REAL_SETS.keys() & load_suite("real-12").tasks.keys()
    used = {image.tobytes() for image in images}
    for spec in load_suite("real-20").tasks.values():
        data = load_task(spec, image_size=32, seed=0, data_dir=data_dir, cache_dir=decoded)
        assert not used & {image.tobytes() for image in data.test_images}, spec.name


def test_a_folder_that_cannot_be_written_is_refused_before_the_training(tmp_path):
    (tmp_path / "file").write_text("")
    text = matu("pretrain", str(tmp_path / "file" / "below"), status=1)
    assert f"error: nothing can be written to {tmp_path}/file/below: " in text
