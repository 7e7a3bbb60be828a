import hashlib
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.seeds import derive_seed
from matu_flwr.tasks import TaskError, client_shares, deal, manifest, split_by_label, split_evenly
from matu_flwr.tasks.partition.partition import Share, SplitRule, client_name, fingerprint, split_examples

SUITE = [f"task-{index}" for index in range(12)]


@st.composite
def deals(draw):
    tasks = SUITE[: draw(st.integers(1, 12))]
    low = draw(st.integers(1, len(tasks)))
    return tasks, draw(st.integers(1, 30)), low, draw(st.integers(low, 14)), draw(st.integers(0, 2**31))


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
        (
            {"how": "diriclet"},
            "unknown way to deal tasks 'diriclet': did you mean 'dirichlet'[?] known: dirichlet, even",
        ),
        ({"task_alpha": 0.0}, "task_alpha is 0.0: expected a finite number > 0"),
        ({"task_alpha": float("inf")}, "task_alpha is inf: expected a finite number > 0"),
    ],
)
def test_deal_refuses(arguments, text):
    given_arguments = {"tasks": SUITE, "num_clients": 4, "min_tasks": 1, "max_tasks": 2, **arguments}
    with pytest.raises(TaskError, match=text):
        deal(given_arguments.pop("tasks"), given_arguments.pop("num_clients"), seed=0, **given_arguments)


@given(deals(), st.sampled_from([1e-300, 1e-3, 0.3, 1.0, 100.0, 1e12]))
def test_deal_by_popularity_leaves_no_task_out(case, alpha):
    tasks, num_clients, low, high, seed = case
    arguments = {"min_tasks": low, "max_tasks": high, "seed": seed, "how": "dirichlet", "task_alpha": alpha}
    hands = deal(tasks, num_clients, **arguments)
    assert set(tasks) == {task for hand in hands for task in hand}
    for hand in hands:
        assert hand == [task for task in tasks if task in hand]  # suite order, nothing twice
        assert len(hand) >= low
    # popularity decides which tasks a client holds, never how many
    assert [len(hand) for hand in hands] == [
        len(hand) for hand in deal(tasks, num_clients, min_tasks=low, max_tasks=high, seed=seed)
    ]
    assert hands == deal(tasks, num_clients, **arguments)


@given(deals())
def test_a_ring_leaves_no_task_out_and_deals_neighbours(case):
    tasks, num_clients, low, high, seed = case
    arguments = {"min_tasks": low, "max_tasks": high, "seed": seed}
    hands = deal(tasks, num_clients, **arguments, how="ring")
    assert set(tasks) == {task for hand in hands for task in hand}
    # the way of dealing decides which tasks a client holds, never how many
    assert [len(hand) for hand in hands] == [len(hand) for hand in deal(tasks, num_clients, **arguments)]
    around = [*tasks, *tasks]
    for hand in hands:
        assert any(sorted(around[first : first + len(hand)]) == sorted(hand) for first in range(len(tasks)))


def test_a_ring_by_hand():
    fixed = {"min_tasks": 2, "max_tasks": 2, "seed": 0, "how": "ring"}
    assert deal("abcd", 4, **fixed) == [["a", "b"], ["b", "c"], ["c", "d"], ["a", "d"]]
    assert deal("abcd", 5, **fixed)[4] == ["a", "b"]
    assert deal("abcd", 2, **fixed) == [["a", "b"], ["c", "d"]]
    assert deal("abcde", 3, **fixed) == [["a", "b"], ["c", "d"], ["a", "e"]]


def holders_of(tasks, hands):
    return np.array([sum(task in hand for hand in hands) for task in tasks])


def test_popularity_is_skewed_by_a_small_alpha_only():
    def largest_share(alpha):  # mean over seeds of the share of all seats that the most popular task has
        hands = [
            deal(SUITE, 60, min_tasks=1, max_tasks=1, seed=seed, how="dirichlet", task_alpha=alpha)
            for seed in range(20)
        ]
        return np.mean([holders_of(SUITE, dealt).max() / 60 for dealt in hands])

    # 60 seats, 12 tasks: even would be 1/12 = .083, chance alone makes the largest of twelve about .15
    assert largest_share(1000.0) < 0.19 < 0.3 < largest_share(0.1)


def test_two_tasks_are_drawn_as_often_as_their_popularity_says():
    # p ~ Dirichlet(1) over two tasks is uniform, and with one seat per client a share of holders estimates p: over
    # seeds it has mean 1/2 and variance 1/12, plus p (1 - p) / 400 on average 1/2400.
    shares = [
        holders_of("ab", deal("ab", 400, min_tasks=1, max_tasks=1, seed=seed, how="dirichlet"))[0] / 400
        for seed in range(300)
    ]
    assert abs(np.mean(shares) - 1 / 2) < 4 * np.sqrt(1 / 12 / 300)
    assert abs(np.var(shares) - 1 / 12) < 0.02


@st.composite
def label_splits(draw):
    num_holders = draw(st.integers(1, 8))
    min_examples = draw(st.integers(0, 10))
    size = draw(st.integers(max(1, num_holders * min_examples), 150))
    labels = np.array(draw(st.lists(st.integers(0, 6), min_size=size, max_size=size)), dtype=np.int64)
    alpha = draw(st.sampled_from([1e-3, 0.1, 0.5, 1.0, 100.0]))
    return labels, num_holders, alpha, min_examples, draw(st.integers(0, 2**31))


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


@given(st.integers(0, 200), st.integers(1, 20), st.integers(0, 2**31))
def test_split_evenly(n, num_holders, seed):
    parts = split_evenly(n, num_holders, seed=seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_client_that_splits_loads_neither_flower_nor_pandas():
    code = (
        "import sys, numpy as np; from matu_flwr.tasks.partition.partition import *; "
        "[split_examples(np.arange(60) % 3, 4, SplitRule(kind, 0.5, 4), seed=0) for kind in ('dirichlet', 'iid')]; "
        "print([m for m in ('flwr', 'datasets', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- shares and the manifest ---

KINDS = ("dirichlet", "iid")


def labels_of(task):
    return np.arange(90 + int(task[-1])) % 7, 40


def rule(kind="dirichlet", **changes):
    return SplitRule(**{"kind": kind, "alpha": 0.5, "min_examples": 4, **changes})


def test_iid_is_even_and_blind_to_labels():
    labels = np.repeat(np.arange(4), 100)
    parts = split_examples(labels, 4, rule("iid"), seed=1)
    assert [len(part) for part in parts] == [100] * 4
    assert all(np.bincount(labels[part], minlength=4).min() > 12 for part in parts)  # 25 +- 4
    with pytest.raises(TaskError, match="400 training examples cannot give each of 4 holders at least 101: lower min"):
        split_examples(labels, 4, rule("iid", min_examples=101), seed=1)


def test_an_unknown_split_is_refused():
    text = "unknown split 'dirichlett': did you mean 'dirichlet'[?] known: dirichlet, iid"
    with pytest.raises(TaskError, match=text):
        split_examples(np.zeros(30, np.int64), 2, rule("dirichlett"), seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_a_task_fit_together_although_each_client_works_out_its_own(kind):
    holdings = deal(SUITE[:5], 7, min_tasks=1, max_tasks=3, seed=3)
    shares = [client_shares(holdings, partition, labels_of, rule(kind), seed=3) for partition in range(7)]
    assert [list(share) for share in shares] == holdings
    for task in SUITE[:5]:
        own = [share[task] for share in shares if task in share]
        labels, num_test = labels_of(task)
        assert all(share.task == task for share in own)
        assert np.array_equal(np.sort(np.concatenate([share.train for share in own])), np.arange(len(labels)))
        assert min(len(share.train) for share in own) >= 4
        assert np.array_equal(np.sort(np.concatenate([share.test for share in own])), np.arange(num_test))


def test_shares_ask_only_for_labels_of_own_tasks():
    asked = []
    client_shares([["a"], ["b", "c"]], 1, lambda task: asked.append(task) or (np.zeros(9, np.int64), 4), rule(), seed=3)
    assert asked == ["b", "c"]


def test_shares_refuse():
    with pytest.raises(TaskError, match="partition is 2: expected 0 to 1, there are 2 clients"):
        client_shares([["a"], ["b"]], 2, labels_of, rule(), seed=3)
    with pytest.raises(TaskError, match="task 'a1': 91 training examples cannot give each of 30 holders at least 4"):
        client_shares([["a1"]] * 30, 0, labels_of, rule(), seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_manifest_says_what_the_shares_are(kind):
    holdings = deal(SUITE[:5], 7, min_tasks=1, max_tasks=3, seed=3)
    described = manifest(holdings, labels_of, rule(kind), seed=3)
    assert json.loads(json.dumps(described)) == described
    assert described["seed"] == 3
    assert described["split"] == {"kind": kind, "alpha": 0.5, "min_examples": 4}
    everything = []
    for partition in range(7):
        shares = client_shares(holdings, partition, labels_of, rule(kind), seed=3)
        everything.append(list(shares.values()))
        entry = described["clients"][partition]
        assert (entry["client"], entry["partition"]) == (f"client-00{partition}", partition)
        assert entry["tasks"].keys() == shares.keys()
        for task, share in shares.items():
            counts = np.bincount(labels_of(task)[0][share.train])
            assert entry["tasks"][task] == {
                "train": len(share.train),
                "labels": {str(label): int(counts[label]) for label in np.flatnonzero(counts)},
                "test": len(share.test),
            }
            assert f"client-00{partition}" in described["tasks"][task]["holders"]
    assert described["fingerprint"] == fingerprint(everything)
    for task, entry in described["tasks"].items():
        held = sum(client["tasks"][task]["train"] for client in described["clients"] if task in client["tasks"])
        assert held == entry["train"] == len(labels_of(task)[0])


def test_manifest_calls_clients_by_their_names():
    described = manifest([["a1"], ["a1"]], labels_of, rule(), seed=3, names=["Lund", "Uppsala"])
    assert [client["client"] for client in described["clients"]] == ["Lund", "Uppsala"]
    assert described["tasks"]["a1"]["holders"] == ["Lund", "Uppsala"]
    assert client_name(7) == "client-007"


def test_the_fingerprint_tells_index_lists_apart():
    def hands(*clients):
        return [[Share(task, np.array(train), np.array(test)) for task, train, test in parts] for parts in clients]

    same = [("a", [0, 2], [1]), ("b", [1], [])], [("c", [4], [4])]
    others = [
        ([("a", [0, 3], [1]), ("b", [1], [])], [("c", [4], [4])]),
        ([("a", [0, 2], [1]), ("d", [1], [])], [("c", [4], [4])]),
        ([("a", [0], [2, 1]), ("b", [1], [])], [("c", [4], [4])]),  # the same numbers, on the other side
        ([("c", [4], [4])], [("a", [0, 2], [1]), ("b", [1], [])]),
        ([("a", [0, 2], [1])], [("b", [1], []), ("c", [4], [4])]),  # the same shares, at other clients
        ([("a", [0, 2], [1]), ("b", [1], [])],),
    ]
    assert fingerprint(hands(*same)) == fingerprint(hands(*same))
    assert len({fingerprint(hands(*clients)) for clients in [same, *others]}) == 7
    # by hand: one client with 1 share; 1 letter of name, 1 index, 0 indices; "a"; index 5
    content = struct.pack("<q", 1) + struct.pack("<qqq", 1, 1, 0) + b"a" + struct.pack("<q", 5)
    assert fingerprint(hands([("a", [5], [])])) == hashlib.sha256(content).hexdigest()


def test_another_process_draws_the_same_numbers():
    # Python salts its own hash() per process: a seed made with it would give every node another partition
    code = (
        "import numpy as np; from matu_flwr.tasks.partition.partition import *; "
        "hands = deal(list('abcdef'), 4, min_tasks=1, max_tasks=3, seed=7); print(hands); "
        f"rules = {[rule(kind) for kind in KINDS]!r}; labels = lambda task: (np.arange(90) % 5, 9); "
        "[print(manifest(hands, labels, rule, seed=1)['fingerprint']) for rule in rules]"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    hands = deal(list("abcdef"), 4, min_tasks=1, max_tasks=3, seed=7)
    here = [manifest(hands, lambda task: (np.arange(90) % 5, 9), rule(kind), seed=1)["fingerprint"] for kind in KINDS]
    assert out.splitlines() == [str(hands), *here]


def test_the_fingerprint_sees_which_test_images_a_client_has():
    """As many, of the same task, beside the same training images."""
    prints = {
        fingerprint([[Share("a", np.array([0, 2]), np.array(test))]]) for test in ([1, 3], [1, 4], [3, 4], [1], [])
    }
    assert len(prints) == 5
    # two clients that change test images
    one, other = (
        [[Share("a", np.array([0]), np.array(mine))], [Share("a", np.array([1]), np.array(theirs))]]
        for mine, theirs in (([0], [1]), ([1], [0]))
    )
    assert fingerprint(one) != fingerprint(other)


def test_every_task_has_its_own_draw_of_training_and_of_test_images():
    """The seeds by hand: of the run, what is drawn, and the task's name."""
    labels = np.arange(90) % 7
    shares = client_shares([["a", "b"], ["b", "a"]], 1, lambda task: (labels, 40), rule("iid"), seed=3)
    assert list(shares) == ["b", "a"]
    for task, share in shares.items():
        assert np.array_equal(share.train, split_evenly(90, 2, seed=derive_seed(3, "train", task))[1])
        assert np.array_equal(share.test, split_evenly(40, 2, seed=derive_seed(3, "test", task))[1])
    assert not np.array_equal(shares["a"].test, shares["b"].test)
    assert not np.array_equal(shares["a"].train, shares["b"].train)
