"""Every method through a whole federation, and the laws that tie them together."""

import re
from uuid import uuid4

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from matu_flwr.backbones import BackboneError, create_backbone
from matu_flwr.client import node
from matu_flwr.config.sections import MatFLSettings
from matu_flwr.config.settings import DEFAULTS, Settings, SettingsError
from matu_flwr.merging import unify
from matu_flwr.strategies import available, create, method, prepared
from matu_flwr.strategies.matfl import cosines, mix, mixing
from tests.support.federation import Federation, finished
from tests.support.hostile import AS_FLOATS
from tests.support.local_grid import LocalGrid
from tests.support.marks import long_but

NEEDS = {"fedprox": {"fedprox__mu": 0.1}, "zero-shot": {}}
PERSONAL = ("fedper", "fedrep", "ditto", "individual", "ties")
FEDERATED = [name for name in available() if not name.startswith(("central", "zero"))]


def federation(folder, strategy, **values):
    """With a state folder of its own: each is a new run."""
    own = folder / uuid4().hex
    return Federation(own, strategy=strategy, **NEEDS.get(strategy, {}) | values)


def run(folder, strategy, **values):
    """A finished run, to be read only: many tests start from the same one."""
    if "grid" in values:
        return federation(folder, strategy, **values).run()
    return finished(strategy=strategy, **NEEDS.get(strategy, {}) | values)


def same(left, right):
    one, other = left.strategy.task_vectors, right.strategy.task_vectors
    return one.keys() == other.keys() and all(torch.equal(one[task], other[task]) for task in one)


def close(left, right, rtol=1e-4, atol=1e-7):
    one, other = left.strategy.task_vectors, right.strategy.task_vectors
    assert one.keys() == other.keys()
    for task, vector in one.items():
        torch.testing.assert_close(vector, other[task], rtol=rtol, atol=atol)


# --- one contract for all ---


# One of each kind of server and of client side; a small diff of a kept method runs in `make test-all`.
EVERY_DAY = ("matu", "pertask-fedavg", "fedavg", "fedper", "matfl", "ties", "individual", "zero-shot", "central-mtl")


@pytest.mark.parametrize("strategy", long_but(EVERY_DAY, available()))
def test_a_method_runs_is_tested_and_learns(tmp_path, strategy):
    found = run(tmp_path, strategy, rounds=3, train__steps=6)
    assert all(event["status"] == "ok" for event in found.of("client"))
    first, last = found.of("accuracy")[0], found.of("accuracy")[-1]
    assert last["round"] == found.strategy.num_rounds
    assert sorted(last["accuracy"]) == ["dots", "gratings", "squares", "stripes"]
    # every test image of every task is counted once
    counted = [event for event in found.of("client") if event["phase"] == "evaluate"]
    if not strategy.startswith("central"):
        assert sum(task["test_examples"] for event in counted for task in event["tasks"].values()) == 4 * 24
    chance = (2 / 6 + 2 / 8) / 4
    assert last["mean_accuracy"] > 2 * chance
    if strategy != "zero-shot":
        assert first["round"] == 0
        assert last["mean_accuracy"] > first["mean_accuracy"] + 0.1


# One of each thing that travels: a unified vector, a whole model, part of one, a vector per task, nothing.
@pytest.mark.parametrize("strategy", long_but(("matu", "fedavg", "fedper", "ties", "individual"), FEDERATED))
def test_a_method_learns_through_four_bits(tmp_path, strategy):
    small = {"wire__vector_dtype": "int4", "wire__compression": "zstd", "grid": {"wire": True}}
    found = run(tmp_path, strategy, rounds=3, train__steps=6, **small)
    assert all(event["status"] == "ok" for event in found.of("client"))
    first, last = found.of("accuracy")[0], found.of("accuracy")[-1]
    assert last["mean_accuracy"] > first["mean_accuracy"] + 0.1
    for event in found.of("client"):
        for direction in ("bytes_up", "bytes_down"):
            # at most 4.125 bits for each task, and headers of two arrays
            assert event[direction]["vector"] <= len(event["tasks"]) * (0.52 * found.backbone.d + 400)


# Shared heads, own ones, and a method that tests at the server.
@pytest.mark.parametrize("strategy", ["matu", "fedrep", "central-individual"])
def test_testing_less_often_changes_nothing_else(tmp_path, strategy):
    often = run(tmp_path, strategy, rounds=5)
    seldom = run(tmp_path, strategy, rounds=5, evaluate_every=2)
    assert same(often, seldom)
    accuracy = {event["round"]: event["accuracy"] for event in often.of("accuracy")}
    found = {event["round"]: event["accuracy"] for event in seldom.of("accuracy")}
    assert found == {round_: accuracy[round_] for round_ in (*([0] if 0 in accuracy else []), 2, 4, 5)}


@pytest.mark.parametrize("strategy", long_but(("matu", "fedavg", "matfl"), FEDERATED))
def test_the_order_of_clients_and_flower_s_serialiser_play_no_part(tmp_path, strategy):
    one = run(tmp_path, strategy)
    two = run(tmp_path, strategy, grid={"node_ids": [907, 12, 555, 3], "wire": True})
    assert same(one, two)
    assert [event["accuracy"] for event in one.of("accuracy")] == [event["accuracy"] for event in two.of("accuracy")]


# Those whose clients keep something; and MaTU. The others have nothing to lose, which the long tests make sure of.
@pytest.mark.parametrize("strategy", long_but(("matu", "fedper", "ditto", "individual"), FEDERATED))
def test_personal_state_survives_a_restart_of_the_nodes(tmp_path, strategy):
    """Nodes that forget all that is in memory before every message give what nodes give that run through."""

    class Restarting(LocalGrid):
        def push_messages(self, messages):
            node._share.cache_clear()
            create_backbone.cache_clear()
            return super().push_messages(messages)

    through, again = run(tmp_path, strategy, rounds=3), federation(tmp_path, strategy, rounds=3)
    again.grid.__class__ = Restarting
    again.run()
    assert same(through, again)
    assert through.of("accuracy")[-1]["accuracy"] == again.of("accuracy")[-1]["accuracy"]


@pytest.mark.parametrize("strategy", long_but(("matu", "fedavg", "fedrep", "fedbabu", "ties"), FEDERATED))
def test_zero_shot_heads_under_every_method(tmp_path, strategy):
    if strategy in ("fedrep", "fedbabu"):
        with pytest.raises(SettingsError, match=f"strategy '{strategy}' is about training heads"):
            Federation(tmp_path, strategy=strategy, train__heads="zero-shot")
        return
    found = run(tmp_path, strategy, train__heads="zero-shot")
    assert all(event["bytes_up"]["heads"] == 0 for event in found.of("client"))
    assert all(event["status"] == "ok" for event in found.of("client"))


def sent(found, round_):
    return [e["bytes_up"] for e in found.of("client", lambda e: e["phase"] == "train" and e["round"] == round_)]


@pytest.mark.long
def test_bytes_by_method(tmp_path):
    """Vectors up in the last of two rounds: one per client, one per task, or none."""
    d = Federation(tmp_path).backbone.d
    counts = [len(client.tasks) for client in run(tmp_path, "fedavg").strategy.clients]
    for strategy in FEDERATED:
        found = run(tmp_path, strategy, **AS_FLOATS)
        vectors = sorted(round(part["vector"] / (4 * d), 2) for part in sent(found, 2))
        if strategy == "individual":
            assert vectors == [0, 0, 0, 0]
        elif strategy in ("pertask-fedavg", "matfl", "task-arithmetic", "ties", "emr"):
            assert vectors == sorted(counts)
        elif strategy == "fedper":
            assert all(0.5 < part < 0.8 for part in vectors)  # three of four blocks
        else:
            assert vectors == [1, 1, 1, 1]
        if strategy in ("task-arithmetic", "ties", "emr"):
            assert all(part["vector"] == part["heads"] == 0 for part in sent(found, 1))
        personal = strategy in ("individual", "fedper", "fedrep", "fedbabu")
        assert all((part["heads"] == 0) == personal for part in sent(found, 2))


# --- laws ---


def test_fedprox_without_a_pull_is_fedavg(tmp_path):
    assert same(run(tmp_path, "fedprox", fedprox__mu=0.0), run(tmp_path, "fedavg"))


def test_fedprox_s_pull_shortens_the_way(tmp_path):
    norms = [
        run(tmp_path, "fedprox", rounds=1, fedprox__mu=mu, train__steps=6).strategy.task_vectors["dots"].norm()
        for mu in (0.0, 1.0, 100.0)
    ]
    assert norms[0] > norms[1] > norms[2]


@pytest.mark.parametrize("heads", ["average", "local"])
def test_ditto_s_global_model_is_fedavg_s(tmp_path, heads):
    assert same(run(tmp_path, "ditto", train__heads=heads), run(tmp_path, "fedavg", train__heads=heads))


def test_ditto_s_personal_model_does_not_depend_on_the_global_heads(tmp_path):
    """Without a pull v is trained from zeros alone, and tested with its own heads."""
    one, other = (run(tmp_path, "ditto", train__heads=heads, ditto__strength=0.0) for heads in ("average", "local"))
    assert one.of("accuracy")[-1]["accuracy"] == other.of("accuracy")[-1]["accuracy"]
    assert one.of("accuracy")[-1]["loss"] == other.of("accuracy")[-1]["loss"]


@pytest.mark.long
def test_ditto_without_a_pull_learns_alone_and_with_one_stays_close(tmp_path):
    norms = []
    for strength in (0.0, 100.0):
        folder = tmp_path / str(strength)
        federation(folder, "ditto", ditto__strength=strength, train__steps=6).run()
        files = sorted(folder.rglob("round-000002.safetensors"))
        assert len(files) == 4
        norms.append(sum(float(load_file(file)["personal"].norm()) for file in files))
    assert norms[1] < norms[0]


def test_fedper_with_nothing_personal_is_fedavg(tmp_path):
    found = run(tmp_path, "fedper", fedper__blocks=0)
    assert same(found, run(tmp_path, "fedavg"))
    assert found.strategy.heads.keys() == {"dots", "gratings", "squares", "stripes"}


def test_fedper_sends_the_first_blocks_only(tmp_path):
    found = run(tmp_path, "fedper", fedper__blocks=2, rounds=1)
    cut = found.strategy.d
    names = [name for name, place in found.backbone.layout.slices.items() if place.stop <= cut]
    assert [name for name in names if name.startswith("blocks.")] != []
    assert not any(name.startswith(("blocks.2", "blocks.3", "head", "fc_norm")) for name in names)
    # the shared part is FedAvg's: the first round starts everywhere at θ_p
    whole = run(tmp_path, "fedavg", rounds=1).strategy.task_vectors["dots"]
    assert torch.equal(found.strategy.mean, whole[:cut])


def test_more_personal_blocks_than_there_are(tmp_path):
    with pytest.raises(BackboneError, match=r"fedper\.blocks = 5, but 4 blocks of this backbone are trained: lower it"):
        Federation(tmp_path, strategy="fedper", fedper__blocks=5)


def test_matu_without_compression_is_pertask_fedavg(tmp_path):
    """κ = 0, one task per client, ρ → 0: the channel is exact and nothing is shared between tasks."""
    one = {"partition__min_tasks": 1, "partition__max_tasks": 1, "num_clients": 8, "rounds": 2}
    matu = run(tmp_path, "matu", matu__kappa=0, matu__rho=0.0, matu__payload="vector", **one)
    assert max(len(client.tasks) for client in matu.strategy.clients) == 1
    close(matu, run(tmp_path, "pertask-fedavg", **one))


def test_emr_of_one_task_is_that_task(tmp_path):
    suite = tmp_path / "one.yaml"
    suite.write_text(
        "name: one\nmax_train: 48\nmax_test: 24\n"
        "tasks: {dots: {loader: generated, options: {family: counts, style: dots}}}\n"
    )
    one = {"suite": str(suite), "num_clients": 2, "rounds": 2}
    emr = run(tmp_path, "emr", **one)
    close(emr, run(tmp_path, "ties", ties__keep=1.0, **one))
    close(emr, run(tmp_path, "task-arithmetic", task_arithmetic__scale=1.0, **one))


def test_emr_is_the_operator_over_all_tasks(tmp_path):
    found = run(tmp_path, "emr")
    merged = found.strategy.merged
    for client in found.strategy.clients:
        sent_down = found.strategy.downlink_vector(client)
        assert torch.equal(sent_down.vector, merged.vector)
        assert sorted(sent_down.tasks) == sorted(client.tasks)
    assert unify({task: merged.reconstruct(task) for task in merged.tasks}).tasks == merged.tasks


def test_one_shot_methods_train_alone_until_the_end(tmp_path):
    """Up to the last round a client does what `individual` does: the same losses."""
    alone, merged = run(tmp_path, "individual"), run(tmp_path, "ties")

    def losses(found):
        return {
            (event["round"], event["client"], task): numbers["train_loss"]
            for event in found.of("client", lambda event: event["phase"] == "train")
            for task, numbers in event["tasks"].items()
        }

    assert losses(alone) == losses(merged)
    assert [event["round"] for event in merged.of("accuracy")] == [0, 2]


def test_ntk_fedavg_trains_the_tangent_model(tmp_path):
    found = run(tmp_path, "ntk-fedavg")
    assert found.settings.backbone.linearised
    assert found.backbone.module is not found.backbone.tower
    # two rounds of steps on θ with the tangent model at θ_p: features are linear in τ
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tau = found.strategy.task_vectors["dots"]
    outputs = []
    for scale in (0.0, 1.0, 2.0):
        found.backbone.load(scale * tau)
        with torch.no_grad():
            outputs.append(found.backbone.module(pixels))
    torch.testing.assert_close(outputs[2] - outputs[1], outputs[1] - outputs[0], rtol=1e-3, atol=1e-4)


def test_matu_s_ablations_are_single_settings(tmp_path):
    plain = run(tmp_path, "matu")
    kappa = run(tmp_path, "matu", matu__kappa=0)
    assert all(not related for event in kappa.of("round") for related in event["related"].values())
    bare = run(tmp_path, "matu", matu__modulators=False)
    assert all(event["bytes_up"]["masks"] == 0 for event in bare.of("client"))
    assert not same(plain, bare)
    strict = run(tmp_path, "matu", matu__agreement="threshold-or-soft")
    assert strict.strategy.options.agreement == "threshold-or-soft"
    assert not same(plain, strict)
    assert same(plain, run(tmp_path, "matu", matu__agreement="none"))
    published = {"matu__magnitude": "max", "matu__reconstruction": "masked"}
    assert not same(plain, run(tmp_path, "matu", **published))


# --- MaT-FL's mixing ---


def test_cosines_by_hand():
    # mean (1, 1): δ = (1, 0), (-1, 0), (0, 0) -> cos -1 between the first two, 0 with the third
    found = cosines([torch.tensor([2.0, 1.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])])
    assert found.tolist() == [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_soft_mixing_by_hand():
    similarity = torch.tensor([[1.0, 0.5, -0.9], [0.5, 1.0, 0.0], [-0.9, 0.0, 1.0]], dtype=torch.float64)
    # th = 0.5: rows (1.5, 1, 0), (1, 1.5, 0.5), (0, 0.5, 1.5), each over its sum
    found = mixing(similarity, MatFLSettings(mixing="soft", threshold=0.5))
    expected = [[0.6, 0.4, 0.0], [1 / 3, 0.5, 1 / 6], [0.0, 0.25, 0.75]]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_grouping_by_hand():
    similarity = torch.tensor([[1.0, 0.9, -0.8], [0.9, 1.0, -0.7], [-0.8, -0.7, 1.0]], dtype=torch.float64)
    found = mixing(similarity, MatFLSettings(mixing="grouping", groups=2))
    np.testing.assert_allclose(found.numpy(), [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("options", [{"mixing": "soft", "threshold": t} for t in (-0.5, 0.0, 1.0)] + [{"groups": 3}])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_row_of_the_mixing_sums_to_one(options, count):
    chance = torch.Generator().manual_seed(count)
    weights = mixing(cosines([torch.randn(50, generator=chance) for _ in range(count)]), MatFLSettings(**options))
    np.testing.assert_allclose(weights.sum(dim=1).numpy(), 1)
    assert (weights >= 0).all()
    assert (weights.diagonal() > 0).all()


def test_mixing_is_a_weighted_sum():
    vectors = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])]
    assert mix(vectors, torch.tensor([0.25, 0.75])).tolist() == [2.5, -1.0]


# --- bad input, before any node is contacted ---


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"strategy": "fedprx"}, "unknown strategy 'fedprx'; did you mean 'fedprox'? available: matu, "),
        ({"strategy": "fedprox"}, "strategy 'fedprox' needs fedprox.mu, the strength of its pull, and none was given"),
        (
            {"strategy": "fedavg", "fedprox.mu": 0.1},
            "setting 'fedprox.mu' = 0.1 is an option of strategy 'fedprox', not of 'fedavg': remove it, or choose",
        ),
        ({"strategy": "individual", "matu.kappa": 1}, "setting 'matu.kappa' = 1 is an option of strategy 'matu', not"),
        ({"strategy": "fedavg", "matu.preset": "paper"}, "is an option of strategy 'matu', not of 'fedavg'"),
        ({"strategy": "zero-shot", "train.heads": "local"}, "strategy 'zero-shot' sets train.heads = 'zero-shot'"),
        ({"strategy": "ntk-fedavg", "train.precision": "bfloat16"}, "backbone.linearised = true with train.precision"),
        ({"strategy": "fedrep", "train.steps": 1}, "strategy 'fedrep' divides a round's steps between heads and"),
    ],
)
def test_settings_that_the_method_cannot_have(values, text):
    with pytest.raises(SettingsError, match=re.escape(text)):
        prepared(Settings.from_run_config(values))


def test_every_section_belongs_to_one_method():
    sections = [method(name).section for name in available() if method(name).section]
    assert len(sections) == len(set(sections))
    for section in sections:
        assert any(key.startswith(f"{section}.") for key in DEFAULTS)


def test_pooled_images_are_needed_for_the_upper_bounds(tmp_path):
    found = Federation(tmp_path, strategy="central-individual")
    found.strategy.register(found.grid)
    found.strategy.settings = found.settings.model_copy(update={"suite": "offline"})
    with pytest.raises(SettingsError, match=r"'central-individual' trains on pooled images, and task 'dots' is not in"):
        found.strategy.start(found.grid)


def test_create_takes_a_name():
    with pytest.raises(SettingsError, match="unknown strategy"):
        create("nothing", Settings(), None)
