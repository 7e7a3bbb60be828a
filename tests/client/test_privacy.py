"""The Gaussian mechanism on a task's update: by hand, against a slow twin, its laws, and what leaves a client."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.backbones import LinearHead
from matu_flwr.client.fit import FitResult
from matu_flwr.client.privacy import gaussian_mechanism, private_result
from matu_flwr.config.sections import PrivacySettings
from tests.support.laws import examples

numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20)
clips = st.sampled_from([1e-3, 0.5, 1.0, 40.0, 1e5])


def chance(seed=0):
    return np.random.default_rng(seed)


def slow_mechanism(parts, clip_norm, sigma, chance):
    """Number by number."""
    norm = math.sqrt(math.fsum(x * x for part in parts for x in part))
    ratio = min(1.0, clip_norm / norm) if norm else 1.0
    return [[x * ratio + sigma * clip_norm * float(chance.standard_normal()) for x in part] for part in parts]


def head(weight, bias, zero_shot=False):
    return LinearHead(torch.tensor(weight), torch.tensor(bias), zero_shot)


def test_the_parts_are_clipped_together():
    """‖(3, 4, 12)‖ = 13, S = 6.5: everything is halved."""
    vector, weight = gaussian_mechanism([torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])], 6.5, 0.0, chance())
    assert vector.tolist() == [1.5, 2.0]
    assert weight.tolist() == [[6.0]]


@examples(100)
@given(st.lists(numbers, min_size=1, max_size=3), clips, st.sampled_from([0.0, 0.3, 2.0]), st.integers(0, 99))
def test_the_mechanism_is_the_slow_twin(parts, clip_norm, sigma, seed):
    found = gaussian_mechanism([torch.tensor(part) for part in parts], clip_norm, sigma, chance(seed))
    for part, expected in zip(found, slow_mechanism(parts, clip_norm, sigma, chance(seed)), strict=True):
        np.testing.assert_allclose(part.numpy(), expected, rtol=1e-5, atol=1e-5 * clip_norm)


@examples(100)
@given(st.lists(numbers, min_size=1, max_size=3), clips)
def test_without_noise_nothing_is_longer_than_the_bound_or_than_it_was(parts, clip_norm):
    tensors = [torch.tensor(part) for part in parts]
    before = math.sqrt(sum(float(t.double().square().sum()) for t in tensors))
    released = gaussian_mechanism(tensors, clip_norm, 0.0, chance())
    after = math.sqrt(sum(float(t.double().square().sum()) for t in released))
    assert after <= min(before, clip_norm) * (1 + 1e-6)


@examples(50)
@given(numbers, numbers, clips, st.integers(0, 9))
def test_two_sets_of_images_are_at_most_twice_the_bound_apart(one, other, clip_norm, seed):
    """The sensitivity that the accountant assumes: with the same noise, any two updates differ by 2S at most."""
    size = max(len(one), len(other))
    released = [
        gaussian_mechanism([torch.tensor(x + [0.0] * (size - len(x)))], clip_norm, 0.7, chance(seed))[0].double()
        for x in (one, other)
    ]
    assert float((released[0] - released[1]).norm()) <= 2 * clip_norm * (1 + 1e-5) + 1e-5 * clip_norm * size


def test_the_noise_has_the_deviation_that_is_accounted_for():
    """σ S = 0.5 · 3: over 200 000 numbers, within 1 % (four standard errors are 0.6 %), and of mean zero."""
    noise = gaussian_mechanism([torch.zeros(200_000)], 3.0, 0.5, chance(1))[0].double()
    assert float(noise.std()) == pytest.approx(1.5, rel=0.01)
    assert abs(float(noise.mean())) < 4 * 1.5 / math.sqrt(200_000)


def test_what_is_released_is_the_start_and_the_noised_change():
    options = PrivacySettings(noise_multiplier=0.5, clip_norm=1.0)
    start, begun = torch.tensor([1.0, 2.0]), head([[1.0, 0.0]], [5.0])
    trained = FitResult(torch.tensor([4.0, 6.0]), head([[1.0, 12.0]], [5.0]), 0.25)
    found = private_result(trained, start, begun, options, chance(3))
    noise = chance(3)
    expected = [x / 13 + 0.5 * float(noise.standard_normal()) for x in (3.0, 4.0, 0.0, 12.0, 0.0)]
    released = [*(found.task_vector - start), *(found.head.weight - begun.weight).view(-1), *(found.head.bias - 5.0)]
    np.testing.assert_allclose([float(x) for x in released], expected, rtol=1e-5, atol=1e-6)
    assert math.isnan(found.loss)


def test_a_frozen_head_is_left_alone_and_takes_no_share_of_the_bound():
    frozen = head([[9.0, 9.0]], [9.0], zero_shot=True)
    options = PrivacySettings(noise_multiplier=1e-9, clip_norm=5.0)
    found = private_result(FitResult(torch.tensor([6.0, 8.0]), frozen, 0.1), None, frozen, options, chance())
    assert found.head is frozen
    np.testing.assert_allclose(found.task_vector.numpy(), [3.0, 4.0], rtol=1e-6)


def test_by_default_the_noise_is_never_the_same():
    options = PrivacySettings(noise_multiplier=1.0, clip_norm=1.0)
    frozen = head([[0.0]], [0.0], zero_shot=True)
    result = FitResult(torch.zeros(8), frozen, 0.0)
    one, other = (private_result(result, None, frozen, options).task_vector for _ in range(2))
    assert not torch.equal(one, other)
