"""Fine-tuning against a plain loop over torch's own modules, and its laws."""

import local_models as models
import numpy as np
import pytest
import torch
from torch import nn

from matu_flwr.backbones import LinearHead, zero_head
from matu_flwr.local import TrainingDiverged, fit
from matu_flwr.settings import TrainSettings


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
    if chosen.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=chosen.weight_decay)
    else:
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
    [{}, {"optimizer": "sgd"}, {"weight_decay": 0.1}, {"clip_norm": 0.0}, {"clip_norm": 0.05}, {"batch_size": 7}],
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


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_loss_that_is_not_finite_names_the_task_and_the_knobs(optimizer):
    chosen = options(optimizer=optimizer, lr=1e30, head_lr=1e30, clip_norm=0.0)
    with pytest.raises(
        TrainingDiverged,
        match=r"^task 'corn': the training loss became (nan|inf); lower train\.lr \(now 1e\+30\) or set "
        r"train\.clip-norm \(now 0\.0\)$",
    ):
        fit(models.backbone(), None, some_head(), models.images(), chosen, seed=0, task="corn")


def test_a_start_that_is_not_finite_is_found_at_the_first_step():
    backbone = models.backbone()
    with pytest.raises(TrainingDiverged, match="became nan"):
        fit(
            backbone, torch.full((backbone.d,), float("nan")), some_head(), models.images(), options(), seed=0, task="t"
        )


def test_a_last_step_that_diverges_is_found_too():
    """The loss of the only step is finite; what that step makes of the weights is not."""
    backbone = models.backbone()
    chosen = options(steps=1, optimizer="sgd", lr=1e10, weight_decay=1e38)
    with pytest.raises(TrainingDiverged, match="'corn'"):
        fit(backbone, None, some_head(), models.images(), chosen, seed=0, task="corn")
