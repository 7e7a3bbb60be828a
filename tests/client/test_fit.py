"""Fine-tuning against a plain loop over torch's own modules, and its laws."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from matu_flwr.backbones import LinearHead, zero_head
from matu_flwr.client import TrainingDiverged, UnusableModel, evaluate, fit
from matu_flwr.client.fit import Proximal, Span, TaskShare, fit_jointly, rate_factor
from matu_flwr.config.sections import TrainSettings
from matu_flwr.config.settings import Settings
from matu_flwr.strategies.fedrep import head_steps
from tests.client import models


def options(**changes):
    return TrainSettings(**{"steps": 12, "batch_size": 8, "lr": 0.01, "head_lr": 0.05} | changes)


def some_head(seed=3):
    chance = torch.Generator().manual_seed(seed)
    return LinearHead(torch.randn(3, 5, generator=chance), torch.randn(3, generator=chance))


def start_vector(backbone, seed=1):
    return 0.1 * torch.randn(backbone.d, generator=torch.Generator().manual_seed(seed))


def naive_fit(start, head, data, chosen, seed):
    """The same in the words of a beginner's tutorial: one module, its own normalisation, clipping by hand."""
    backbone = models.backbone()
    model = nn.Sequential(backbone.module, nn.Linear(5, 3))
    with torch.no_grad():
        at = 0
        for parameter in backbone.module.parameters():
            if start is not None:
                parameter += start[at : at + parameter.numel()].view(parameter.shape)
            at += parameter.numel()
        model[1].weight.copy_(head.weight)
        model[1].bias.copy_(head.bias)
    groups = [
        {"params": model[0].parameters(), "lr": chosen.lr},
        {"params": model[1].parameters(), "lr": chosen.head_lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=chosen.weight_decay, fused=False)
    chance = np.random.default_rng(seed)
    waiting, losses = [], []
    for _ in range(chosen.steps):
        while len(waiting) < min(chosen.batch_size, len(data.index)):
            waiting += chance.permutation(len(data.index)).tolist()
        batch, waiting = waiting[: chosen.batch_size], waiting[chosen.batch_size :]
        pixels = torch.stack([torch.tensor(data.images[data.index[i]]).permute(2, 0, 1) for i in batch])
        labels = torch.tensor([int(data.labels[data.index[i]]) for i in batch])
        loss = nn.CrossEntropyLoss()(model((pixels / 255 - 0.5) / 0.5), labels)
        optimizer.zero_grad()
        loss.backward()
        norm = sum(float((p.grad**2).sum()) for p in model[0].parameters()) ** 0.5
        if chosen.clip_norm and norm > chosen.clip_norm:
            for parameter in model[0].parameters():
                parameter.grad *= chosen.clip_norm / norm
        optimizer.step()
        losses.append(loss.item())
    flat = torch.cat([p.detach().reshape(-1) for p in model[0].parameters()])
    return flat - backbone.theta_p, model[1], sum(losses) / len(losses)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{}, {"weight_decay": 0.1}, {"clip_norm": 0.0}, {"clip_norm": 0.05}, {"batch_size": 7}],
    ids=str,
)
def test_the_same_as_a_plain_loop(changes, started):
    backbone, data, head, chosen = models.backbone(), models.images(), some_head(), options(**changes)
    start = start_vector(backbone) if started else None
    result = fit(backbone, start, head, data, chosen, seed=5, task="t")
    vector, linear, loss = naive_fit(start, head, data, chosen, seed=5)
    assert torch.allclose(result.task_vector, vector, atol=2e-5)
    assert torch.allclose(result.head.weight, linear.weight, atol=2e-5)
    assert torch.allclose(result.head.bias, linear.bias, atol=2e-5)
    assert result.loss == pytest.approx(loss, abs=1e-5)


def test_the_loss_falls():
    backbone, data, head = models.backbone(), models.images(), zero_head(3, 5)
    once = fit(backbone, None, head, data, options(steps=1), seed=0, task="t")
    assert once.loss == pytest.approx(np.log(3), abs=1e-6)  # a head of zeros gives every class a third
    first = fit(backbone, None, head, data, options(steps=40), seed=0, task="t")
    second = fit(backbone, first.task_vector, first.head, data, options(steps=40), seed=1, task="t")
    assert second.loss < first.loss < once.loss
    assert second.loss < 0.2


def test_the_seed_decides_bit_for_bit():
    def vector(seed, noise):
        torch.manual_seed(noise)  # the global generator plays no part
        return fit(models.backbone(), None, some_head(), models.images(), options(), seed=seed, task="t").task_vector

    assert torch.equal(vector(1, 10), vector(1, 11))
    assert not torch.equal(vector(1, 10), vector(2, 10))


def test_what_the_working_copy_held_before_plays_no_part():
    backbone = models.backbone()
    first = fit(backbone, None, some_head(), models.images(), options(), seed=1, task="t")
    backbone.load(torch.full((backbone.d,), 5.0))
    again = fit(backbone, None, some_head(), models.images(), options(), seed=1, task="t")
    assert torch.equal(first.task_vector, again.task_vector)


def test_no_start_is_the_common_start():
    backbone = models.backbone()
    none = fit(backbone, None, some_head(), models.images(), options(), seed=1, task="t")
    zero = fit(backbone, torch.zeros(backbone.d), some_head(), models.images(), options(), seed=1, task="t")
    assert torch.equal(none.task_vector, zero.task_vector)


def test_start_and_head_are_not_changed():
    backbone, head = models.backbone(), some_head()
    start = start_vector(backbone)
    kept, weight, bias, theta_p = start.clone(), head.weight.clone(), head.bias.clone(), backbone.theta_p.clone()
    result = fit(backbone, start, head, models.images(), options(), seed=1, task="t")
    assert torch.equal(start, kept)
    assert torch.equal(head.weight, weight)
    assert torch.equal(head.bias, bias)
    assert torch.equal(backbone.theta_p, theta_p)
    assert not torch.equal(result.head.weight, weight)
    assert not result.head.weight.requires_grad
    assert not result.task_vector.requires_grad


def test_a_loss_that_is_not_finite_names_the_task_and_the_knobs():
    chosen = options(lr=1e30, head_lr=1e30, clip_norm=0.0)
    with pytest.raises(
        TrainingDiverged,
        match=r"^task 'corn': the training loss became (nan|inf); lower train\.lr \(now 1e\+30\) or set "
        r"train\.clip-norm \(now 0\.0\)$",
    ):
        fit(models.backbone(), None, some_head(), models.images(), chosen, seed=0, task="corn")


STARTS = {
    "NaN": (math.nan, some_head()),
    "a vector that overflows": (3e38, some_head()),
    "a head with NaN": (0.0, LinearHead(some_head().weight, torch.full((3,), math.nan))),
    "a head that overflows": (0.0, LinearHead(torch.full((3, 5), 3.4e38), torch.full((3,), 3.4e38))),
}


@pytest.mark.parametrize("update", ["both", "heads", "backbone"])
@pytest.mark.parametrize("start", STARTS)
def test_a_start_that_was_spoilt_before_blames_no_learning_rate(start, update):
    value, head = STARTS[start]
    backbone, share = models.backbone(), TaskShare(head, models.images(), 0)
    with pytest.raises(TrainingDiverged) as caught:
        fit_jointly(backbone, torch.full((backbone.d,), value), {"corn": share}, options(), update=update)
    text = str(caught.value)
    assert re.match(
        r"task 'corn': the loss was (nan|inf) before the first step: what the client started from, sent by the server "
        r"or kept from an earlier round, gives no usable model\. Nothing that it did in this round is the cause: see "
        r"in the history of the run in which round the task was spoilt, and resume from a checkpoint before that\.",
        text,
    )
    assert "train.lr" not in text


@pytest.mark.parametrize("order", [["fine", "spoilt"], ["spoilt", "fine"]])
def test_a_task_that_another_one_s_head_spoils_is_not_the_one_that_is_named(order):
    heads = {"fine": some_head(), "spoilt": STARTS["a head with NaN"][1]}
    shares = {task: TaskShare(heads[task], models.images(), 0) for task in order}
    with pytest.raises(TrainingDiverged, match=r"^task 'spoilt': the loss was nan before the first step"):
        fit_jointly(models.backbone(), None, shares, options())


def test_a_test_of_a_spoilt_model_says_so():
    backbone = models.backbone()
    with pytest.raises(UnusableModel, match=r"^task 'corn': the loss of the model on 9 test images is nan, so its acc"):
        evaluate(backbone, torch.full((backbone.d,), math.nan), some_head(), models.images(9), task="corn")


def test_a_last_step_that_diverges_is_found_too():
    """The loss of the only step is finite; what that step makes of the weights is not."""
    backbone = models.backbone()
    chosen = options(steps=1, lr=1e10, weight_decay=1e38)
    with pytest.raises(TrainingDiverged, match="'corn'"):
        fit(backbone, None, some_head(), models.images(), chosen, seed=0, task="corn")


# --- several tasks with one backbone ---


def shares(count=2):
    return {f"t{i}": TaskShare(some_head(seed=i), models.images(seed=i), seed=20 + i) for i in range(count)}


def test_joint_training_is_a_plain_loop_that_alternates():
    backbone, tasks, chosen = models.backbone(), shares(), options(steps=5)
    vector, heads, losses = fit_jointly(backbone, start_vector(backbone), tasks, chosen)

    plain = models.backbone()
    plain.load(start_vector(plain))
    body = list(plain.module.parameters())
    linear = {task: nn.Linear(5, 3) for task in tasks}
    for task, share in tasks.items():
        linear[task].load_state_dict({"weight": share.head.weight, "bias": share.head.bias})
    groups = [
        {"params": body, "lr": chosen.lr},
        {"params": [p for layer in linear.values() for p in layer.parameters()], "lr": chosen.head_lr},
    ]
    step_of = torch.optim.AdamW(groups, weight_decay=0.0)
    feeds = {task: share.data.shuffled(chosen.steps, chosen.batch_size, share.seed) for task, share in tasks.items()}
    seen = {task: [] for task in tasks}
    for _ in range(chosen.steps):
        for task, feed in feeds.items():
            pixels, labels = next(feed)
            logits = linear[task](plain.module((pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5))
            loss = nn.functional.cross_entropy(logits, labels)
            step_of.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(body, chosen.clip_norm)
            step_of.step()
            seen[task].append(loss.item())
    torch.testing.assert_close(vector, plain.task_vector(), atol=2e-5, rtol=1e-4)
    for task, layer in linear.items():
        torch.testing.assert_close(heads[task].weight, layer.weight.detach(), atol=2e-5, rtol=1e-4)
        assert losses[task] == pytest.approx(sum(seen[task]) / chosen.steps, abs=1e-5)


def test_one_task_jointly_is_fine_tuning_alone():
    (task, share), *_ = shares(1).items()
    vector, heads, losses = fit_jointly(models.backbone(), None, {task: share}, options())
    alone = fit(models.backbone(), None, share.head, share.data, options(), seed=share.seed, task=task)
    assert torch.equal(vector, alone.task_vector)
    assert torch.equal(heads[task].weight, alone.head.weight)
    assert losses[task] == alone.loss


# --- schedules ---


@pytest.mark.parametrize(
    ("changes", "total", "expected"),
    [
        ({}, 4, [1, 1, 1, 1]),
        ({"warmup": 0.5}, 4, [0.5, 1, 1, 1]),
        ({"warmup": 1.0}, 4, [0.25, 0.5, 0.75, 1]),
        ({"schedule": "cosine"}, 4, [1, 0.8535534, 0.5, 0.1464466]),
        ({"schedule": "cosine", "warmup": 0.5}, 4, [0.5, 1, 1, 0.5]),
        ({"warmup": 0.1}, 4, [1, 1, 1, 1]),  # less than a step: nothing to rise through
    ],
)
def test_rates_by_hand(changes, total, expected):
    found = [rate_factor(step, total, options(**changes)) for step in range(total)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_schedule_runs_over_all_rounds_and_not_over_each():
    """Two calls of six steps inside a span of twelve have the rates of the whole: the second one's are smaller."""
    chosen = options(steps=6, schedule="cosine")
    moved = [
        fit(models.backbone(), None, some_head(), models.images(), chosen, seed=1, task="t", span=Span(done, 12))
        .task_vector.norm()
        .item()
        for done in (0, 6)
    ]
    assert moved[1] < 0.5 * moved[0]


# --- frozen heads, half precision ---


def test_a_zero_shot_head_is_frozen_and_sees_unit_features():
    head = LinearHead(some_head().weight, torch.zeros(3), zero_shot=True)
    result = fit(models.backbone(), None, head, models.images(), options(), seed=1, task="t")
    assert torch.equal(result.head.weight, head.weight)
    assert result.head.zero_shot
    assert result.task_vector.norm() > 0
    backbone = models.backbone()
    pixels = torch.rand(4, 3, 8, 8)
    features = backbone.module(pixels)
    expected = (features / features.norm(dim=1, keepdim=True)) @ head.weight.T
    torch.testing.assert_close(head(features), expected)


def test_half_precision_computes_in_bfloat16_and_keeps_float32():
    seen = []
    backbone = models.backbone()
    backbone.module.second.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    full = fit(models.backbone(), None, some_head(), models.images(), options(), seed=1, task="t")
    half = fit(backbone, None, some_head(), models.images(), options(precision="bfloat16"), seed=1, task="t")
    assert set(seen) == {torch.bfloat16}
    assert half.task_vector.dtype == torch.float32
    assert not torch.equal(half.task_vector, full.task_vector)
    assert (half.task_vector - full.task_vector).norm() < 0.1 * full.task_vector.norm()
    tested = [evaluate(backbone, half.task_vector, half.head, models.images(), p) for p in ("float32", "bfloat16")]
    assert tested[0].loss == pytest.approx(tested[1].loss, abs=0.05)
    assert seen[-1] == torch.bfloat16


# --- parts of the methods ---


@pytest.fixture
def descent(monkeypatch):
    """Plain gradient descent in the place of AdamW: a step then shows the whole gradient, and not only its signs."""

    def make(backbone, heads, options):
        groups = [{"params": backbone, "lr": options.lr}, {"params": heads, "lr": options.head_lr}]
        return torch.optim.SGD([group for group in groups if group["params"]])

    monkeypatch.setitem(fit_jointly.__globals__, "make_optimizer", make)


@pytest.mark.usefixtures("descent")
def test_the_pull_by_hand():
    """One step of gradient descent: θ − lr (g + μ (θ − θ_c))."""
    chosen = options(steps=1, clip_norm=0.0)
    backbone, tasks = models.backbone(), shares(1)
    start, center = start_vector(backbone, 1), start_vector(backbone, 2)
    free, _, _ = fit_jointly(backbone, start, tasks, chosen)
    pulled, _, _ = fit_jointly(backbone, start, tasks, chosen, proximal=Proximal(0.5, center))
    torch.testing.assert_close(pulled - free, -chosen.lr * 0.5 * (start - center), rtol=1e-4, atol=1e-7)
    to_origin, _, _ = fit_jointly(backbone, start, tasks, chosen, proximal=Proximal(0.5, None))
    torch.testing.assert_close(to_origin - free, -chosen.lr * 0.5 * start, rtol=1e-4, atol=1e-7)


def test_a_pull_of_strength_zero_changes_no_bit():
    backbone, tasks = models.backbone(), shares()
    free, _, _ = fit_jointly(backbone, start_vector(backbone), tasks, options())
    pulled, _, _ = fit_jointly(
        backbone, start_vector(backbone), tasks, options(), proximal=Proximal(0.0, start_vector(backbone, 2))
    )
    assert torch.equal(free, pulled)


def test_heads_alone_leave_the_backbone_where_it_starts():
    backbone, tasks = models.backbone(), shares()
    start = start_vector(backbone)
    vector, heads, losses = fit_jointly(backbone, start, tasks, options(), update="heads")
    torch.testing.assert_close(vector, start, rtol=0, atol=1e-6)
    for task, share in tasks.items():
        assert not torch.equal(heads[task].weight, share.head.weight)
        assert losses[task] > 0


def test_the_backbone_alone_leaves_the_heads_as_they_are():
    backbone, tasks = models.backbone(), shares()
    vector, heads, _ = fit_jointly(backbone, None, tasks, options(), update="backbone")
    assert vector.norm() > 0
    for task, share in tasks.items():
        assert torch.equal(heads[task].weight, share.head.weight)
        assert torch.equal(heads[task].bias, share.head.bias)


@pytest.mark.parametrize(("share", "steps", "expected"), [(0.5, 10, 5), (0.01, 10, 1), (1.0, 10, 9), (0.5, 2, 1)])
def test_fedrep_leaves_a_step_for_either_part(share, steps, expected):
    assert head_steps(Settings.from_flat({"fedrep.head-share": share, "train.steps": steps})) == expected


@pytest.mark.usefixtures("descent")
@pytest.mark.parametrize("update", ["both", "backbone"])
def test_clipping_sees_the_loss_and_the_pull_together(update):
    """One step: the gradient is g + μ (θ − θ_c), and that sum is what is shortened to the bound."""
    backbone, tasks, start, center = models.backbone(), shares(1), *(start_vector(models.backbone(), i) for i in (1, 2))
    plain = options(steps=1, clip_norm=0.0)
    free, _, _ = fit_jointly(backbone, start, tasks, plain)
    whole = (start - free) / plain.lr + 50 * (start - center)  # g, as a step without clipping shows it, and μ = 50
    bound = 0.25 * whole.norm().item()
    pulled, _, _ = fit_jointly(
        backbone, start, tasks, options(steps=1, clip_norm=bound), update=update, proximal=Proximal(50.0, center)
    )
    assert ((pulled - start).norm() / plain.lr).item() == pytest.approx(bound, rel=1e-3)
    torch.testing.assert_close(pulled - start, -plain.lr * whole / 4, rtol=1e-2, atol=1e-6)


def test_the_first_step_with_a_pull_follows_the_signs_of_the_sum():
    """AdamW's first step is lr · sign of the gradient; a strong pull decides that sign everywhere."""
    backbone, start, center = models.backbone(), *(start_vector(models.backbone(), i) for i in (1, 2))
    chosen = options(steps=1)
    pulled, _, _ = fit_jointly(backbone, start, shares(1), chosen, proximal=Proximal(1e6, center))
    torch.testing.assert_close(pulled - start, -chosen.lr * (start - center).sign(), rtol=1e-2, atol=1e-6)
