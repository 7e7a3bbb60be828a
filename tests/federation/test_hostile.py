"""Ten clients, three of them hostile: one turns its update round, one blows it up, one sends NaN.

The screen is off here: it would refuse the second one, and these are the bounds for those who get past it.

The bounds that these tests state are those of docs/bad-clients.md. Heads are attacked with the vectors.
"""

import re
from dataclasses import replace

import pytest
import torch

from matu_flwr.backbones import LinearHead
from matu_flwr.config.sections import RobustSettings
from matu_flwr.config.settings import Settings, SettingsError
from matu_flwr.federation import influence
from matu_flwr.federation.influence import Influence, OfferedHeads
from matu_flwr.merging import aggregate
from matu_flwr.merging.clipping import task_norms
from matu_flwr.run.console import round_line
from matu_flwr.run.summary import clipped_rounds
from matu_flwr.strategies import available, prepared
from matu_flwr.strategies.matu import merge_options
from tests.support.federation import Federation
from tests.support.hostile import AS_FLOATS, flip, hostile, nan, scale

# One worker: the federations of this file are run once for all of its tests.
pytestmark = pytest.mark.xdist_group("hostile")

ATTACKS = {0: flip, 1: scale, 4: nan}
BAD = {"client-000", "client-001"}  # their replies are well formed; client 4's is refused
CLEAN = "squares"  # the one task that neither of them holds


class Watched:
    """A federation of ten that keeps what the strategy was given to merge, bounded already, and what came of it."""

    def __init__(self, folder, *, silent=False, **values):
        tamper = hostile(ATTACKS, silent=silent)
        self.run = Federation(
            folder,
            num_clients=10,
            grid={"tamper": tamper},
            partition__max_tasks=2,
            screen__factor=0,
            screen__jump=0,
            **AS_FLOATS,
            **values,
        )
        strategy = self.run.strategy
        self.updates, self.after = [], []
        merge = strategy.merge

        def watched(updates):
            self.updates.append(updates)
            graph = merge(updates)
            self.after.append({task: vector.clone() for task, vector in strategy.task_vectors.items()})
            return graph

        strategy.merge = watched
        self.run.run()
        self.heads = strategy.heads

    def holders(self, task, *, bad):
        """Updates of the first round by hostile or by honest holders of a task."""
        return [u for u in self.updates[0] if task in u.num_examples and (u.client in BAD) == bad]


def distance(one, other, at):
    """‖τ − τ'‖ / ‖τ'‖ by task after a round."""
    return {t: float((one.after[at][t] - v).norm() / v.norm()) for t, v in other.after[at].items()}


@pytest.fixture(scope="module")
def median(tmp_path_factory):
    values = {"rounds": 2, "robust__mean": "median", "matu__kappa": 0}
    return [Watched(tmp_path_factory.mktemp("median"), silent=silent, **values) for silent in (False, True)]


def test_the_case_is_what_it_says(median):
    attacked, peaceful = median
    tasks = {client.name: set(client.tasks) for client in attacked.run.strategy.clients}
    assert CLEAN not in tasks["client-000"] | tasks["client-001"]
    assert CLEAN in tasks["client-004"]
    for task in attacked.after[0]:
        assert len(attacked.holders(task, bad=True)) == (0 if task == CLEAN else 1)
        assert len(attacked.holders(task, bad=False)) >= 2
    for watched, refused in ((attacked, {"client-004"}), (peaceful, BAD | {"client-004"})):
        failed = watched.run.of("client", lambda event: event["phase"] == "train" and event["status"] != "ok")
        assert {event["client"] for event in failed} == refused
        assert {event["status"] for event in failed} == {"refused"}
    assert all("NaN or infinity" in e["error"] for e in attacked.run.of("client", lambda e: e["status"] == "refused"))


def test_the_median_stays_among_what_honest_holders_sent(median):
    """One hostile of three or four holders: coordinate by coordinate within the honest range."""
    attacked, _ = median
    for task, found in attacked.after[0].items():
        honest = torch.stack([u.vectors.reconstruct(task) for u in attacked.holders(task, bad=False)])
        slack = 1e-6 * honest.abs().amax()
        assert bool((found >= honest.amin(dim=0) - slack).all())
        assert bool((found <= honest.amax(dim=0) + slack).all())


def test_a_clean_task_is_not_moved_at_all_while_nothing_is_borrowed(median):
    attacked, peaceful = median
    assert torch.equal(attacked.after[0][CLEAN], peaceful.after[0][CLEAN])


def test_over_rounds_clean_tasks_move_little_and_attacked_ones_no_further_than_their_length(median):
    """Indirectly: holders of the clean task hold attacked ones too, and got one vector for both."""
    attacked, peaceful = median
    moved = distance(attacked, peaceful, 1)
    assert moved[CLEAN] <= 0.5
    assert max(moved.values()) <= 1.5
    for task, head in peaceful.heads.items():
        # The row of a class that only two holders have is their plain mean: nothing protects it.
        there = [c.tasks[task].absent for c in attacked.run.strategy.holders(task) if c.name != "client-004"]
        rows = [c for c in range(len(head.bias)) if sum(c not in absent for absent in there) >= influence.FEWEST]
        assert rows
        far = float((attacked.heads[task].weight - head.weight)[rows].norm() / head.weight[rows].norm())
        assert far <= (0.25 if task == CLEAN else 1.5)


@pytest.fixture(scope="module")
def clipped(tmp_path_factory):
    values = {"rounds": 1, "robust__clip_factor": 1.5}
    return [Watched(tmp_path_factory.mktemp("clipped"), silent=silent, **values) for silent in (False, True)]


def test_clipping_bounds_what_a_share_of_the_weight_can_do(clipped):
    """‖τ̂ − honest mean‖ ≤ w (C + ‖honest mean‖), w = hostile share of the images; before anything is borrowed."""
    attacked, _ = clipped
    limit = max(max(task_norms(u.vectors).values()) for u in attacked.updates[0])
    options = replace(merge_options(attacked.run.settings.matu), kappa=0)
    found = aggregate(attacked.updates[0], options).task_vectors
    for task in found.keys() - {CLEAN}:
        honest, (bad,) = attacked.holders(task, bad=False), attacked.holders(task, bad=True)
        assert task_norms(bad.vectors)[task] == pytest.approx(limit, rel=1e-9), "it was clipped to C"
        images = sum(u.num_examples[task] for u in honest)
        mean = sum(u.num_examples[task] / images * u.vectors.reconstruct(task).double() for u in honest)
        share = bad.num_examples[task] / (images + bad.num_examples[task])
        assert float((found[task] - mean).norm()) <= share * (limit + float(mean.norm())) * (1 + 1e-5)


def test_a_clean_task_that_borrows_from_attacked_ones_moves_by_what_it_borrows_at_most(clipped):
    """‖τ − τ'‖ ≤ 2C (W / (1 + W) + W' / (1 + W')), W = weights of related tasks, as τ̂ is the same in both runs."""
    limits, shares = [], []
    for watched in clipped:
        limits.append(max(max(task_norms(u.vectors).values()) for u in watched.updates[0]))
        event = watched.run.of("round")[0]
        row = event["similarity"][event["order"].index(CLEAN)]
        weight = sum(max(0.0, 2 * row[event["order"].index(other)] - 1) for other in event["related"][CLEAN])
        shares.append(weight / (1 + weight))
    attacked, peaceful = (watched.after[0][CLEAN] for watched in clipped)
    bound = 2 * max(limits) * sum(shares)
    assert float((attacked - peaceful).norm()) <= bound * (1 + 1e-5) + 1e-5 * max(limits)


def test_who_was_clipped_stands_in_the_history_and_on_the_screen(clipped):
    attacked, _ = clipped
    (event,) = attacked.run.of("round")
    for kind in ("vectors", "heads"):
        assert event["clipped"][kind].keys() >= BAD
        assert event["clipped"][kind]["client-001"]["gratings"] < 0.01, "a thousand times too long"
    assert clipped_rounds(attacked.run.events).keys() >= BAD
    assert "clipped: client-000, client-001" in round_line(1, 1, None, event)


def test_without_bounds_the_same_clients_carry_everything_away(tmp_path, clipped):
    unguarded = Watched(tmp_path, rounds=1)
    moved = distance(unguarded, clipped[1], 0)
    assert moved["gratings"] > 50
    assert min(moved[task] for task in moved if task != CLEAN) > 1.5


# ---------------------------------------------------------------- who is told, and what is refused


def test_tasks_that_a_robust_mean_cannot_protect_are_named_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(influence, "log", lambda level, text, *values: said.append(text % values))
    run = Federation(tmp_path, rounds=2, num_clients=3, robust__mean="median").run()
    held = {t: sum(t in c.tasks for c in run.strategy.clients) for t in run.strategy.classes}
    few = sorted(task for task, count in held.items() if count < 3)
    assert few
    expected = (
        "robust.mean = median can leave nothing out of fewer than 3 replies: one is taken as it is, two are averaged "
        f"without weights. These have no protection against a bad client: {', '.join(few)}"
    )
    assert said == [expected], "once"


HEAD = LinearHead(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0]))


def offered(client, factor, examples=1):
    return OfferedHeads(client, {"t": LinearHead(HEAD.weight * factor, HEAD.bias)}, {"t": examples})


def test_heads_are_clipped_by_their_change():
    """Changes of length 5, 5 and 5000 from a start of zero, R = 5, C = 5: the third counts as 5 too."""
    bounds = Influence(RobustSettings(clip_factor=1.0), one_vector=False)
    bounds.bound([])
    merged = bounds.merge_heads([offered("a", 1), offered("b", 1), offered("c", -1000)], {})
    torch.testing.assert_close(merged["t"].weight, HEAD.weight / 3)
    assert bounds.event() == {"clipped": {"heads": {"c": {"t": pytest.approx(1e-3)}}}}
    again = bounds.merge_heads([offered("a", 1), offered("b", 1), offered("c", -1000)], {"t": HEAD})
    torch.testing.assert_close(again["t"].weight, HEAD.weight, msg="the others moved by 0, so R = 0")


def test_an_absolute_bound_on_heads_and_a_robust_mean_of_them():
    bounds = Influence(RobustSettings(head_clip_norm=2.5), one_vector=False)
    torch.testing.assert_close(bounds.merge_heads([offered("a", 1)], {})["t"].weight, HEAD.weight / 2)
    bounds = Influence(RobustSettings(mean="median"), one_vector=False)
    merged = bounds.merge_heads([offered("a", 1), offered("b", 2, 10**9), offered("c", -1000)], {})
    torch.testing.assert_close(merged["t"].weight, HEAD.weight)


def test_a_client_that_claims_all_images_counts_for_as_many_as_it_may():
    bounds = Influence(RobustSettings(max_examples=100), one_vector=False)
    assert bounds.counted({"s": 10**9, "t": 7}) == {"s": 100, "t": 7}
    merged = bounds.merge_heads([offered("a", 1, 100), offered("b", -1, 10**9)], {})
    torch.testing.assert_close(merged["t"].weight, torch.zeros(1, 2))


@pytest.mark.parametrize("strategy", sorted(available()))
def test_every_method_takes_the_bounds_that_fit_it_and_refuses_the_others(strategy):
    base = {"strategy": strategy} | ({"fedprox.mu": 0.1} if strategy == "fedprox" else {})
    silent = strategy in ("individual", "zero-shot", "central-individual", "central-mtl")
    for given in ({"robust.clip-factor": 2.0}, {"robust.mean": "median"}, {"robust.max-examples": 50}):
        values = base | given
        if silent:
            text = f"settings of robust.* are given, but strategy '{strategy}' sends nothing to bound: remove them"
        elif strategy == "matfl" and "robust.mean" in given:
            text = "robust.mean = 'median': strategy 'matfl' takes no mean over a task's holders"
        else:
            assert prepared(Settings.from_run_config(values)).strategy == strategy
            continue
        with pytest.raises(SettingsError, match=re.escape(text)):
            prepared(Settings.from_run_config(values))


def test_trim_is_of_the_trimmed_mean():
    with pytest.raises(
        SettingsError, match=r"robust.trim = 0.1 with robust.mean = 'median': only the trimmed mean trims"
    ):
        Settings.from_run_config({"robust.trim": 0.1, "robust.mean": "median"})


@pytest.mark.parametrize("strategy", ["pertask-fedavg", "fedavg", "ties"])
@pytest.mark.parametrize("bound", [{"robust__mean": "median", "robust__clip_factor": 1.5}])
def test_other_methods_hold_out_too(tmp_path, strategy, bound):
    """No task is carried further than twice the longest that an honest holder sent."""
    attacked = Watched(tmp_path, rounds=1, strategy=strategy, **bound)
    honest = [u for u in attacked.updates[0] if u.client not in BAD]
    longest = max(max(float(u.vectors.reconstruct(t).norm()) for t in u.num_examples) for u in honest)
    for vector in attacked.after[0].values():
        assert float(vector.norm()) <= 2 * longest
