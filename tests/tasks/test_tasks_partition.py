import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matu_flwr.tasks import TaskError, client_shares, deal, manifest, split_by_label, split_evenly

SUITE = [f"task-{index}" for index in range(12)]


@st.composite
def deals(draw):
    tasks = SUITE[: draw(st.integers(1, 12))]
    low = draw(st.integers(1, len(tasks)))
    return tasks, draw(st.integers(1, 30)), low, draw(st.integers(low, 14)), draw(st.integers(0, 2**31))


@settings(deadline=None)  # a busy machine is no failure
@given(deals())
def test_deal_covers_all_tasks_evenly_and_gives_none_twice(case):
    tasks, num_clients, low, high, seed = case
    hands = deal(tasks, num_clients, min_tasks=low, max_tasks=high, seed=seed)
    assert len(hands) == num_clients
    holders = [sum(task in hand for hand in hands) for task in tasks]
    assert min(holders) >= 1
    assert max(holders) - min(holders) <= 1
    for hand in hands:
        assert hand == [task for task in tasks if task in hand]  # suite order, nothing twice
        assert len(hand) >= low
    if num_clients * low >= len(tasks):
        assert max(map(len, hands)) <= high
    else:  # more seats than asked for are handed out evenly, and only as many as it takes
        total = sum(map(len, hands))
        assert max(map(len, hands)) <= max(high, -(-total // num_clients))
    assert hands == deal(tasks, num_clients, min_tasks=low, max_tasks=high, seed=seed)


def test_deal_with_too_few_seats_leaves_no_task_out():
    hands = deal(SUITE, 2, min_tasks=1, max_tasks=2, seed=0)
    assert sorted(task for hand in hands for task in hand) == sorted(SUITE)
    assert [len(hand) for hand in hands] == [6, 6]


def test_deal_depends_on_the_seed():
    assert len({str(deal(SUITE, 8, min_tasks=1, max_tasks=4, seed=seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"min_tasks": 3, "max_tasks": 2}, "min_tasks is 3 and max_tasks is 2: expected 1 <= min_tasks <= max_tasks"),
        ({"min_tasks": 0, "max_tasks": 2}, "min_tasks is 0 and max_tasks is 2: expected"),
        ({"min_tasks": 13, "max_tasks": 13}, "min_tasks is 13, but there are only 12 tasks: lower it or choose"),
        ({"num_clients": 0}, "num_clients is 0: expected 1 or more"),
        ({"tasks": ["a", "a"]}, r"cannot deal tasks \['a', 'a'\]: expected one or more different names"),
    ],
)
def test_deal_refuses(arguments, text):
    given_arguments = {"tasks": SUITE, "num_clients": 4, "min_tasks": 1, "max_tasks": 2, **arguments}
    with pytest.raises(TaskError, match=text):
        deal(given_arguments.pop("tasks"), given_arguments.pop("num_clients"), seed=0, **given_arguments)


@st.composite
def label_splits(draw):
    num_holders = draw(st.integers(1, 8))
    min_examples = draw(st.integers(0, 10))
    size = draw(st.integers(max(1, num_holders * min_examples), 150))
    labels = np.array(draw(st.lists(st.integers(0, 6), min_size=size, max_size=size)), dtype=np.int64)
    alpha = draw(st.sampled_from([1e-3, 0.1, 0.5, 1.0, 100.0]))
    return labels, num_holders, alpha, min_examples, draw(st.integers(0, 2**31))


@settings(deadline=None)  # a busy machine is no failure
@given(label_splits())
def test_split_by_label_is_a_partition_with_enough_for_everybody(case):
    labels, num_holders, alpha, min_examples, seed = case
    arguments = {"alpha": alpha, "seed": seed, "min_examples": min_examples}
    parts = split_by_label(labels, num_holders, **arguments)
    assert len(parts) == num_holders
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for part, again in zip(parts, split_by_label(labels, num_holders, **arguments), strict=True):
        assert part.dtype == np.int64
        assert len(part) >= min_examples
        assert np.all(np.diff(part) > 0)
        assert np.array_equal(part, again)


def test_small_alpha_is_more_skewed_than_large_alpha():
    labels = np.repeat(np.arange(10), 100)

    def largest_portion(alpha):  # mean over labels of the portion of the holder that has most of it
        parts = split_by_label(labels, 5, alpha=alpha, seed=1, min_examples=1)
        counts = np.stack([np.bincount(labels[part], minlength=10) for part in parts])
        return (counts.max(axis=0) / 100).mean()

    assert largest_portion(100.0) < 0.3 < 0.6 < largest_portion(0.1)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"min_examples": 6}, "20 training examples cannot give each of 4 holders at least 6: lower min_examples"),
        ({"alpha": 0.0}, "alpha is 0.0: expected a finite number > 0"),
        ({"alpha": float("nan")}, "alpha is nan: expected a finite number > 0"),
        ({"num_holders": 0}, "num_holders is 0: expected 1 or more"),
    ],
)
def test_split_by_label_refuses(arguments, text):
    defaults = {"num_holders": 4, "alpha": 1.0, "min_examples": 1, "seed": 0}
    with pytest.raises(TaskError, match=text):
        split_by_label(np.zeros(20, dtype=np.int64), **{**defaults, **arguments})


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 200), st.integers(1, 20), st.integers(0, 2**31))
def test_split_evenly(n, num_holders, seed):
    parts = split_evenly(n, num_holders, seed=seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def labels_of(task):
    return np.arange(90 + int(task[-1])) % 7, 40


PARTITION = {"alpha": 0.5, "seed": 3, "min_examples": 4}


def test_shares_of_a_task_fit_together_although_each_client_works_out_its_own():
    holdings = deal(SUITE[:5], 7, min_tasks=1, max_tasks=3, seed=3)
    shares = [client_shares(holdings, partition, labels_of, **PARTITION) for partition in range(7)]
    assert [list(share) for share in shares] == holdings
    for task in SUITE[:5]:
        own = [share[task] for share in shares if task in share]
        labels, num_test = labels_of(task)
        assert all(share.task == task for share in own)
        assert np.array_equal(np.sort(np.concatenate([share.train for share in own])), np.arange(len(labels)))
        assert np.array_equal(np.sort(np.concatenate([share.test for share in own])), np.arange(num_test))


def test_shares_ask_only_for_labels_of_own_tasks():
    asked = []
    client_shares([["a"], ["b", "c"]], 1, lambda task: asked.append(task) or (np.zeros(9, np.int64), 4), **PARTITION)
    assert asked == ["b", "c"]


def test_shares_refuse():
    with pytest.raises(TaskError, match="partition is 2: expected 0 to 1, there are 2 clients"):
        client_shares([["a"], ["b"]], 2, labels_of, **PARTITION)
    with pytest.raises(TaskError, match="task 'a1': 91 training examples cannot give each of 30 holders at least 4"):
        client_shares([["a1"]] * 30, 0, labels_of, **PARTITION)


def test_manifest_says_what_the_shares_are():
    holdings = deal(SUITE[:5], 7, min_tasks=1, max_tasks=3, seed=3)
    described = manifest(holdings, labels_of, **PARTITION)
    assert json.loads(json.dumps(described)) == described
    for partition in range(7):
        shares = client_shares(holdings, partition, labels_of, **PARTITION)
        entry = described["clients"][partition]
        assert entry["partition"] == partition
        assert entry["tasks"].keys() == shares.keys()
        for task, share in shares.items():
            counts = np.bincount(labels_of(task)[0][share.train])
            assert entry["tasks"][task] == {
                "train": len(share.train),
                "labels": {str(label): int(counts[label]) for label in np.flatnonzero(counts)},
                "test": len(share.test),
            }
            assert partition in described["tasks"][task]["holders"]


def test_another_process_draws_the_same_numbers():
    # Python salts its own hash() per process: a seed made with it would give every node another partition
    code = "from matu_flwr.tasks import deal; print(deal(list('abcdef'), 4, min_tasks=1, max_tasks=3, seed=7))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(deal(list("abcdef"), 4, min_tasks=1, max_tasks=3, seed=7))
