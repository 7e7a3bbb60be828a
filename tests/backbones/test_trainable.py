"""What a task vector covers: all parameters, or adapters; and the linearised model."""

import pytest
import torch

from matu_flwr.backbones import BackboneError, create_backbone

TINY = "vit_tiny_patch16_224"


def built(**options):
    return create_backbone(TINY, weights="random", image_size=32, **options)


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def start(backbone, images):
    backbone.load(None)
    with torch.no_grad():
        return backbone.module(images)


# --- LoRA ---


def test_adapters_start_at_the_pre_trained_model(images):
    full, lora = built(), built(trainable="lora")
    assert torch.allclose(start(full, images), start(lora, images), atol=1e-6)
    assert {key.rpartition(".lora_")[2][:1] for key in lora.parameters()} == {"A", "B"}


def test_the_length_of_an_adapter_vector_is_rank_times_the_sides_of_its_layers():
    """qkv of a ViT-Tiny is 192 -> 576; 12 blocks; r = 4: 12 * 4 * (192 + 576) = 36,864."""
    backbone = built(trainable="lora", lora_rank=4, lora_targets="qkv")
    assert backbone.d == 36_864
    assert backbone.total == built().total + 36_864
    assert backbone.parts() == {f"blocks.{index}": 3_072 for index in range(12)}


def test_a_comes_from_the_seed_alone_and_b_is_zero(tmp_path, images):
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file({key: p.detach().clone() for key, p in built(seed=9).parameters().items()}, path)
    one = built(trainable="lora", seed=3)
    same_seed = create_backbone(TINY, weights=str(path), image_size=32, trainable="lora", seed=3)
    assert torch.equal(one.theta_p, same_seed.theta_p)
    assert not torch.equal(one.theta_p, built(trainable="lora", seed=4).theta_p)
    for key, value in one.layout.unflatten(one.theta_p).items():
        assert bool(value.any()) == (".lora_A." in key)


def test_the_fingerprint_covers_what_is_frozen():
    """The same adapters on other weights are another θ_p."""
    one, other = built(trainable="lora", seed=1), built(trainable="lora", seed=2)
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint not in (built(seed=1).fingerprint, one.layout.fingerprint(one.theta_p))


def test_the_scale_is_alpha_over_rank(images):
    small, large = (built(trainable="lora", lora_rank=4, lora_alpha=alpha) for alpha in (4.0, 8.0))
    tau = torch.randn(small.d, generator=torch.Generator().manual_seed(0)) * 0.02
    origin = start(small, images)
    moved = []
    for backbone in (small, large):
        backbone.load(tau)
        with torch.no_grad():
            moved.append((backbone.module(images) - origin).norm())
    assert moved[1] > 1.5 * moved[0]


def test_an_adapter_for_layers_that_are_not_there():
    with pytest.raises(
        BackboneError, match=r"lora-targets: no linear layer is called 'q_proj'; layers end in \['fc1', 'fc2'"
    ):
        built(trainable="lora", lora_targets="qkv,q_proj")


def test_lora_without_peft_says_what_to_install(monkeypatch):
    import sys

    create_backbone.cache_clear()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BackboneError, match=r"needs the package peft: pip install 'matu-flwr\[lora\]'"):
        built(trainable="lora", lora_rank=3)


def test_frozen_parameters_get_no_gradient(images):
    backbone = built(trainable="lora")
    backbone.load(None)
    backbone.module(images).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters().values())
    frozen = [p for p in backbone.tower.parameters() if not p.requires_grad]
    assert frozen
    assert all(p.grad is None for p in frozen)


def test_nothing_else_can_be_trained():
    with pytest.raises(BackboneError, match=r"^trainable = 'blocks': expected 'full' or 'lora'$"):
        built(trainable="blocks")


# --- the linearised model ---


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_linearised_is_the_model_at_the_start_and_linear_in_the_task_vector(images, trainable):
    backbone = built(trainable=trainable, linearised=True)
    origin = start(built(trainable=trainable), images)
    assert torch.allclose(start(backbone, images), origin, atol=1e-5)
    chance = torch.Generator().manual_seed(0)
    one, other = (torch.randn(backbone.d, generator=chance) * 1e-3 for _ in range(2))

    def change(tau):
        backbone.load(tau)
        with torch.no_grad():
            return backbone.module(images) - origin

    assert change(one).norm() > 1e-4
    assert torch.allclose(change(one + 2 * other), change(one) + 2 * change(other), atol=2e-5)


def test_the_forward_product_agrees_with_finite_differences(images):
    """In float64: (f(θ_p + h v) − f(θ_p − h v)) / 2h = J v."""
    backbone = built(linearised=True)
    tower = backbone.tower.double()
    backbone.module.double()
    direction = torch.randn(backbone.d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction /= direction.norm()
    origin, step = backbone.theta_p.double(), 1e-5
    found = []
    with torch.no_grad():
        for sign in (1, -1):
            backbone.layout.write(origin + sign * step * direction, backbone.parameters())
            found.append(tower(images.double()))
        backbone.layout.write(origin + direction, backbone.parameters())
        product = backbone.module(images.double())
        backbone.layout.write(origin, backbone.parameters())
        product -= backbone.module(images.double())
    create_backbone.cache_clear()  # this one is float64 now
    assert torch.allclose((found[0] - found[1]) / (2 * step), product, rtol=1e-5, atol=1e-8)


def test_linearised_models_can_be_trained(images):
    """Five steps of gradient descent on a loss that is convex in τ: it falls at each."""
    backbone = built(linearised=True)
    backbone.load(None)
    target = start(backbone, images) + 0.1
    parameters = list(backbone.parameters().values())
    optimizer = torch.optim.SGD(parameters, lr=1e-4)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = ((backbone.module(images) - target) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_targets_that_name_nothing():
    with pytest.raises(BackboneError, match=r"backbone\.lora-targets = ',' names no layer"):
        create_backbone("vit_mini_clip_32", weights="random", trainable="lora", lora_targets=",")
