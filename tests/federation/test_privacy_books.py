"""ε: against the exact value, its laws, and what a federation reports and refuses."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from matu_flwr.client.privacy import gaussian_mechanism
from matu_flwr.config.sections import PrivacySettings
from matu_flwr.config.settings import Settings, SettingsError
from matu_flwr.federation.privacy_books import PrivacyBooks, epsilon
from matu_flwr.run.console import Narrator, render_lines
from matu_flwr.strategies import prepared
from tests.support.federation import Federation
from tests.support.hostile import AS_FLOATS, hostile, nan
from tests.support.laws import examples

pytest.importorskip("opacus", reason="needs the extra 'privacy'")
NOISE = {"privacy__noise_multiplier": 0.5, "privacy__clip_norm": 0.2}


def exact(sigma, releases, delta):
    """ε of T Gaussian mechanisms of sensitivity 2S, noise σS: Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ) = δ, μ = 2√T/σ.

    Balle and Wang, ICML 2018, theorem 8; T of them are one of √T times the sensitivity.
    """
    mu = 2 * math.sqrt(releases) / sigma

    def excess(eps):
        return norm.cdf(mu / 2 - eps / mu) - math.exp(eps + norm.logcdf(-mu / 2 - eps / mu)) - delta

    return brentq(excess, 0, 1e8) if excess(0) > 0 else 0.0


@examples(60)
@given(st.floats(0.2, 50), st.integers(1, 200), st.sampled_from([1e-3, 1e-5, 1e-8]))
def test_epsilon_is_an_upper_bound_and_not_far_above(sigma, releases, delta):
    truth = exact(sigma, releases, delta)
    assert truth <= epsilon(sigma, releases, delta) <= 1.2 * truth + 0.02


@examples(40)
@given(st.floats(0.2, 50), st.integers(1, 100))
def test_more_noise_costs_less_and_more_releases_cost_more(sigma, releases):
    spent = epsilon(sigma, releases, 1e-5)
    assert epsilon(sigma * 1.5, releases, 1e-5) < spent < epsilon(sigma, releases + 10, 1e-5)


def test_the_bound_is_that_of_replacement_not_of_leaving_out():
    """σ = 2 against sensitivity 2S is σ = 1 against S: near 4.38 at δ = 1e-5 (exact), not the 1.99 of σ = 2."""
    assert exact(2, 1, 1e-5) == pytest.approx(4.377, abs=0.01)
    assert 4.37 < epsilon(2, 1, 1e-5) < 4.38 * 1.2


def test_nobody_who_was_not_asked_has_spent_anything():
    assert epsilon(1.0, 0, 1e-5) == 0.0
    assert PrivacyBooks(PrivacySettings()).event({}) == {}


def test_books_count_by_client_and_task():
    books = PrivacyBooks(PrivacySettings(noise_multiplier=1.0, clip_norm=1.0))
    releases = {}
    books.count(releases, "a", ["s", "t"])
    books.count(releases, "a", ["s"])
    found = books.event(releases)["privacy"]
    assert releases == {"a": {"s": 2, "t": 1}}
    assert found["epsilon"] == {"a": {"s": epsilon(1.0, 2, 1e-5), "t": epsilon(1.0, 1, 1e-5)}}
    assert found["epsilon_all_tasks"] == {"a": epsilon(1.0, 3, 1e-5)}


def test_without_opacus_the_run_does_not_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(
        SettingsError, match=r"needs the package opacus on the server: pip install 'matu-flwr\[privacy\]'"
    ):
        PrivacyBooks(PrivacySettings(noise_multiplier=1.0, clip_norm=1.0))


# ---------------------------------------------------------------- a federation


def test_a_federation_releases_noised_updates_and_heads_and_no_loss(tmp_path):
    run = Federation(tmp_path, rounds=2, **NOISE)
    seen = []
    merge = run.strategy.merge
    run.strategy.merge = lambda updates: (seen.append(updates), merge(updates))[1]
    run.run()
    replies = run.of("client", lambda event: event["phase"] == "train")
    assert all(event["status"] == "ok" for event in replies)
    assert all(math.isnan(task["train_loss"]) for event in replies for task in event["tasks"].values())
    # one task: the vector is y itself, all noise but for S; ‖y‖ ≈ σ S √d
    alone = [u for u in seen[0] if len(u.num_examples) == 1]
    assert alone, "the partition gives somebody one task"
    for update in alone:
        noise = float(update.vectors.reconstruct(*update.num_examples).norm())
        assert noise == pytest.approx(0.5 * 0.2 * math.sqrt(run.backbone.d), rel=0.02)
    for event, asked in zip(run.of("round"), (1, 2), strict=True):
        told = event["privacy"]
        assert {e for tasks in told["epsilon"].values() for e in tasks.values()} == {epsilon(0.5, asked, 1e-5)}
        assert told["epsilon"].keys() == {client.name for client in run.strategy.clients}
    biases = torch.cat([head.bias for head in run.strategy.heads.values()])
    assert float(biases.std()) > 0.02, "heads are noised with the update"


def test_a_reply_that_is_refused_was_a_release_all_the_same(tmp_path):
    run = Federation(tmp_path, rounds=1, grid={"tamper": hostile({0: nan}), "wire": True}, **AS_FLOATS, **NOISE).run()
    assert [e["client"] for e in run.of("client", lambda e: e["status"] == "refused")] == ["client-000"]
    tasks = next(client.tasks for client in run.strategy.clients if client.name == "client-000")
    assert run.strategy.releases["client-000"] == dict.fromkeys(tasks, 1)


def test_a_resumed_run_goes_on_counting_and_adds_the_round_that_may_be_lost(tmp_path):
    one = Federation(tmp_path, rounds=2, **NOISE).run()
    other = Federation(tmp_path, rounds=3, **NOISE)
    other.strategy.resume(2, *one.strategy.state())
    assert other.strategy.releases == one.strategy.releases
    other.run()
    assert {n for counts in other.strategy.releases.values() for n in counts.values()} == {2 + 1 + 1}


def test_the_evaluation_of_a_model_is_no_release(tmp_path):
    run = Federation(tmp_path, rounds=2, **NOISE).run()
    assert run.of("client", lambda event: event["phase"] == "evaluate")
    assert {n for counts in run.strategy.releases.values() for n in counts.values()} == {2}


def test_two_private_runs_of_one_seed_differ(tmp_path):
    """The server knows the seed: noise that came from it could be taken away again."""
    one, other = (Federation(tmp_path / name, rounds=1, **NOISE).run() for name in "ab")
    assert not any(
        torch.equal(one.strategy.task_vectors[t], other.strategy.task_vectors[t]) for t in ("dots", "stripes")
    )


@pytest.mark.parametrize("strategy", ["pertask-fedavg", "matfl"])
def test_other_methods_with_separate_updates(tmp_path, strategy):
    run = Federation(tmp_path, rounds=1, strategy=strategy, fraction_train=0.5, **NOISE).run()
    told = run.of("round")[0]["privacy"]["epsilon"]
    assert len(told) == 2, "a client that was not asked has released nothing"


def test_the_console_says_what_was_spent(tmp_path):
    run = Federation(tmp_path, rounds=1, **NOISE).run()
    narrator = Narrator()
    narrator.rounds = 1
    lines = [line for event in run.events for line in render_lines(narrator.tell(event))]
    spent = epsilon(0.5, 1, 1e-5)
    assert any(line.startswith("round 1/1") and line.endswith(f"ε {spent:.3g}") for line in lines)
    end = {"event": "end", "status": "completed", "seconds": 1.0, "peak_memory_bytes": 1, "artefacts": {}}
    lines = render_lines(narrator.tell(end | {"similarity": None, "related": {}, "error": None})[1:])
    assert "ε for all training images of one task at one client, replaced by as many others" in "\n".join(lines)
    assert all(any(client.name in line for line in lines) for client in run.strategy.clients)


def test_noise_swamps_nothing_when_it_is_tiny():
    """The mechanism itself, far from the bound, with hardly any noise: the identity."""
    x = torch.linspace(-1, 1, 11)
    found = gaussian_mechanism([x], 100.0, 1e-12, np.random.default_rng(0))[0]
    torch.testing.assert_close(found, x)


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"privacy.noise-multiplier": 1.0}, r"privacy.clip-norm = 0: the noise is a multiple of clip-norm"),
        ({"privacy.clip-norm": 1.0}, r"privacy.noise-multiplier = 0: without noise there is no privacy"),
        ({"privacy.delta": 1e-6}, r"privacy.delta = 1e-06 with privacy.noise-multiplier = 0: without noise"),
        (
            {"privacy.noise-multiplier": 1.0, "privacy.clip-norm": 1.0, "train.heads": "local"},
            r"a local head is trained without noise.* \(heads are clipped and get noise, like the update\)",
        ),
    ],
)
def test_what_would_not_be_private_is_refused(values, text):
    with pytest.raises(SettingsError, match=text):
        Settings.from_run_config(values)


@pytest.mark.parametrize("strategy", ["fedavg", "fedper", "ditto", "individual", "ties", "zero-shot", "central-mtl"])
def test_methods_that_keep_or_send_more_are_refused(strategy):
    given_ = {"strategy": strategy, "privacy.noise-multiplier": 1.0, "privacy.clip-norm": 1.0}
    text = f"strategy '{strategy}': noise protects a client only where .* matu, pertask-fedavg, matfl$"
    with pytest.raises(SettingsError, match=text):
        prepared(Settings.from_run_config(given_))


def test_frozen_heads_are_allowed():
    given_ = {"train.heads": "zero-shot", "privacy.noise-multiplier": 1.0, "privacy.clip-norm": 1.0}
    assert prepared(Settings.from_run_config(given_)).privacy.noise_multiplier > 0
