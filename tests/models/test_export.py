"""Exported models give the logits of the run, read back with timm and PEFT alone."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from matu_flwr import load_finetuned
from matu_flwr._torchvision import ensure_importable
from matu_flwr.backbones import BackboneError, LinearHead, create_backbone
from matu_flwr.models.artefacts import ArtefactError, Model, write_tensors
from matu_flwr.models.export import export_model

TINY, CLIP, MINI = "vit_tiny_patch16_224", "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", "vit_mini_clip_32"
CLASSES = {"corn": ["ill", "well"], "rice": ["a", "b", "c"]}


@pytest.fixture(autouse=True)
def fresh():
    yield
    create_backbone.cache_clear()


@pytest.fixture
def images():
    return torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def run_folder(folder, name, *, zero_shot=False, heads=True, **options):
    """What a run leaves: task vectors and heads of two tasks."""
    folder.mkdir(exist_ok=True)
    arguments = {"name": name, "weights": "random", "image_size": 32, "seed": 0, **options}
    backbone = create_backbone(**arguments)
    chance = torch.Generator().manual_seed(1)
    vectors = {task: 0.02 * torch.randn(backbone.d, generator=chance) for task in CLASSES}
    made = {
        task: LinearHead(
            torch.randn(len(names), backbone.num_features, generator=chance),
            torch.zeros(len(names)) if zero_shot else torch.randn(len(names), generator=chance),
            zero_shot,
        )
        for task, names in CLASSES.items()
    }
    write_tensors(folder, Model(arguments, backbone.fingerprint, CLASSES, zero_shot), vectors, made if heads else {})
    return folder


def prepared(images, task_model):
    """Images as the exported model's own mean and std want them, computed here."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (task_model["mean"], task_model["std"]))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def described(folder):
    return json.loads((folder / "classes.json").read_text())


def timm_folder(folder):
    ensure_importable()
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.parametrize("name", [TINY, CLIP, MINI])
@pytest.mark.parametrize("source", ["task-vector", "unified"])
def test_a_full_model_is_a_timm_checkpoint(tmp_path, images, name, source):
    """The head is the classifier; through CLIP's projection it is folded into one layer."""
    run = run_folder(tmp_path, name)
    files = export_model(run, "rice", tmp_path / "out", source)
    assert sorted(files) == ["classes", "model"]
    expected = load_finetuned(run, "rice", source).logits(images)
    model = timm_folder(tmp_path / "out")
    with torch.inference_mode():
        torch.testing.assert_close(model(prepared(images, described(tmp_path / "out"))), expected, rtol=1e-4, atol=1e-4)
    assert described(tmp_path / "out")["classes"] == ["a", "b", "c"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_classes"] == 3
    assert config["label_names"] == ["a", "b", "c"]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]


@pytest.mark.parametrize("name", [CLIP, MINI])
def test_a_zero_shot_head_stays_beside_the_tower(tmp_path, images, name):
    run = run_folder(tmp_path, name, zero_shot=True)
    assert sorted(export_model(run, "corn", tmp_path / "out")) == ["classes", "head", "model"]
    head = load_file(tmp_path / "out" / "head.safetensors")
    tower = timm_folder(tmp_path / "out")
    with torch.inference_mode():
        features = F.normalize(tower(prepared(images, described(tmp_path / "out"))), dim=-1)
        expected = load_finetuned(run, "corn").logits(images)
        torch.testing.assert_close(features @ head["weight"].T, expected, rtol=1e-4, atol=1e-4)
    assert described(tmp_path / "out")["head"].startswith("zero-shot")


def test_adapters_are_a_peft_folder(tmp_path, images):
    """PEFT puts them on timm's own model with the same base weights."""
    import timm
    from peft import PeftModel

    base = create_backbone(TINY, weights="random", image_size=32, seed=5)
    save_file({key: p.detach().clone() for key, p in base.parameters().items()}, tmp_path / "base.safetensors")
    run = run_folder(tmp_path, TINY, weights=str(tmp_path / "base.safetensors"), trainable="lora", lora_rank=4)
    assert sorted(export_model(run, "rice", tmp_path / "out")) == ["adapter", "classes", "head"]
    plain = timm.create_model(TINY, img_size=32, num_classes=0)
    plain.load_state_dict(load_file(tmp_path / "base.safetensors"))
    model = PeftModel.from_pretrained(plain, str(tmp_path / "out")).eval()
    head = load_file(tmp_path / "out" / "head.safetensors")
    with torch.inference_mode():
        logits = model(prepared(images, described(tmp_path / "out"))) @ head["weight"].T + head["bias"]
    torch.testing.assert_close(logits, load_finetuned(run, "rice").logits(images), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_exported(tmp_path):
    run = run_folder(tmp_path / "run", TINY)
    with pytest.raises(ArtefactError, match=r"has no task 'oats'; its tasks are \['corn', 'rice'\]"):
        export_model(run, "oats", tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ArtefactError, match="used is not empty: name a new folder for the export"):
        export_model(run, "corn", tmp_path / "used")
    local = run_folder(tmp_path / "local", TINY, heads=False)
    with pytest.raises(
        ArtefactError, match="left the heads at its clients: there are no logits to export for task 'corn'"
    ):
        export_model(local, "corn", tmp_path / "out")
    linearised = run_folder(tmp_path / "linearised", TINY, linearised=True)
    with pytest.raises(BackboneError, match="trained a linearised model, which timm does not have; use load_finetuned"):
        export_model(linearised, "corn", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_classifier_that_takes_no_linear_head(tmp_path):
    """The small default with 128 classes ends in its projection, which has no bias."""
    run = run_folder(tmp_path / "run", MINI)
    names = [str(label) for label in range(128)]
    backbone = create_backbone(MINI, weights="random", image_size=32, seed=0)
    head = LinearHead(torch.zeros(128, backbone.num_features), torch.ones(128))
    arguments = {"name": MINI, "weights": "random", "image_size": 32, "seed": 0}
    write_tensors(
        run, Model(arguments, backbone.fingerprint, {"many": names}), {"many": torch.zeros(backbone.d)}, {"many": head}
    )
    with pytest.raises(BackboneError, match=r"'vit_mini_clip_32' with 128 classes has a special classifier"):
        export_model(run, "many", tmp_path / "out")
    assert not (tmp_path / "out").exists()
