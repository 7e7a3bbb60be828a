"""Backbones by name: the same arguments give the same θ_p, and what cannot be built says why."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from matu_flwr.backbones import BackboneError, create_backbone
from matu_flwr.vectors import LayoutError

ROOT = Path(__file__).resolve().parents[2]
MINI = "vit_mini_clip_32"
TINY = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def fresh():
    """No backbone of another test."""
    create_backbone.cache_clear()


def built(name, *, weights="random", **options):
    """A backbone, from random weights unless said otherwise."""
    return create_backbone(name, weights=weights, **options)


def state_of(backbone):
    return {name: parameter.detach().clone() for name, parameter in backbone.parameters().items()}


def images(size, count=2):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


# --- the default ---


def test_same_arguments_same_start():
    first = built(MINI)
    create_backbone.cache_clear()
    again = built(MINI)
    assert again is not first
    assert torch.equal(again.theta_p, first.theta_p)
    assert again.fingerprint == first.fingerprint == first.layout.fingerprint(first.theta_p)


def test_same_start_in_another_process():
    code = (
        "from matu_flwr.backbones import create_backbone; "
        f"print(create_backbone({MINI!r}, weights='random', seed=5).fingerprint)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    torch.rand(3)  # whatever was drawn here before
    assert done.stdout.strip() == built(MINI, seed=5).fingerprint


def test_other_seed_other_start():
    assert built(MINI, seed=0).fingerprint != built(MINI, seed=1).fingerprint


def test_global_generator_is_untouched():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    built(MINI, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_is_small_and_gives_features():
    backbone = built(MINI)
    assert 800_000 <= backbone.d <= 1_100_000
    assert backbone.d == backbone.theta_p.numel() == sum(p.numel() for p in backbone.module.parameters())
    features = backbone.module(images(32, 5))
    assert features.shape == (5, backbone.num_features)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()
    assert not backbone.module.training


@pytest.mark.parametrize("size", [16, 64])
def test_the_default_is_built_for_other_sizes(size):
    backbone = built(MINI, image_size=size)
    assert backbone.module(images(size)).shape == (2, backbone.num_features)


def test_one_instance_serves_a_process():
    assert built(MINI) is built(MINI)


# --- load and task_vector ---


def test_load_then_task_vector_gives_it_back():
    backbone = built(MINI)
    tau = torch.randn(backbone.d, generator=torch.Generator().manual_seed(1)) * 0.01
    backbone.load(tau)
    assert torch.allclose(backbone.task_vector(), tau, atol=1e-6)
    assert torch.equal(backbone.layout.flatten(backbone.parameters()), backbone.theta_p + tau)
    backbone.load(None)
    assert torch.count_nonzero(backbone.task_vector()) == 0


def test_loading_does_not_move_the_start():
    backbone = built(MINI)
    before = backbone.theta_p.clone()
    backbone.load(torch.ones(backbone.d))
    assert torch.equal(backbone.theta_p, before)


def test_task_vector_is_a_new_vector():
    backbone = built(MINI)
    backbone.load(None)
    backbone.task_vector().fill_(9)
    assert torch.count_nonzero(backbone.task_vector()) == 0


def test_a_task_vector_of_another_length_is_refused():
    backbone = built(MINI)
    with pytest.raises((LayoutError, RuntimeError)):
        backbone.load(torch.zeros(backbone.d + 1))


# --- weights from a file ---


@pytest.mark.parametrize("name", [MINI, TINY])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_from_a_file_give_the_start_they_came_from(tmp_path, name, ending):
    original = built(name, image_size=32, seed=4)
    path = tmp_path / f"weights.{ending}"
    state = state_of(original)
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    loaded = built(name, weights=str(path), image_size=32, seed=9)
    assert loaded.fingerprint == original.fingerprint


class Intruder:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", [MINI, TINY])
def test_a_torch_file_cannot_run_code(tmp_path, name):
    state = state_of(built(name))
    mark = tmp_path / "it-ran"
    torch.save({**state, "intruder": Intruder(mark)}, tmp_path / "weights.pt")
    with pytest.raises(BackboneError):
        built(name, weights=str(tmp_path / "weights.pt"))
    assert not mark.exists()


def test_the_classifier_of_a_file_is_dropped(tmp_path):
    original = built(TINY, image_size=32, seed=4)
    width = original.num_features
    head = {"head.weight": torch.ones(7, width), "head.bias": torch.ones(7)}
    save_file(state_of(original) | head, tmp_path / "weights.safetensors")
    loaded = built(TINY, image_size=32, weights=str(tmp_path / "weights.safetensors"))
    assert loaded.fingerprint == original.fingerprint


@pytest.mark.parametrize("name", [MINI, TINY])
def test_the_position_embedding_is_resized(tmp_path, name):
    original = built(name, image_size=32, seed=4)
    save_file(state_of(original), tmp_path / "weights.safetensors")
    larger = built(name, weights=str(tmp_path / "weights.safetensors"), image_size=64)
    assert larger.module(images(64)).shape == (2, original.num_features)
    before, after = state_of(original), state_of(larger)
    assert before["pos_embed"].shape[1] < after["pos_embed"].shape[1]
    for key in before:
        if key != "pos_embed":
            assert torch.equal(before[key], after[key]), key


def test_half_precision_is_widened(tmp_path):
    original = built(MINI, seed=4)
    save_file({key: value.half() for key, value in state_of(original).items()}, tmp_path / "weights.safetensors")
    loaded = built(MINI, weights=str(tmp_path / "weights.safetensors"))
    assert loaded.theta_p.dtype == torch.float32
    assert torch.equal(loaded.theta_p, original.theta_p.half().float())


# --- timm ---


def test_any_model_of_timm_with_random_weights():
    backbone = built(TINY, image_size=32, seed=1)
    assert backbone.module(images(32)).shape == (2, 192)
    assert built(TINY, image_size=32, seed=2).fingerprint != backbone.fingerprint
    assert len(backbone.mean) == len(backbone.std) == 3


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "convnext_atto"])
def test_other_families_are_built_for_the_image_size_too(name):
    backbone = built(name, image_size=32)
    assert backbone.module(images(32)).shape == (2, backbone.num_features)


# --- what cannot be built ---


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(BackboneError, match=r"unknown backbone 'vit_mini_clip'; did you mean 'vit_mini_clip_32'"):
        built("vit_mini_clip")
    with pytest.raises(BackboneError, match=rf"did you mean '{TINY}'"):
        built("vit_tiny_patch16_225")
    with pytest.raises(BackboneError, match=r"^unknown backbone 'qqqqqq'; the default is 'vit_mini_clip_32'"):
        built("qqqqqq")


def test_an_unknown_tag_of_a_known_model_is_refused():
    with pytest.raises(BackboneError, match=rf"'{TINY}\.nonsense'.*timm has {TINY}\.augreg_in21k"):
        built(f"{TINY}.nonsense")


@pytest.mark.parametrize("name", [MINI, TINY])
def test_a_missing_file(tmp_path, name):
    path = tmp_path / "none.safetensors"
    with pytest.raises(
        BackboneError,
        match=r"weights file .*none\.safetensors does not exist; backbone\.weights takes 'pretrained', 'random' or",
    ):
        built(name, weights=str(path))


@pytest.mark.parametrize("name", [MINI, TINY])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_file_that_is_no_weights_file(tmp_path, name, ending):
    path = tmp_path / f"junk.{ending}"
    path.write_bytes(b"not weights at all" * 10)
    with pytest.raises(BackboneError, match=rf"weights file .*junk\.{ending} "):
        built(name, weights=str(path))


@pytest.mark.parametrize("name", [MINI, TINY])
def test_a_file_whose_keys_do_not_fit(tmp_path, name):
    path = tmp_path / "foreign.safetensors"
    save_file({"something.else": torch.zeros(3)}, path)
    with pytest.raises(BackboneError, match=rf"foreign\.safetensors does not fit backbone '{name}'"):
        built(name, weights=str(path))


@pytest.mark.parametrize("name", [MINI, TINY])
@pytest.mark.parametrize("change", ["less", "more", "other shape"])
def test_a_file_that_fits_but_for_one_tensor(tmp_path, name, change):
    state = state_of(built(name))
    if change == "less":
        del state["blocks.0.norm1.weight"]
    elif change == "more":
        state["blocks.0.norm1.extra"] = torch.zeros(3)
    else:
        state["blocks.0.norm1.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(BackboneError, match=rf"(?s)does not fit backbone '{name}'.*norm1"):
        built(name, weights=str(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize(("wanted", "other"), [(MINI, TINY), (TINY, MINI)])
def test_a_file_of_another_model(tmp_path, wanted, other):
    save_file(state_of(built(other)), tmp_path / "weights.safetensors")
    with pytest.raises(BackboneError, match=rf"does not fit backbone '{wanted}'"):
        built(wanted, weights=str(tmp_path / "weights.safetensors"))


def test_batch_norm_is_refused():
    with pytest.raises(BackboneError, match="'resnet18' has batch-norm running statistics"):
        built("resnet18")


@pytest.mark.parametrize("kind", [RuntimeError, OSError, ConnectionError])
def test_a_download_without_network_says_which_file_to_place_and_where(monkeypatch, tmp_path, kind):
    import timm

    def offline(*_, **__):
        raise kind("no route to host\nand more lines")

    monkeypatch.setenv("MATU_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setattr(timm, "create_model", offline)
    name = "vit_base_patch32_clip_224.openai"
    expected = (
        f"the pre-trained weights of {name!r} could not be downloaded (no route to host); fetch model.safetensors of "
        f"the Hugging Face model timm/{name} on another machine and put it at {tmp_path}/{name}.safetensors (or "
        ".bin, .pt), or set backbone.weights to its path"
    )
    with pytest.raises(BackboneError) as caught:
        built(name, weights="pretrained")
    assert str(caught.value) == expected
    with pytest.raises(BackboneError, match=rf"put it at .*/{TINY}\.augreg_in21k_ft_in1k\.safetensors"):
        built(TINY, weights="pretrained")


@pytest.mark.parametrize("ending", ["safetensors", "bin", "pt"])
def test_a_placed_file_is_taken_instead_of_the_download(monkeypatch, tmp_path, ending):
    monkeypatch.setenv("MATU_WEIGHTS_DIR", str(tmp_path))
    original = built(TINY, image_size=32, seed=4)
    path = tmp_path / f"{TINY}.augreg_in21k_ft_in1k.{ending}"
    save_file(state_of(original), path) if ending == "safetensors" else torch.save(state_of(original), path)
    for name in (TINY, f"{TINY}.augreg_in21k_ft_in1k"):
        assert built(name, image_size=32, weights="pretrained").fingerprint == original.fingerprint


# --- image towers ---


def test_images_are_as_large_as_the_model_s_own_unless_said_otherwise():
    backbone = built("vit_base_patch32_clip_224.openai", image_size=32)
    assert (backbone.image_size, built(MINI).image_size) == (32, 32)
    assert built(TINY).image_size == 224
    assert backbone.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert built(TINY).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "clip", "features"),
    [
        (MINI, True, 128),
        ("vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", True, 512),
        ("vit_base_patch32_clip_224.openai_ft_in1k", False, 768),
        (TINY, False, 192),
    ],
)
def test_a_clip_tower_keeps_its_projection_and_a_classifier_goes(name, clip, features):
    backbone = built(name, image_size=32)
    assert (backbone.clip, backbone.num_features) == (clip, features)
    assert backbone.module(images(32)).shape == (2, features)
    assert any(key.startswith("head.") for key in backbone.parameters()) == clip
    assert "head.bias" not in backbone.parameters()


def test_a_task_vector_of_the_paper_s_backbone_has_the_published_length():
    """CLIP ViT-B/32's image tower with its projection: 87,849,216 parameters, without timm's extra bias."""
    assert built("vit_base_patch32_clip_224.openai").d == 87_849_216


def test_the_width_of_the_features_is_that_of_the_output():
    backbone = create_backbone("mambaout_femto", weights="random", image_size=64)
    assert backbone.num_features == backbone.module(torch.zeros(1, 3, 64, 64)).shape[1]


def test_a_model_that_does_not_take_the_size():
    with pytest.raises(
        BackboneError, match=r"backbone 'crossvit_tiny_240' (does not take images of|cannot be built for) 64"
    ):
        create_backbone("crossvit_tiny_240", weights="random", image_size=64)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_not_opened(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "scripted.pt"))
    with pytest.raises(
        BackboneError, match=r"scripted\.pt is a TorchScript archive, which can hold code: if you trust"
    ):
        create_backbone("vit_tiny_patch16_224", weights=str(tmp_path / "scripted.pt"), image_size=32)
