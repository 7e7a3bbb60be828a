"""The client's side of the methods on a model of a hundred parameters: where it starts, when, and what it keeps."""

import pytest
import torch

from matu_flwr.backbones import LinearHead
from matu_flwr.client import ClientState
from matu_flwr.client.client_round import ClientRound
from matu_flwr.client.fit import Proximal, Span, fit_jointly
from matu_flwr.client.node import HeldTask, Node
from matu_flwr.config.settings import Settings
from matu_flwr.merging import SeparateTaskVectors, unify
from matu_flwr.seeds import derive_seed
from matu_flwr.strategies import method
from tests.client import models

TASKS = ("corn", "rice")
CUT = 12 * 6 + 6 + 6 * 6 + 6  # parameters of `models.Blocks` before its last block


@pytest.fixture
def work(tmp_path):
    """A client's round under a method; its state is in tmp_path."""

    def make(strategy, round_=1, *, received=None, heads=None, kept_from=None, tasks=TASKS, **changes):
        values = {"train.steps": 3, "train.lr": 0.01, "rounds": 4} | {
            key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()
        }
        held = {name: models.images(seed=i) for i, name in enumerate(tasks)}
        return ClientRound(
            Node("client-003", 3, {name: HeldTask(("a", "b", "c"), data, data) for name, data in held.items()}),
            models.backbone(kind=models.Blocks),
            Settings.from_flat(values),
            round_,
            received=received,
            heads=heads or {},
            state=ClientState(tmp_path, "run-1", "client-003"),
            rule=method(strategy).rule,
            kept_from=round_ if kept_from is None else kept_from,
        )

    return make


def some_vector(length, seed=0):
    return 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(seed))


def one_vector(vector):
    """What a client gets where all of its tasks have one vector."""
    return unify(dict.fromkeys(TASKS, vector))


def sent(trained):
    """The one vector of a reply."""
    return trained.vectors.reconstruct("corn")


# --- the span of a round's steps among those of the run ---

SPANS = {1: Span(0, 12), 2: Span(3, 12), 4: Span(9, 12)}  # rounds of 3 steps, 4 of them


@pytest.mark.parametrize("strategy", ["pertask-fedavg", "fedavg", "individual"])
@pytest.mark.parametrize("round_", sorted(SPANS))
def test_a_round_s_steps_come_after_those_of_the_rounds_before(work, monkeypatch, strategy, round_):
    found = work(strategy, round_)
    told, train = [], type(found.rule).train
    monkeypatch.setattr(type(found.rule), "train", lambda rule, span: told.append(span) or train(rule, span))
    found.train()
    assert told == [SPANS[round_]]


def test_the_first_step_of_a_run_has_the_whole_rate_and_a_later_round_goes_on(work):
    """One step in each of four rounds under a cosine: rates 1, (1 + √½)/2, ½ and (1 − √½)/2.

    A first step of AdamW moves every parameter by the rate.
    """
    moved = []
    for round_ in (1, 2, 3, 4):
        start = some_vector(models.backbone(kind=models.Blocks).d)
        found = work(
            "fedavg",
            round_,
            received=one_vector(start),
            heads=some_heads(),
            tasks=("corn",),
            train__steps=1,
            train__schedule="cosine",
            train__batch_size=24,  # all images in every step: the order plays no part
        )
        moved.append((sent(found.train()) - start).norm().item())
    assert [norm / moved[0] for norm in moved] == pytest.approx([1, 0.8535534, 0.5, 0.1464466], rel=1e-3)


def some_heads():
    chance = torch.Generator().manual_seed(1)
    return {t: LinearHead(torch.randn(3, 5, generator=chance), torch.randn(3, generator=chance)) for t in TASKS}


def test_fedrep_s_backbone_takes_the_steps_after_the_heads(work):
    """Round 2 of 4 rounds of 5 steps: 2 for the heads from step 5, 3 for the backbone from step 7, of 20."""
    values = {"train__steps": 5, "train__schedule": "cosine", "train__warmup": 0.5, "fedrep__head_share": 0.4}
    received = one_vector(some_vector(models.backbone(kind=models.Blocks).d))
    twin, start = work("fedrep", 2, received=received, **values), received.reconstruct("corn")
    steps = [twin.settings.train.model_copy(update={"steps": n}) for n in (2, 3)]
    shares = twin.rule.shares("fedrep-heads")
    still, heads, _ = fit_jointly(twin.backbone, start, shares, steps[0], span=Span(5, 20), update="heads")
    torch.testing.assert_close(still, start, rtol=0, atol=1e-6)
    shares = {task: type(share)(heads[task], share.data, share.seed) for task, share in twin.rule.shares().items()}
    vector, _, losses = fit_jointly(twin.backbone, start, shares, steps[1], span=Span(7, 20), update="backbone")
    trained = work("fedrep", 2, received=received, **values).train()
    assert torch.equal(sent(trained), vector)
    assert trained.losses == losses
    assert trained.heads == {}
    again = work("fedrep", 3, **values)
    assert all(torch.equal(again.rule.head(task).weight, heads[task].weight) for task in TASKS)


# --- FedPer's own part ---


def test_fedper_puts_the_client_s_own_blocks_back(work):
    """What is tested and trained in round 2: the first parameters as received, the last as round 1 left them."""
    first = work("fedper", 1, received=unify(dict.fromkeys(TASKS, some_vector(CUT, seed=1))))
    begun = first.rule.common_start()
    assert torch.equal(begun[:CUT], first.received.vector)
    assert not begun[CUT:].any()  # nothing of its own yet: θ_p
    whole, _, _ = fit_jointly(
        models.backbone(kind=models.Blocks), begun, first.rule.shares(), first.settings.train, span=Span(0, 12)
    )
    trained = first.train()
    assert torch.equal(sent(trained), whole[:CUT])
    assert whole[CUT:].norm() > 0
    received = some_vector(CUT, seed=2)
    second = work("fedper", 2, received=unify(dict.fromkeys(TASKS, received)))
    for task in TASKS:
        assert torch.equal(second.rule.start(task), torch.cat([received, whole[CUT:]]))
    again, _, _ = fit_jointly(
        models.backbone(kind=models.Blocks),
        torch.cat([received, whole[CUT:]]),
        second.rule.shares(),
        second.settings.train,
        span=Span(3, 12),
    )
    assert torch.equal(sent(second.train()), again[:CUT])
    assert torch.equal(work("fedper", 3).rule.work.own["personal"], again[CUT:])


def test_fedper_s_own_blocks_stay_where_nothing_was_received(work):
    assert work("fedper", 1).rule.common_start() is None
    work("fedper", 1).train()
    second = work("fedper", 2)
    assert not second.rule.common_start()[:CUT].any()
    assert torch.equal(second.rule.common_start()[CUT:], second.own["personal"])
    assert second.own["personal"].norm() > 0


# --- the personal models of Ditto ---


def test_ditto_trains_its_own_model_towards_the_global_one(work):
    values = {"ditto__strength": 0.5, "train__schedule": "cosine"}
    d = models.backbone(kind=models.Blocks).d
    work("ditto", 1, **values).train()
    received, heads = some_vector(d), some_heads()
    second = work("ditto", 2, received=one_vector(received), heads=heads, **values)
    before = {name: tensor.clone() for name, tensor in second.own.items()}
    assert before["personal"].norm() > 0
    for task in TASKS:
        assert torch.equal(second.rule.start(task), before["personal"])
        assert torch.equal(second.rule.head(task).weight, before[f"personal/{task}/weight"])
    twin = work("ditto", 2, received=one_vector(received), heads=heads, **values)
    train, shares = twin.settings.train, twin.rule.shares("ditto")
    globally, _, losses = fit_jointly(
        twin.backbone,
        received,
        {task: twin.rule.share(task, heads[task]) for task in TASKS},
        train,
        span=Span(3, 12),
    )
    personal, own_heads, _ = fit_jointly(
        twin.backbone, before["personal"], shares, train, span=Span(3, 12), proximal=Proximal(0.5, received)
    )
    trained = second.train()
    assert torch.equal(sent(trained), globally)
    assert trained.losses == losses
    third = work("ditto", 3, **values)
    assert torch.equal(third.rule.start("corn"), personal)
    assert torch.equal(third.rule.head("rice").bias, own_heads["rice"].bias)


def test_fedprox_pulls_towards_the_start_of_the_round(work):
    received = some_vector(models.backbone(kind=models.Blocks).d)
    found = work("fedprox", 2, received=one_vector(received), heads=some_heads(), fedprox__mu=0.7)
    twin = work("fedprox", 2, received=one_vector(received), heads=some_heads(), fedprox__mu=0.7)
    expected, _, _ = fit_jointly(
        twin.backbone,
        received,
        twin.rule.shares(),
        twin.settings.train,
        span=Span(3, 12),
        proximal=Proximal(0.7, received),
    )
    assert torch.equal(sent(found.train()), expected)


# --- one-shot methods ---


def test_a_one_shot_client_goes_on_from_its_own_model_until_the_merged_one_comes(work):
    heads = some_heads()
    for round_ in (1, 2):
        assert work("ties", round_).train().vectors is None
    third = work("ties", 3)
    assert torch.equal(third.rule.start("corn"), third.own["corn/vector"])
    assert third.rule.start("corn").norm() > 0
    third.train()
    last = work("ties", 4)
    own = last.own["rice/vector"]
    trained = last.train()
    assert isinstance(trained.vectors, SeparateTaskVectors)
    assert trained.heads.keys() == set(TASKS)
    assert not torch.equal(trained.vectors.vectors["rice"], own)
    merged = one_vector(some_vector(last.backbone.d))
    closing = work("ties", 4, received=merged, heads=heads, kept_from=5)
    assert torch.equal(closing.rule.start("rice"), merged.reconstruct("rice"))
    assert closing.rule.head("rice") is heads["rice"]


def test_fedbabu_s_fixed_heads_are_those_of_the_seed(work):
    """Uniform in ±1/√5 for five features, the same at every holder and in every round, another for another task."""
    found = [work("fedbabu", round_).rule for round_ in (1, 3)]
    one, again, other = found[0].fixed_head("corn"), found[1].fixed_head("corn"), found[0].fixed_head("rice")
    assert torch.equal(one.weight, again.weight)
    assert not torch.equal(one.weight, other.weight)
    assert not one.bias.any()
    values = torch.cat([one.weight.flatten(), other.weight.flatten()])  # 30 of them
    assert 0.8 * 5**-0.5 < values.abs().max() <= 5**-0.5
    assert values.min() < 0 < values.max()


def test_fedbabu_fine_tunes_heads_for_the_test_and_the_backbone_in_training(work):
    """Both from the fixed heads and from what was received; no head is kept or sent."""
    values = {"fedbabu__fine_tune": 2, "train__schedule": "cosine"}
    received = some_vector(models.backbone(kind=models.Blocks).d)
    found = work("fedbabu", 2, received=one_vector(received), **values)
    twin = work("fedbabu", 2, received=one_vector(received), **values)
    fixed = {task: twin.rule.fixed_head(task) for task in TASKS}
    few = twin.settings.train.model_copy(update={"steps": 2})
    for task in TASKS:
        share = twin.rule.share(task, fixed[task], "fedbabu")
        _, heads, _ = fit_jointly(twin.backbone, received, {task: share}, few, update="heads")
        assert torch.equal(found.rule.head(task).weight, heads[task].weight)
        assert not torch.equal(heads[task].weight, fixed[task].weight)
    shares = {task: twin.rule.share(task, fixed[task]) for task in TASKS}
    vector, _, losses = fit_jointly(
        twin.backbone, received, shares, twin.settings.train, span=Span(3, 12), update="backbone"
    )
    trained = found.train()
    assert torch.equal(sent(trained), vector)
    assert (trained.losses, trained.heads) == (losses, {})
    assert not found.state.rounds()


def test_the_order_of_images_has_a_seed_of_run_purpose_round_client_and_task(work):
    rule = work("ditto", 2, seed=7).rule
    assert rule.share("corn").seed == derive_seed(7, "fit", 2, "client-003", "corn")
    for task, share in rule.shares("ditto").items():
        assert share.seed == derive_seed(7, "ditto", 2, "client-003", task)


@pytest.mark.parametrize(
    ("strategy", "heads", "expected"),
    [
        ("fedavg", "average", [True] * 4),
        ("fedavg", "local", [False] * 4),
        ("ties", "average", [False, False, False, True]),
        ("ties", "local", [False] * 4),
        ("fedper", "average", [False] * 4),
        ("fedrep", "average", [False] * 4),
        ("fedbabu", "average", [False] * 4),
        ("individual", "average", [False] * 4),
        ("ditto", "average", [True] * 4),
    ],
)
def test_in_which_rounds_heads_travel(strategy, heads, expected):
    chosen = Settings.from_flat({"rounds": 4, "train.heads": heads})
    assert [method(strategy).rule.shares_heads(chosen, round_) for round_ in (1, 2, 3, 4)] == expected


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("ties", ["nothing"] * 3 + ["separate"]),
        ("individual", ["nothing"] * 4),
        ("pertask-fedavg", ["separate"] * 4),
        ("matfl", ["separate"] * 4),
        ("matu", ["unified"] * 4),
        ("fedper", ["unified"] * 4),
    ],
)
def test_what_a_reply_holds_in_which_round(strategy, expected):
    chosen = Settings.from_flat({"rounds": 4})
    assert [method(strategy).rule.payload(chosen, round_) for round_ in (1, 2, 3, 4)] == expected


@pytest.mark.parametrize(
    ("strategy", "own"),
    [
        ("pertask-fedavg", []),
        ("fedavg", []),
        ("fedrep", ["corn/bias", "corn/weight", "rice/bias", "rice/weight"]),
        ("fedper", ["corn/bias", "corn/weight", "personal", "rice/bias", "rice/weight"]),
        (
            "individual",
            ["corn/bias", "corn/vector", "corn/weight", "rice/bias", "rice/vector", "rice/weight"],
        ),
    ],
)
def test_what_a_client_keeps(work, strategy, own):
    found = work(strategy, 1)
    found.train()
    assert found.state.rounds() == ([1] if own else [])
    assert sorted(found.state.load(before=2)) == own
