"""Who can take part with whom: the order of the answers decides nothing."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.federation.agreement import Claim, Rules, judge
from matu_flwr.wire import Announcement, TaskInfo
from tests.support.laws import examples

LIGHT, VERY = ("dark", "light"), ("dark", "very light")


def claim(name, classes=LIGHT, *, node=None, task="scans", partition=-1, key="", registered="", **info):
    tasks = (
        {task: TaskInfo(classes, 20, 5, **info)}
        if isinstance(task, str)
        else dict.fromkeys(task, TaskInfo(classes, 9, 5))
    )
    node = sum(map(ord, name)) if node is None else node
    return Claim(node, Announcement(name, partition, "f" * 64, tasks), key, registered)


def judged(*claims, **rules):
    """The verdict as names and reasons by name; the same for every order of up to four claims."""
    found = judge(claims, Rules(**rules))
    for order in itertools.islice(itertools.permutations(claims), 24):
        assert judge(order, Rules(**rules)) == found
    names = {c.node_id: c.told.client for c in claims}
    assert set(found.accepted) | set(found.refused) == set(names)
    return (
        [c.told.client for c in found.accepted.values()],
        {f"{names[node]} {node}": reason for node, reason in found.refused.items()},
        found.ties,
    )


# --- what a task is ---


def test_most_holders_are_right_not_the_first_one():
    kept, refused, ties = judged(claim("a", VERY, node=1, partition=0), claim("b", node=2), claim("c", node=3))
    assert (kept, ties) == (["b", "c"], [])
    assert refused == {
        "a 1": "task 'scans': the classes ['dark', 'very light'], where most holders ('b', 'c') say ['dark', 'light'] "
        "(only here: ['very light']; missing here: ['light']): a task is one label set in one order; rename the "
        "folders, and where a site has no images of some class, keep the empty folder or declare the whole list "
        "(classes, in the suite or in the node config)"
    }


def test_the_suite_is_right_whatever_most_holders_say():
    kept, refused, _ = judged(claim("a", node=1), claim("b", VERY), claim("c", VERY), declared={"scans": LIGHT})
    assert kept == ["a"]
    assert all("where the server's suite say ['dark', 'light']" in reason for reason in refused.values())
    # a suite whose classes only the files tell leaves it to the holders
    assert judged(claim("a", node=1), claim("b", VERY), claim("c", VERY), declared={"scans": ()})[0] == ["b", "c"]


def test_a_tie_is_told_with_both_lists_and_who_said_which():
    kept, refused, ties = judged(claim("a"), claim("b", VERY), claim("c", VERY), claim("d"))
    assert kept == []
    assert len(refused) == 4
    (tie,) = ties
    assert tie.split("\n", 3)[:3] == [
        "task 'scans': the holders do not agree on the classes, and no side has more of them:",
        "    ['dark', 'light']: 'a', 'd'",
        "    ['dark', 'very light']: 'b', 'c'",
    ]
    assert tie.endswith("keep the empty folder or declare the whole list (classes, in the suite or in the node config)")
    assert judged(claim("a"), claim("b", VERY), declared={"scans": VERY})[0] == ["b"]


def test_the_same_classes_in_another_order_are_other_labels():
    _, refused, _ = judged(claim("a", LIGHT[::-1], node=1), claim("b"), claim("c"))
    assert "(in another order)" in refused["a 1"]


def test_a_site_that_lacks_a_class_folder_is_told_to_declare_it():
    """Its list is part of the others', but a list that only lacks a name looks just like one with a misnamed folder."""
    _, refused, _ = judged(claim("a", ("dark",), node=1), claim("b"), claim("c"))
    assert "(missing here: ['light'])" in refused["a 1"]
    assert "keep the empty folder or declare the whole list" in refused["a 1"]


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (
            "data",
            "the digest of the images' labels bbbb, where most holders ('b', 'c') say aaaa: shares must be of the",
        ),
        (
            "head",
            "the digest of the zero-shot head bbbb, where most holders ('b', 'c') say aaaa: text tower, heads file",
        ),
    ],
)
def test_files_and_frozen_heads_are_those_of_most_holders(what, text):
    good = [claim(name, **{what: "aaaa"}) for name in "bc"]
    assert text in judged(claim("a", node=1, **{what: "bbbb"}), *good)[1]["a 1"]
    ties = judged(claim("a", **{what: "bbbb"}), good[0])[2]
    assert "aaaa: 'b'" in ties[0]
    assert "bbbb: 'a'" in ties[0]


def test_images_of_a_site_s_own_have_no_digest_and_fit_to_all():
    assert judged(claim("a", data="aaaa"), claim("b"), claim("c", data="aaaa"))[0] == ["a", "b", "c"]


def test_none_is_a_head_like_another():
    assert (
        "zero-shot head none, where most" in judged(claim("a", node=1), *[claim(n, head="x") for n in "bc"])[1]["a 1"]
    )


def test_whoever_is_wrong_about_one_task_has_no_vote_on_another():
    """x is wrong about scans by the suite. Without its vote, leaves are as b and c say, and nobody ties."""
    bad = Claim(1, Announcement("x", -1, "f", {"scans": TaskInfo(VERY, 9, 1), "leaves": TaskInfo(("z",), 9, 1)}))
    good = [claim("b", ("p",), task="leaves"), claim("c", ("z",), task="leaves"), claim("d", ("p",), task="leaves")]
    kept, refused, ties = judged(bad, *good, declared={"scans": LIGHT})
    assert (kept, ties) == (["b", "d"], [])
    assert set(refused) == {"x 1", f"c {ord('c')}"}


def test_tasks_whose_names_differ_by_case_are_one():
    kept, refused, _ = judged(claim("a", node=1, task="Scans"), claim("b"), claim("c"))
    assert kept == ["b", "c"]
    assert "the task's name 'Scans', where most holders ('b', 'c') say 'scans'" in refused["a 1"]
    assert judged(claim("a", node=1, task="Scans"), claim("b"), claim("c"), declared={"Scans": ()})[0] == ["a"]
    assert len(judged(claim("a", task="Scans"), claim("b"))[2]) == 1


# --- names ---


def test_nobody_has_a_name_that_two_give():
    kept, refused, _ = judged(claim("a", node=1), claim("a", node=2), claim("b"))
    assert kept == ["b"]
    assert refused["a 1"] == (
        "client 'a' (node 2) has the same name: nobody can tell whose it is; give every node a name of its own (site "
        "in its node config)"
    )
    assert "client 'a' (node 1) has the same name" in refused["a 2"]


def test_names_that_are_one_file_are_one_name():
    assert judged(claim("North", node=1), claim("north", node=2), claim("b"))[0] == ["b"]


def test_the_key_decides_whose_the_name_is():
    """bound: who had it before. registered: to whom the operator gave it."""
    true, false = claim("a", node=2, key="k1"), claim("a", node=1, key="k2")
    kept, refused, _ = judged(true, false, bound={"a": "k1"})
    assert kept == ["a"]
    assert refused == {
        "a 1": "client 'a' (node 2) has the same name, and it belongs to that one; give every node a name of its own "
        "(site in its node config)"
    }
    kept, refused, _ = judged(claim("a", node=2, registered="a"), false)
    assert (kept, list(refused)) == (["a"], ["a 1"])


def test_a_registered_key_has_no_other_name():
    _, refused, _ = judged(claim("a", node=1, registered="b", key="k"))
    assert refused["a 1"].startswith("its key was registered under the name 'b', and it calls itself 'a': set site")
    # An operator who registers a new key under the old name means it.
    assert judged(claim("a", registered="a", key="new"), bound={"a": "old"}, keys_stay=True)[0] == ["a"]


def test_a_bound_name_stays_bound_where_keys_stay():
    _, refused, _ = judged(claim("a", node=1, key="k2"), bound={"a": "k1"}, keys_stay=True)
    assert refused["a 1"].startswith("the name 'a' belongs to the node with the key k1, and this one has the key k2")
    assert judged(claim("a", key="k2"), bound={"a": "k1"})[0] == ["a"]  # a simulation has new keys every time
    assert judged(claim("a", key="k1"), bound={"a": "k1"}, keys_stay=True)[0] == ["a"]


# --- partitions and numbers of tasks ---


def test_two_shares_of_one_partition_are_refused_and_folders_are_not():
    kept, refused, _ = judged(*[claim(n, partition=0, data="d") for n in "ab"], claim("c", partition=1, data="d"))
    assert kept == ["c"]
    assert "has the same partition-id, 0, and so the same images" in refused[f"a {ord('a')}"]
    assert judged(*[claim(n, partition=0) for n in "ab"])[0] == ["a", "b"]


def test_a_client_with_many_invented_tasks_is_refused_by_name():
    many = [f"t{i}" for i in range(5)]
    kept, refused, _ = judged(claim("a", node=1, task=many), claim("b"), most_own_tasks=4)
    assert kept == ["b"]
    assert refused["a 1"].startswith("it has 5 tasks that the server's suite does not have, more than max-tasks-per-cl")
    assert judged(claim("a", task=many), claim("b"), most_own_tasks=5)[0] == ["a", "b"]
    assert judged(claim("a", task=many), most_own_tasks=1, declared=dict.fromkeys(many, ()))[0] == ["a"]


def test_those_who_bring_most_tasks_that_nobody_else_has_go_first():
    invented = [claim(n, task=[f"{n}{i}" for i in range(4)]) for n in "xy"]
    honest = [claim(n, task=["scans", n]) for n in "abc"]  # 4 tasks
    kept, refused, _ = judged(*invented, *honest, most_tasks=6)
    assert kept == ["a", "b", "c"]
    assert all("the run would have 12 tasks, more than max-tasks-total = 6" in reason for reason in refused.values())


def test_tasks_of_the_suite_are_always_admitted():
    own, suite = claim("x", task=["u", "v"]), [claim(str(i), task=[f"s{i}"]) for i in range(5)]
    kept, _, _ = judged(own, *suite, most_tasks=4, declared={f"s{i}": () for i in range(5)})
    assert kept == [str(i) for i in range(5)]


# --- laws ---

LISTS = st.sampled_from([LIGHT, VERY, LIGHT[::-1], ("dark",)])
CLAIMS = st.lists(
    st.builds(
        lambda node, name, tasks, key, registered, partition: Claim(
            node,
            Announcement(name, partition, "f", {t: TaskInfo(c, 5, 1, h, d) for t, (c, h, d) in sorted(tasks.items())}),
            key,
            registered,
        ),
        st.integers(0, 10**6),
        st.sampled_from(["north", "North", "south", "east", "west"]),
        st.dictionaries(
            st.sampled_from(["scans", "Leaves", "leaves", "x"]),
            st.tuples(LISTS, st.sampled_from(["", "h"]), st.sampled_from(["", "d", "e"])),
            min_size=1,
            max_size=3,
        ).filter(lambda tasks: not {"Leaves", "leaves"} <= tasks.keys()),
        st.sampled_from(["", "k1", "k2"]),
        st.sampled_from(["", "", "north"]),
        st.integers(-1, 2),
    ),
    max_size=7,
    unique_by=lambda claim: claim.node_id,
)


@examples(200)
@given(CLAIMS, st.randoms(use_true_random=False), st.booleans(), st.integers(0, 3), st.booleans())
def test_any_order_gives_one_verdict_and_those_who_are_left_agree(claims, random, keys_stay, most, declares):
    rules = Rules({"scans": LIGHT} if declares else {}, {"north": "k1"}, keys_stay, most, most)
    verdict = judge(claims, rules)
    shuffled = list(claims)
    random.shuffle(shuffled)
    assert judge(shuffled, rules) == verdict
    assert set(verdict.accepted) | set(verdict.refused) == {claim.node_id for claim in claims}
    assert not set(verdict.accepted) & set(verdict.refused)
    left = list(verdict.accepted.values())
    assert len({claim.told.client.casefold() for claim in left}) == len(left)
    held = {}
    for claim in left:
        for task, info in claim.told.tasks.items():
            held.setdefault(task.casefold(), []).append((task, info.classes, info.head))
    assert all(len(set(found)) == 1 for found in held.values())
    if declares:
        assert all(classes == LIGHT for _, classes, _ in held.get("scans", []))


# --- nobody takes an innocent along ---


def test_who_contradicts_the_suite_takes_nobody_s_name_and_nobody_s_share():
    suite = {"scans": LIGHT}
    kept, refused, _ = judged(claim("a", node=1), claim("a", VERY, node=2), claim("b", node=3), declared=suite)
    assert kept == ["a", "b"]
    assert list(refused) == ["a 2"]
    shares = {"partition": 0, "data": "d"}
    kept, refused, _ = judged(
        claim("a", node=1, **shares), claim("evil", VERY, node=2, **shares), claim("b", node=3), declared=suite
    )
    assert kept == ["a", "b"]
    assert list(refused) == ["evil 2"]


def test_nor_does_who_has_too_many_tasks():
    many = claim("a", task=tuple(f"t{i}" for i in range(9)), node=2)
    kept, refused, _ = judged(claim("a", node=1), many, most_own_tasks=8)
    assert kept == ["a"]
    assert "max-tasks-per-client" in refused["a 2"]


@pytest.mark.parametrize(
    ("known", "rules"),
    [({"key": "k", "registered": "a"}, {}), ({"key": "k"}, {"bound": {"a": "k", "b": "", "evil": ""}})],
)
def test_a_share_belongs_to_the_node_that_is_known(known, rules):
    shares = {"partition": 0, "data": "d"}
    kept, refused, _ = judged(
        claim("a", node=1, **shares, **known), claim("evil", node=2, key="z", **shares), claim("b", node=3), **rules
    )
    assert kept == ["a", "b"]
    assert refused["evil 2"].startswith("client 'a' (node 1) has the same partition-id, 0")


def test_those_who_invent_the_same_tasks_do_not_stand_behind_one_task_of_another():
    pair = [claim(f"evil{i}", task=tuple(f"z{n}" for n in range(8)), node=10 + i) for i in range(2)]
    kept, refused, _ = judged(
        claim("a", task=("scans", "own"), node=1), claim("b", node=2), claim("c", node=3), *pair, most_tasks=9
    )
    assert kept == ["a", "b", "c"]
    assert refused["evil0 10"].startswith(
        "the run would have 10 tasks, more than max-tasks-total = 9, and no client brings more than this one, which "
        "has 8 that the server's suite does not have"
    )
