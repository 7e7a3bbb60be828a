"""One client's round on a model of a hundred parameters: what is shared, what is kept."""

import numpy as np
import pytest
import torch

from matu_flwr.backbones import LinearHead
from matu_flwr.client import ClientState, ImageSet, StateError, TrainingDiverged, evaluate, fit
from matu_flwr.client.client_round import ClientRound
from matu_flwr.client.node import HeldTask, Node
from matu_flwr.client.rule import Alone
from matu_flwr.config.settings import Settings
from matu_flwr.merging import PAPER, as_sent, unify
from matu_flwr.seeds import derive_seed
from matu_flwr.strategies.matu import MaTURule, unified
from tests.client import models

TASKS = ("corn", "rice")


def node():
    held = {name: models.images(seed=i) for i, name in enumerate(TASKS)}
    classes = ("a", "b", "c")
    return Node("client-003", 3, {name: HeldTask(classes, data, data) for name, data in held.items()})


@pytest.fixture
def work(tmp_path):
    """A client's round; the state is in tmp_path."""

    def make(round_=1, *, received=None, heads=None, rule=MaTURule, of=None, kept_from=None, **changes):
        values = {"train.steps": 3, "train.lr": 0.01} | {
            key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()
        }
        return ClientRound(
            of or node(),
            models.backbone(),
            Settings.from_flat(values),
            round_,
            received=received,
            heads=heads or {},
            state=ClientState(tmp_path, "run-1", "client-003"),
            rule=rule,
            kept_from=round_ if kept_from is None else kept_from,
        )

    return make


def received_vectors():
    chance = torch.Generator().manual_seed(0)
    d = models.backbone().d
    return unify({task: 0.1 * torch.randn(d, generator=chance) for task in TASKS}, **PAPER)


def some_heads():
    chance = torch.Generator().manual_seed(1)
    return {t: LinearHead(torch.randn(3, 5, generator=chance), torch.randn(3, generator=chance)) for t in TASKS}


def by_hand(found, task, start):
    """What fine-tuning this task alone gives."""
    seed = derive_seed(0, "fit", found.round, "client-003", task)
    data, chosen = found.node.tasks[task].train, found.settings.train
    return fit(models.backbone(), start, found.rule.head(task), data, chosen, seed=seed, task=task)


def same(one, other):
    assert torch.equal(one.vector, other.vector)
    assert (one.rescalers, one.opposites) == (other.rescalers, other.opposites)
    assert all(torch.equal(one.masks[task], other.masks[task]) for task in TASKS)


@pytest.mark.parametrize("payload", ["vector", "update"])
def test_what_is_shared_is_the_vector_or_the_update(work, payload):
    received, heads = received_vectors(), some_heads()
    found = work(received=received, heads=heads, matu__payload=payload)
    trained = found.train()
    results = {task: by_hand(found, task, received.reconstruct(task)) for task in TASKS}
    vectors = {task: result.task_vector for task, result in results.items()}
    if payload == "update":
        vectors = {task: vector - received.reconstruct(task) for task, vector in vectors.items()}
    same(trained.vectors, unified(found.settings.matu, vectors))
    assert trained.losses == {task: result.loss for task, result in results.items()}
    for task, result in results.items():
        assert torch.equal(trained.heads[task].weight, result.head.weight)
        assert torch.equal(trained.heads[task].bias, result.head.bias)


@pytest.mark.parametrize("payload", ["vector", "update"])
def test_before_anything_is_received_all_start_at_the_common_start(work, payload):
    found = work(matu__payload=payload)
    assert found.rule.start("corn") is None
    assert not found.rule.head("corn").weight.any()
    expected = {task: by_hand(found, task, None).task_vector for task in TASKS}
    same(found.train().vectors, unified(found.settings.matu, expected))


def test_nothing_is_kept_where_heads_are_averaged(work, tmp_path):
    work().train()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_round_is_part_of_the_seed(work):
    assert not torch.equal(work(1).train().vectors.vector, work(2).train().vectors.vector)
    same(work(2).train().vectors, work(2).train().vectors)


def test_evaluate_tests_what_was_received(work):
    received, heads = received_vectors(), some_heads()
    found = work(received=received, heads=heads)
    tested = found.evaluate()
    for task in TASKS:
        assert tested[task] == evaluate(
            models.backbone(), received.reconstruct(task), heads[task], found.node.tasks[task].test
        )
    assert found.watch.seconds.keys() == {"evaluate"}


def test_a_task_without_test_images_is_passed_over(work):
    own = node()
    data = own.tasks["corn"].train
    nothing = ImageSet(data.images, data.labels, np.arange(0))
    changed = Node("client-003", 3, own.tasks | {"corn": HeldTask(("a", "b", "c"), data, nothing)})
    assert list(work(of=changed).evaluate()) == ["rice"]


def test_local_heads_are_kept_and_not_shared(work, tmp_path):
    first = work(1, train__heads="local")
    trained = first.train()
    assert trained.heads == {}
    assert trained.vectors is not None
    kept = ClientState(tmp_path, "run-1", "client-003").load(before=2)
    assert sorted(kept) == ["corn/bias", "corn/weight", "rice/bias", "rice/weight"]
    assert torch.equal(kept["corn/weight"], by_hand(first, "corn", None).head.weight)
    second = work(2, train__heads="local", heads=some_heads())  # its own come before what a server sends
    assert torch.equal(second.rule.head("corn").weight, kept["corn/weight"])
    assert torch.equal(second.rule.head("corn").bias, kept["corn/bias"])


def test_a_personal_client_keeps_everything_and_shares_nothing(work, tmp_path):
    first = work(1, rule=Alone)
    trained = first.train()
    assert trained.vectors is None
    assert trained.heads == {}
    assert trained.losses.keys() == set(TASKS)
    vectors = {task: by_hand(first, task, None).task_vector for task in TASKS}
    second = work(2, rule=Alone, received=received_vectors())
    for task in TASKS:
        assert torch.equal(second.rule.start(task), vectors[task])
    second.train()
    third = work(3, rule=Alone)
    expected = by_hand(second, "corn", vectors["corn"]).task_vector
    assert torch.equal(third.rule.start("corn"), expected)  # the vector itself, not this round's update


def test_a_client_s_own_state_has_to_be_of_a_round_before(work):
    work(2, rule=Alone).train()
    with pytest.raises(StateError, match="saved in round 2, expected a round before 2"):
        work(2, rule=Alone)
    assert work(2, rule=Alone, kept_from=3).rule.start("corn") is not None  # the closing test of that very round


def test_a_state_is_not_read_where_it_is_not_used(work, tmp_path):
    work(5, rule=Alone).train()
    assert work(1).own == {}


def test_divergence_names_the_task_and_leaves_the_old_state(work, tmp_path):
    work(1, rule=Alone).train()
    before = work(2, rule=Alone).own
    with pytest.raises(TrainingDiverged, match=r"^task 'corn'"):
        work(2, rule=Alone, train__lr=1e30, train__head_lr=1e30, train__clip_norm=0.0).train()
    after = work(2, rule=Alone).own
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_watch_adds_up(work):
    found = work()
    found.evaluate()
    found.train()
    assert found.watch.seconds.keys() == {"evaluate", "train", "unify"}
    assert all(seconds >= 0 for seconds in found.watch.seconds.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("reconstruction", ["masked", "complete"])
def test_with_error_feedback_nothing_is_lost_for_good(work, dtype, reconstruction):
    """What was reconstructed in all rounds, and what is still owed, is the sum of all updates."""
    received, told = received_vectors(), dict.fromkeys(TASKS, 0)
    updates = dict.fromkeys(TASKS, 0)
    values = {"matu__error_feedback": True, "matu__reconstruction": reconstruction, "wire__vector_dtype": dtype}
    for round_ in (1, 2, 3):
        found = work(round_, received=received, **values)
        sent = found.train().vectors
        for task in TASKS:
            start = received.reconstruct(task)
            updates[task] = updates[task] + by_hand(found, task, start).task_vector - start
            vector = as_sent(sent.vector, dtype)
            set_bits, cleared = vector.float() * sent.masks[task], vector.float() * ~sent.masks[task]
            told[task] = told[task] + sent.rescalers[task] * set_bits - sent.opposites.get(task, 0) * cleared
    owed = work(4, received=received, **values).own
    for task in TASKS:
        assert owed[f"{task}/residual"].norm() > 0
        torch.testing.assert_close(told[task] + owed[f"{task}/residual"], updates[task], rtol=1e-4, atol=1e-6)


def test_one_task_owes_nothing_to_its_own_channel(work):
    alone = Node("client-003", 3, {"corn": node().tasks["corn"]})
    exact = {"matu__error_feedback": True, "wire__vector_dtype": "float32"}
    work(1, of=alone, **exact).train()
    assert not work(2, of=alone, **exact).own["corn/residual"].any()
