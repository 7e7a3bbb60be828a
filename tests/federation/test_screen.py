"""Replies that are too far from their round are refused by name; honest ones never are; merges that jump are undone."""

import math
import re

import pytest
import torch

from matu_flwr.backbones import LinearHead
from matu_flwr.config.settings import Settings
from matu_flwr.federation import base
from matu_flwr.federation.screen import Before, Screen, change_of_head, reference_of, size_of, vector_sizes
from matu_flwr.merging import SeparateTaskVectors, unify
from matu_flwr.run.console import Narrator, render_lines, round_line
from matu_flwr.run.summary import summarise
from matu_flwr.strategies import FederationError, method
from matu_flwr.strategies import matu as matu_module
from tests.run import histories as made
from tests.support.scripted import Scripted

FOUR = [{"a": 10, "b": 10}, {"b": 10, "c": 10}, {"c": 10, "d": 10}, {"d": 10, "a": 10}]
BAD = "client-000"
VECTORS = ["matu", "pertask-fedavg", "fedavg", "matfl", "ties", "emr", "task-arithmetic"]


def honest(round_, client, task):
    """Of about the same size for everybody, and of another direction for each client and task."""
    seed = sum(map(ord, client + task)) + 100 * round_
    return (0.05 * torch.randn(4, generator=torch.Generator().manual_seed(seed)).sign()).tolist()


def bad(factor, since=1, who=(BAD,)):
    """Honest ones, but what `who` sends from a round on is so many times as long; `factor` may depend on the round."""

    def vector(round_, client, task):
        times = factor(round_) if callable(factor) else factor
        return [times * x if client in who and round_ >= since else x for x in honest(round_, client, task)]

    return vector


def refused(run):
    return [(event["round"], event["client"]) for event in run.of("client", status="refused")]


def same(one, other):
    assert one.strategy.task_vectors.keys() == other.strategy.task_vectors.keys()
    for task, vector in one.strategy.task_vectors.items():
        assert torch.equal(vector, other.strategy.task_vectors[task]), task


# --- bad clients ---


@pytest.mark.parametrize(
    ("strategy", "factor"), [*((name, 1e3) for name in VECTORS), *(("matu", x) for x in (-1e3, 1e6, 1e20))]
)
def test_a_long_update_is_refused_and_the_others_go_on_as_if_it_had_not_come(strategy, factor):
    attacked = Scripted(strategy, FOUR, rounds=2, vector=bad(factor)).run()
    absent = {"fails": lambda round_, phase, client: phase == "train" and client == BAD}
    without = Scripted(strategy, FOUR, rounds=2, vector=honest, **absent).run()
    rounds = [2] if method(strategy).__mro__[1].__name__ == "OneShotMerge" else [1, 2]
    assert refused(attacked) == [(r, BAD) for r in rounds]
    same(attacked, without)
    for event in attacked.of("client", client=BAD, status="refused"):
        assert (event["tasks"], event["seconds"], event["bytes_up"]) == ({}, {}, None)
        found = event["screen"]
        assert found["what"] == "vector"
        assert found["size"] > found["limit"] == pytest.approx(10 * found["reference"])
        assert re.match(
            r"its vector of task '[ab]' has size \S+ \(root mean square\), \S+ times the reference of the round, \S+; "
            r"at most \S+ is accepted \(screen.factor = 10\): nothing of this reply is used$",
            event["error"],
        )
    assert all(event["failed"] == (event["round"] in rounds) for event in attacked.of("round"))
    assert attacked.strategy.trained.get(BAD) == (1 if rounds == [2] else None)


def test_there_is_one_event_for_each_client_and_round():
    run = Scripted("matu", FOUR, rounds=3, vector=bad(1e3, since=2)).run()
    told = [(e["round"], e["client"], e["phase"]) for e in run.of("client")]
    assert len(told) == len(set(told)) == 3 * 4 + 4


def test_a_refused_reply_tells_no_accuracy():
    lies = {BAD: (10, 10, 0.0)}
    run = Scripted(
        "matu", FOUR, rounds=1, vector=bad(1e3), tested=lambda r, phase, client, t: lies.get(client, (1, 10, 0.5))
    ).run()
    first = run.of("accuracy", round=0)[0]
    assert first["accuracy"]["a"] == 0.1


def test_off_means_off():
    run = Scripted("matu", FOUR, rounds=1, vector=bad(1e3), screen__factor=0).run()
    assert refused(run) == []
    assert "screen" not in run.of("round")[0]


def test_the_one_that_grows_from_round_to_round_does_not_take_the_bound_with_it():
    run = Scripted("matu", FOUR, rounds=6, vector=bad(lambda r: 6.0**r)).run()
    assert refused(run) == [(r, BAD) for r in range(2, 7)]
    assert max(run.strategy.references["vector"].values()) < 0.1


def test_half_of_them_are_refused_by_name():
    two = (BAD, "client-001")
    run = Scripted("matu", FOUR, rounds=2, vector=bad(1e3, who=two)).run()
    assert refused(run) == [(1, BAD), (1, "client-001"), (2, BAD), (2, "client-001")]


def test_of_two_the_longer_one_is_refused():
    run = Scripted("matu", FOUR[:2], rounds=2, vector=bad(1e3), min_nodes=1).run()
    assert refused(run) == [(1, BAD), (2, BAD)]
    with pytest.raises(FederationError, match=rf"1 usable replies of 2 .*\n  {BAD}: its vector of task"):
        Scripted("matu", FOUR[:2], rounds=2, vector=bad(1e3)).run()


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("strategy", ["matu", "fedavg", "pertask-fedavg"])
def test_who_sends_next_to_nothing_gets_nobody_refused(strategy, count):
    """Half of the clients, so that the median is theirs. The others move by what ten steps of 0.01 can do."""
    who = {f"client-{i:03d}" for i in range(count // 2)}
    for tiny in (0.0, 1e-9):
        run = Scripted(strategy, FOUR[:count], rounds=3, vector=bad(tiny, who=who), train__lr=0.01).run()
        assert refused(run) == []


def test_in_a_round_of_its_own_a_client_is_measured_by_the_rounds_before():
    one = {"rounds": 8, "fraction_train": 0.25, "train__lr": 0.03}
    asked = Scripted("matu", FOUR, **one).run().rounds_of("train")
    assert all(len(clients) == 1 for clients in asked.values())
    victims = [r for r in sorted(asked) if r > 1]
    who = {asked[r][0] for r in victims if asked[r] != asked[1]}
    run = Scripted("matu", FOUR, vector=bad(1e3, since=2, who=who), max_failed_fraction=1.0, **one).run()
    assert refused(run) == [(r, asked[r][0]) for r in victims if asked[r][0] in who]
    assert refused(run)


@pytest.mark.parametrize("strategy", ["matu", "fedavg", "pertask-fedavg", "matfl", "emr"])
@pytest.mark.parametrize("kind", ["vector", "bias"])
def test_the_first_client_is_measured_by_what_it_was_asked_to_do_if_it_comes_alone(strategy, kind):
    def sent(factor):
        return {"vector": lambda *_: [0.02] * 4, "bias": lambda *_: [0.2, -0.2]} | {
            kind: lambda *_: [factor * 0.02, 0.0, 0.0, 0.0][: 4 if kind == "vector" else 2]
        }

    lonely = {"hands": FOUR[:1], "rounds": 1, "min_nodes": 1, "train__lr": 0.01}
    assert refused(Scripted(strategy, **lonely, **sent(10)).run()) == []
    run = Scripted(strategy, **lonely, **sent(1e4), max_failed_fraction=1.0)
    with pytest.raises(FederationError, match="0 usable replies of 1"):
        run.run()
    assert refused(run) == [(1, "client-000")]
    assert not run.strategy.task_vectors


def test_noise_is_no_fault_of_a_client_that_comes_alone():
    values = {"privacy__noise_multiplier": 2.0, "privacy__clip_norm": 1.0}
    lonely = {"hands": FOUR[:1], "rounds": 2, "min_nodes": 1}
    assert refused(Scripted("matu", **lonely, **values, vector=lambda *_: [2.0, -2.0, 2.0, -2.0]).run()) == []


def test_most_of_a_round_cannot_carry_the_reference_away_from_the_rounds_before():
    """Three of four turn bad in round 3: what a round may do is at most factor times what the rounds before did."""
    three = {f"client-{i:03d}" for i in range(3)}
    with pytest.raises(FederationError, match="round 3: 3 of 4 clients failed"):
        Scripted("matu", FOUR, rounds=4, vector=bad(1e6, since=3, who=three)).run()


def test_two_of_three_holders_do_not_own_the_bound_of_their_task():
    hands = [{"t": 10}, {"t": 10}, {"t": 10, "u": 10}, {"u": 10}, {"v": 10}]
    two = (BAD, "client-001")
    run = Scripted("matu", hands, rounds=1, vector=bad(1e6, who=two)).run()
    assert refused(run) == [(1, client) for client in two]


def test_a_client_with_many_tasks_has_one_vote():
    hands = [dict.fromkeys("abcdefgh", 10), {"a": 10}, {"b": 10}]
    assert refused(Scripted("matu", hands, rounds=1, vector=bad(1e6)).run()) == [(1, BAD)]


@pytest.mark.parametrize("factor", [1e3, 1e6, 3e38])
@pytest.mark.parametrize("strategy", ["matu", "fedavg"])
def test_a_head_that_is_far_off_is_refused(strategy, factor):
    def bias(round_, client, task):
        x = 0.05 if client != BAD else 0.05 * factor
        return [x, -x]

    run = Scripted(strategy, FOUR, rounds=2, vector=honest, bias=bias).run()
    assert refused(run) == [(1, BAD), (2, BAD)]
    text = run.of("client", status="refused")[0]["error"]
    assert ("change of the head of task" if factor < 1e30 else "expected at most 1e+24") in text
    for head in run.strategy.heads.values():
        assert float(head.bias.abs().max()) == pytest.approx(0.05)


def test_too_many_refused_stop_the_run_and_it_can_be_resumed():
    kept = {}

    def keep(strategy):
        described, tensors = strategy.state()
        kept[strategy.completed] = described, {name: tensor.clone() for name, tensor in tensors.items()}

    who = {f"client-{i:03d}" for i in range(3)}
    with pytest.raises(FederationError) as stopped:
        Scripted("matu", FOUR, rounds=4, vector=bad(1e6, since=3, who=who), after_round=keep).run()
    assert str(stopped.value).count("nothing of this reply is used") == 3
    assert "train.lr" not in str(stopped.value)
    resumed = Scripted("matu", FOUR, rounds=4, vector=honest)
    resumed.strategy.resume(2, *kept[2])
    resumed.run()
    same(resumed, Scripted("matu", FOUR, rounds=4, vector=honest).run())
    assert resumed.strategy.references["vector"].keys() == {"1", "2", "3", "4"}


def test_a_resumed_run_decides_the_same():
    """Round 3 has one client alone, which only the rounds before can judge."""
    values = {"train__lr": 0.1, "rounds": 3, "fraction_train": 0.25, "max_failed_fraction": 1.0}
    who = {f"client-{i:03d}" for i in range(4)}
    kept = {}
    whole = Scripted(
        "matu",
        FOUR,
        vector=bad(100, since=3, who=who),
        after_round=lambda s: kept.setdefault(s.completed, s.state()),
        **values,
    ).run()
    assert [r for r, _ in refused(whole)] == [3]
    resumed = Scripted("matu", FOUR, vector=bad(100, since=3, who=who), **values)
    resumed.strategy.resume(2, *kept[2])
    resumed.run()
    assert refused(resumed) == refused(whole)
    forgetful = Scripted("matu", FOUR, vector=bad(100, since=3, who=who), **values)
    forgetful.strategy.resume(2, {k: v for k, v in kept[2][0].items() if k != "references"}, kept[2][1])
    assert refused(forgetful.run()) == [], "this test sees whether the references were kept"


# --- honest clients ---


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
@pytest.mark.parametrize(
    "course",
    [
        lambda r: r / 30,  # a warm-up over the whole run
        lambda r: 0.5 * (1 + math.cos(math.pi * (r - 1) / 30)),
        lambda r: 1.0 if r != 11 else 0.05,
        lambda r: math.sqrt(r),
        lambda r: float(r),
    ],
    ids=["warm-up", "cosine", "a quiet round", "like a random walk", "straight away"],
)
def test_what_schedules_do_is_never_refused(course, fraction):
    """Clients differ by three to one."""

    def vector(round_, client, task):
        return [x * course(round_) * (1 + int(client[-1]) % 3) for x in honest(round_, client, task)]

    run = Scripted("matu", FOUR, rounds=30, vector=vector, fraction_train=fraction).run()
    assert refused(run) == []
    assert not any("rolled_back" in event for event in run.of("round"))


def test_a_task_that_still_learns_is_not_measured_by_those_that_have_converged():
    def vector(round_, client, task):
        return [x * (1.0 if task == "a" else 1e-6) for x in honest(round_, client, task)]

    assert refused(Scripted("matu", FOUR, rounds=2, vector=vector, train__lr=0.01).run()) == []


def test_the_reference_by_hand():
    sizes = {"x": {"a": 1.0, "b": 3.0}, "y": {"a": 2.0}, "z": {"a": 100.0, "b": 90.0, "c": 80.0}}
    assert reference_of(sizes, [], 10) == 2.0, "lower medians 1, 2 and 90"
    assert reference_of(sizes, [5.0, 7.0, 6.0], 10) == 6.0, "not less than the rounds before"
    assert reference_of(sizes, [0.1], 10) == 1.0, "and at most ten times that"
    assert reference_of({"z": sizes["z"]}, [], 10) is None
    assert reference_of({"z": sizes["z"]}, [0.5], 10) == 0.5
    assert reference_of({}, [0.5], 10) is None


@pytest.mark.parametrize(
    ("strategy", "values", "expected"),
    [
        ("matu", {}, (0.02, 0.2)),
        ("matu", {"matu.payload": "vector"}, (0.02 * 7, 0.2)),
        ("pertask-fedavg", {}, (0.02 * 7, 0.2)),
        ("fedavg", {}, (0.02 * 7 * 3, 0.2)),
        ("ties", {}, (0.02 * 7, 0.2 * 7)),
    ],
)
def test_what_steps_can_do(strategy, values, expected):
    told = {"train.lr": 0.002, "train.steps": 10, "train.head-lr": 0.02} | values
    screen = Screen(Settings.from_flat({"strategy": strategy} | told), method(strategy).rule)
    reply = Reply(SeparateTaskVectors({"a": torch.ones(25)}))
    screen.measure("x", reply, {})
    assert (screen.reach("vector", 7, 3), screen.reach("head", 7, 3)) == pytest.approx(expected)


class Reply:
    def __init__(self, vectors, heads=None):
        self.vectors, self.heads = vectors, heads or {}


def test_sizes_by_hand():
    taus = {"a": torch.tensor([3.0, 4.0, 0.0, 0.0]), "b": torch.tensor([0.0, 0.0, 0.0, 8.0])}
    assert vector_sizes(SeparateTaskVectors(taus)) == {"a": 2.5, "b": 4.0}
    assert vector_sizes(SeparateTaskVectors(taus), one_vector=True) == {"a": 2.5, "b": 2.5}
    packed = unify(taus)
    exact = {task: size_of(packed.reconstruct(task)) for task in taus}
    assert vector_sizes(packed) == pytest.approx(exact)
    assert vector_sizes(packed, one_vector=True) == pytest.approx({"a": exact["a"], "b": exact["a"]})
    head = LinearHead(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0]))
    assert change_of_head(head, None) == pytest.approx(math.sqrt(25 / 3))
    assert change_of_head(head, head) == 0
    far = LinearHead(torch.full((1, 2), 3e38), torch.zeros(1))
    opposite = LinearHead(torch.full((1, 2), -3e38), torch.zeros(1))
    assert change_of_head(far, opposite) == pytest.approx(6e38 * math.sqrt(2 / 3)), "beyond float32"
    assert size_of(torch.full((4,), 3e38)) == pytest.approx(3e38)


# --- merges that are undone ---


def spoil(run, monkeypatch, round_, factor):
    """Let the merge of a round give so many times what it should. Returns what the strategy had before it."""
    strategy, merge = run.strategy, run.strategy.merge
    held = {}

    def spoilt(updates):
        if strategy._round.number != round_:
            return merge(updates)
        names = [name for name in strategy.kept if name not in base.ManyTaskStrategy.kept]
        held.update(Before(strategy, ["task_vectors", *names]).held)
        if isinstance(strategy, matu_module.MaTU):
            real = matu_module.aggregate

            def larger(*arguments, **options):
                found = real(*arguments, **options)
                found.task_vectors["a"].mul_(factor)
                return found

            monkeypatch.setattr(matu_module, "aggregate", larger)
            graph = merge(updates)
            monkeypatch.setattr(matu_module, "aggregate", real)
            return graph
        graph = merge(updates)
        for name in ("task_vectors", *names):
            value = getattr(strategy, name)
            if isinstance(value, dict):
                key = min(value, default=None)
                if key is not None:
                    value[key] = value[key] * factor
            elif isinstance(value, torch.Tensor):
                setattr(strategy, name, value * factor)
        return graph

    strategy.merge = spoilt
    return held


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e4], ids=str)
@pytest.mark.parametrize("strategy", VECTORS)
def test_a_merge_that_jumped_is_undone_and_the_round_says_why(strategy, factor, monkeypatch):
    said = []
    monkeypatch.setattr(base, "log", lambda level, text, *values: said.append(text % values))
    run = Scripted(strategy, FOUR, rounds=2, vector=honest)
    held = spoil(run, monkeypatch, 2, factor)
    run.run()
    (first, second) = run.of("round")
    assert "rolled_back" not in first
    shared = strategy not in ("matu", "pertask-fedavg")
    assert sorted(second["rolled_back"]) == (["a", "b", "c", "d"] if shared else ["a"])
    for task, reason in second["rolled_back"].items():
        assert re.match(
            r"the merged vector has size \S+ \(root mean square\), and the accepted updates allow \S+"
            + (r"$" if not math.isfinite(factor) else r" \(screen.jump = 10 times as much is rolled back\)$"),
            reason,
        )
        assert f"task {task} keeps what it had before round 2: {reason}" in said
        if task in held["task_vectors"]:
            assert run.strategy.task_vectors[task] is held["task_vectors"][task]
        else:
            assert task not in run.strategy.task_vectors
    for name in held.keys() - {"task_vectors"}:
        assert getattr(run.strategy, name) is held[name] or getattr(run.strategy, name) == held[name]
    assert f"rolled back: {', '.join(sorted(second['rolled_back']))}" in round_line(2, 2, None, second)
    narrator = Narrator()
    lines = [line for event in (made.plan(), *run.events) for line in render_lines(narrator.tell(event))]
    assert any(line.startswith("  task a keeps what it had before round 2: the merged vector has") for line in lines)
    assert {e["task"] for e in summarise([made.plan(), *run.events])["rolled_back"]} == set(second["rolled_back"])


@pytest.mark.parametrize("factor", [math.nan, 1e4], ids=str)
def test_a_head_that_jumped_is_undone(factor, monkeypatch):
    run = Scripted("matu", FOUR, rounds=2, vector=honest, bias=lambda r, client, task: [0.1 * r, 0.0])
    merge, heads = run.strategy.influence.merge_heads, []

    def spoilt(offered, before):
        heads.append(dict(before))
        found = merge(offered, before)
        if run.strategy._round.number == 2:
            found["a"] = LinearHead(found["a"].weight, found["a"].bias * factor)
        return found

    run.strategy.influence.merge_heads = spoilt
    run.run()
    assert list(run.of("round")[1]["rolled_back"]) == ["a"]
    assert "the merged change of the head has size" in run.of("round")[1]["rolled_back"]["a"]
    assert run.strategy.heads["a"] is heads[1]["a"]
    assert run.strategy.heads["b"] is not heads[1]["b"]


@pytest.mark.parametrize(
    ("strategy", "values"),
    [
        ("matu", {"matu__combine": "sum", "matu__relation_weight": "similarity", "matu__epsilon": -1e9}),
        ("task-arithmetic", {"task_arithmetic__scale": 1.0}),
        ("ties", {"ties__keep": 1.0}),
        ("ties", {"ties__scale": 30.0}),
    ],
)
def test_what_a_method_adds_up_is_no_jump(strategy, values):
    """Sixty tasks with the same vector, and nothing but what the method is for."""
    hands = [{f"t{i:02d}": 5 for i in range(60)}] * 2
    many = {"max_tasks_per_client": 60, "max_tasks_total": 60}
    run = Scripted(strategy, hands, rounds=2, vector=lambda *_: [0.01] * 4, screen__jump=1.001, **many, **values).run()
    assert not any("rolled_back" in event for event in run.of("round"))
    assert run.strategy.task_vectors


def test_without_a_bound_on_jumps_only_what_is_not_finite_is_undone(monkeypatch):
    for factor, undone in ((1e4, False), (math.nan, True)):
        run = Scripted("matu", FOUR, rounds=2, vector=honest, screen__jump=0)
        spoil(run, monkeypatch, 2, factor)
        run.run()
        assert ("rolled_back" in run.of("round")[1]) == undone


def test_the_round_s_event_has_the_reference_and_the_largest_update():
    (event,) = Scripted("matu", FOUR[:3], rounds=1, vector=bad(4.0)).run().of("round")
    found = event["screen"]["vector"]
    assert found["client"] == BAD
    assert 2 < found["largest"] / found["reference"] < 8
    assert event["seconds"]["screen"] >= 0
