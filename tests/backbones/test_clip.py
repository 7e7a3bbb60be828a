"""Published CLIP models: timm's image tower and open_clip's text tower give open_clip's own numbers.

No published weights can be had in a test: a whole CLIP model is made from random weights with open_clip, and stored as
published models are.
"""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from matu_flwr._torchvision import ensure_importable
from matu_flwr.backbones import BackboneError, LinearHead, Prompts, ZeroShotHeads, create_backbone, zero_shot_heads
from matu_flwr.backbones import zero_shot as module
from matu_flwr.backbones.zero_shot import OPEN_CLIP, check_fit, text_tower, write_heads

NAME = "vit_base_patch32_clip_224.openai"
PROMPTS = Prompts(("red fox", "barn owl", "heron"), ("a photo of a {}.", "a drawing of a {}."))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The whole model in open_clip, and its file."""
    ensure_importable()
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(OPEN_CLIP[NAME.split(".")[0]], force_quick_gelu=True).eval()
    path = tmp_path_factory.mktemp("clip") / "whole.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    yield model, path
    create_backbone.cache_clear()
    text_tower.cache_clear()


@pytest.fixture(autouse=True)
def fresh():
    text_tower.cache_clear()


def test_timm_s_tower_embeds_as_open_clip_s(clip):
    model, path = clip
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    backbone = create_backbone(NAME.replace("_clip_", "_clip_quickgelu_"), weights=str(path))
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module(images), model.encode_image(images), rtol=1e-4, atol=1e-4)


def test_zero_shot_logits_are_open_clip_s(clip, tmp_path):
    """From the heads file: 100 · cos(image, mean of the prompts), computed here with open_clip alone."""
    import open_clip

    model, path = clip
    file = tmp_path / "heads.safetensors"
    write_heads(file, NAME, {"animals": PROMPTS}, str(path))
    head = zero_shot_heads(NAME, {"animals": PROMPTS}, str(file)).heads["animals"]
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        rows = []
        for name in PROMPTS.classes:
            prompts = F.normalize(model.encode_text(tokenizer([t.format(name) for t in PROMPTS.templates])), dim=-1)
            rows.append(F.normalize(prompts.mean(dim=0), dim=0))
        embedded = model.encode_image(images)
        expected = model.logit_scale.exp() * F.normalize(embedded, dim=-1) @ torch.stack(rows).T
        torch.testing.assert_close(head(embedded), expected, rtol=1e-4, atol=1e-4)
    assert head.zero_shot
    assert head.weight.shape == (3, 512)


def test_the_same_head_from_the_tower_and_from_the_file(clip, tmp_path, monkeypatch):
    _, path = clip
    file = tmp_path / "heads.safetensors"
    write_heads(file, NAME, {"animals": PROMPTS}, str(path))
    tower = text_tower(NAME, str(path))
    monkeypatch.setattr(module, "text_tower", lambda backbone: tower)
    direct, stored = (zero_shot_heads(NAME, {"animals": PROMPTS}, where) for where in ("", str(file)))
    assert torch.equal(direct.heads["animals"].weight, stored.heads["animals"].weight)
    assert direct.digests == stored.digests
    assert len(direct.digests["animals"]) == 16
    other = zero_shot_heads(NAME, {"animals": Prompts(PROMPTS.classes, ("{}",))})
    assert other.digests != direct.digests


@pytest.mark.parametrize(
    ("name", "hub", "quick_gelu"),
    [
        (NAME, f"timm/{NAME}", True),
        # timm publishes both variants of the architecture under one name
        ("vit_base_patch32_clip_quickgelu_224.openai", f"timm/{NAME}", True),
        ("vit_base_patch16_clip_224.laion2b", "timm/vit_base_patch16_clip_224.laion2b", False),
    ],
)
def test_the_download_is_timm_s_and_the_activation_that_of_the_weights(monkeypatch, name, hub, quick_gelu):
    import open_clip

    asked = []

    def create(source, **options):
        asked.append((source, options["force_quick_gelu"]))
        raise OSError

    monkeypatch.setattr(open_clip, "create_model", create)
    with pytest.raises(BackboneError, match=rf"open_clip_model\.safetensors of {hub} \(OSError\)"):
        text_tower(name)
    assert asked == [(f"hf-hub:{hub}", quick_gelu)]


def test_another_activation_is_another_head(clip, monkeypatch):
    _, path = clip
    quick = text_tower(NAME, str(path)).fingerprint
    text_tower.cache_clear()
    monkeypatch.setattr(module, "_published", lambda backbone: ("timm/x", False))
    assert text_tower(NAME, str(path)).fingerprint != quick


def test_a_head_has_to_fit_the_features():
    mini = create_backbone("vit_mini_clip_32")
    head = LinearHead(torch.zeros(3, 512), torch.zeros(3), zero_shot=True)
    with pytest.raises(
        BackboneError,
        match=r"zero-shot head of task 'animals' has 512 columns, expected the 128 features of backbone 'vit_mini_clip",
    ):
        check_fit(ZeroShotHeads({"animals": head}, {}), mini)
    plain = create_backbone("vit_tiny_patch16_224", weights="random", image_size=32)
    with pytest.raises(BackboneError, match=r"'vit_tiny_patch16_224' does not end in CLIP's projection"):
        check_fit(ZeroShotHeads({}, {}), plain)


# --- what cannot be had ---


def test_a_text_tower_without_network_says_what_to_fetch(monkeypatch):
    import open_clip

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(
        BackboneError,
        match=rf"could not be loaded from open_clip_model\.safetensors of timm/{NAME} \(no route to host\); fetch "
        "that file on a machine with a network, run `matu heads --text-weights FILE` and set backbone.heads-file",
    ):
        zero_shot_heads(NAME, {"animals": PROMPTS})


def test_without_open_clip_it_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(BackboneError, match=r"needs the package open_clip: pip install 'matu-flwr\[clip\]', or run "):
        zero_shot_heads(NAME, {"animals": PROMPTS})


def test_a_backbone_without_a_text_tower():
    with pytest.raises(BackboneError, match=r"'vit_tiny_patch16_224' has no text tower: train\.heads = zero-shot"):
        zero_shot_heads("vit_tiny_patch16_224", {"animals": PROMPTS})


def test_text_weights_that_are_not_there_or_not_of_a_clip_model(tmp_path):
    with pytest.raises(BackboneError, match=r"text weights .*none\.bin do not exist"):
        text_tower(NAME, str(tmp_path / "none.bin"))
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"junk" * 100)
    with pytest.raises(BackboneError, match=r"could not be loaded from file .*junk\.safetensors as ViT-B-32"):
        text_tower(NAME, str(junk))


@pytest.fixture(scope="module")
def heads_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("heads") / "heads.safetensors"
    write_heads(file, "vit_mini_clip_32", {"animals": PROMPTS})
    return file


@pytest.mark.parametrize(
    ("backbone", "tasks", "message"),
    [
        (NAME, {"animals": PROMPTS}, rf"is for backbone 'vit_mini_clip_32', expected '{NAME}'"),
        ("vit_mini_clip_32", {"birds": PROMPTS}, r"has no task 'birds'; it has 'animals'"),
        (
            "vit_mini_clip_32",
            {"animals": Prompts(("a", "b", "c"), PROMPTS.templates)},
            r"task 'animals' has classes \['red fox', 'barn owl', 'heron'\]…, expected \['a', 'b', 'c'\]",
        ),
    ],
)
def test_a_heads_file_that_does_not_fit(heads_file, backbone, tasks, message):
    with pytest.raises(BackboneError, match=message):
        zero_shot_heads(backbone, tasks, str(heads_file))


def test_a_heads_file_that_is_none(tmp_path):
    with pytest.raises(BackboneError, match="does not exist: write it with `matu heads`"):
        zero_shot_heads(NAME, {"animals": PROMPTS}, str(tmp_path / "none.safetensors"))
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(BackboneError, match="expected one written by `matu heads`"):
        zero_shot_heads(NAME, {"animals": PROMPTS}, str(tmp_path / "foreign.safetensors"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"weight": torch.full((3, 4), float("nan"))}, "the head of task 'animals' has NaN or infinity"),
        ({"weight": torch.ones(2, 4)}, r"the head of task 'animals' is \(2, 4\) of torch.float32, expected \(3, F\)"),
        ({"weight": torch.ones(3, 4).long()}, r"is \(3, 4\) of torch.int64, expected \(3, F\)"),
        ({"tasks": "[]"}, "cannot be read .*: expected one written by `matu heads`"),
        ({"tasks": '{"animals": {}}'}, "cannot be read"),
        ({"tasks": '{"animals": {"classes": 3, "templates": []}}'}, "cannot be read"),
        ({"tasks": "[" * 10**5}, "cannot be read"),
    ],
)
def test_a_heads_file_of_other_numbers_or_words(tmp_path, change, text):
    """Written with the digests of a right file, as another program might."""
    words = {"animals": {"classes": PROMPTS.classes, "templates": PROMPTS.templates}}
    metadata = {"backbone": "vit_mini_clip_32", "text": "x", "tasks": json.dumps(words)}
    metadata |= {key: value for key, value in change.items() if key == "tasks"}
    save_file({"animals/weight": change.get("weight", torch.ones(3, 4))}, tmp_path / "h.safetensors", metadata)
    with pytest.raises(BackboneError, match=text):
        zero_shot_heads("vit_mini_clip_32", {"animals": PROMPTS}, str(tmp_path / "h.safetensors"))
