"""Who of those that announced themselves can take part together. Nothing here depends on who came first.

A name belongs to the node whose key was registered under it. A task is one label set, of the same files, with the same
frozen head. What the server's suite declares is right. Where it declares nothing, the largest group of holders is
right. If two groups are equally large, nobody can tell who is right, and the run must not start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from matu_flwr import wire
from matu_flwr.names import folded
from matu_flwr.texts import listed, some

# How many names of a list, and how many clients, an error shows.
SHOWN = 8


@dataclass(frozen=True)
class Claim:
    """What a node says that it is, and what the SuperLink knows of it.

    Attributes
    ----------
    node_id : int
        Flower's id of the node.
    told : Announcement
        What it announced.
    key : str
        Digest of its public key; "" if the grid knows none. Without SuperNode authentication, a node has a new key
        each time it is started.
    registered : str
        The name under which an operator registered this key; "" if there is none. Only nodes that authenticate
        themselves can have one.
    """

    node_id: int
    told: wire.Announcement
    key: str = ""
    registered: str = ""

    @property
    def who(self) -> str:
        """Client and node, for logs and errors."""
        return f"client {self.told.client!r} (node {self.node_id})"


@dataclass(frozen=True)
class Rules:
    """What the server knows before anybody announces anything.

    Attributes
    ----------
    declared : mapping of str to tuple of str
        The tasks of the server's suite with their classes; () for a task whose classes only the files tell.
    bound : mapping of str to str
        By client name, the digest of the key that had the name before: in the checkpoint of a resumed run. Nobody else
        takes part in such a run. Empty for a new run.
    keys_stay : bool
        Whether a node has the same key each time it is started. Then nobody else gets its name.
    most_tasks, most_own_tasks : int
        Largest number of tasks of the run, and of tasks outside the suite that one client may have. 0 = no limit.
    """

    declared: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bound: Mapping[str, str] = field(default_factory=dict)
    keys_stay: bool = False
    most_tasks: int = 0
    most_own_tasks: int = 0


@dataclass
class Verdict:
    """Who takes part, by node id; why others do not; and what the holders of a task cannot agree on."""

    accepted: dict[int, Claim]
    refused: dict[int, str] = field(default_factory=dict)
    ties: list[str] = field(default_factory=list)

    def refuse(self, reasons: Mapping[int, str]) -> None:
        """Take these nodes out, each for its reason."""
        for node, reason in reasons.items():
            del self.accepted[node]
            self.refused[node] = reason


def judge(claims: Iterable[Claim], rules: Rules) -> Verdict:
    """Decide who takes part. The same claims in another order give the same verdict."""
    verdict = Verdict({claim.node_id: claim for claim in sorted(claims, key=lambda c: (c.told.client, c.node_id))})
    # First what the server knows by itself. Whoever is wrong there must not take anybody else along.
    for check in (_newcomers, _wrong_names, _own_tasks, _against_suite, _shared_names, _shared_partitions):
        verdict.refuse(check(list(verdict.accepted.values()), rules))
    for topic in (SPELLING, CLASSES, DATA, HEADS):
        _agree(verdict, topic)
    while beyond := _beyond_total(list(verdict.accepted.values()), rules):
        verdict.refuse(beyond)
    return verdict


# --- names ---------------------------------------------------------------------------------------------------------


def name_is_wrong(claim: Claim, bound: str, keys_stay: bool) -> str:
    """Why this node cannot have the name that it gives; "" if it can.

    `bound` is the digest of the key that had the name before, "" if nobody had it.
    """
    name = claim.told.client
    if claim.registered:
        # The operator's word is newer than any key: a site with a new key is registered again under its name.
        if claim.registered == name:
            return ""
        return (
            f"its key was registered under the name {claim.registered!r:.100}, and it calls itself {name!r}: set "
            "site in its node config to the registered name, or register its key under the other one"
        )
    if keys_stay and bound and claim.key != bound:
        return (
            f"the name {name!r} belongs to the node with the key {bound}, and this one has the key "
            f"{claim.key or 'none'}: give it a name of its own, or start it with the key that it had"
        )
    return ""


def _newcomers(claims: Sequence[Claim], rules: Rules) -> dict[int, str]:
    """Who was not in the run before, if it is resumed: among those that are wanted, it would stand for another."""
    return {
        claim.node_id: "it was not in the run when the checkpoint was written, and a resumed run takes nobody new: "
        "give it the name that it had then (site in its node config), or let it wait for another run"
        for claim in claims
        if rules.bound and claim.told.client not in rules.bound
    }


def _wrong_names(claims: Sequence[Claim], rules: Rules) -> dict[int, str]:
    reasons = {c.node_id: name_is_wrong(c, rules.bound.get(c.told.client, ""), rules.keys_stay) for c in claims}
    return {node: reason for node, reason in reasons.items() if reason}


def _shared_names(claims: Sequence[Claim], rules: Rules) -> dict[int, str]:
    """Of several nodes with one name, the one whom it belongs to has it. If that is none or several, nobody has it."""
    return without_namesakes(claims, rules.bound)


def without_namesakes(claims: Sequence[Claim], bound: Mapping[str, str]) -> dict[int, str]:
    """Whom to refuse, and why, among claims of which some have the same name for a file system or a reader."""
    reasons = {}
    for group in _groups(claims, lambda claim: folded(claim.told.client)).values():
        if len(group) == 1:
            continue
        owners = _owners(group, bound)
        for claim in group:
            if owners != [claim]:
                others = _nodes(other for other in group if other is not claim)
                reasons[claim.node_id] = f"{others} has the same name" + (
                    ", and it belongs to that one" if len(owners) == 1 else ": nobody can tell whose it is"
                )
                reasons[claim.node_id] += "; give every node a name of its own (site in its node config)"
    return reasons


def _shared_partitions(claims: Sequence[Claim], rules: Rules) -> dict[int, str]:
    """Two nodes with the same share of the suite would count it twice. Images of a node's own are in no share.

    As with names: the one of them that is known has it. If none or several are, nobody has it.
    """
    shares = [c for c in claims if c.told.partition >= 0 and any(info.data for info in c.told.tasks.values())]
    reasons = {}
    for group in _groups(shares, lambda claim: claim.told.partition).values():
        owners = _owners(group, rules.bound)
        for claim in group:
            if len(group) > 1 and owners != [claim]:
                reasons[claim.node_id] = (
                    f"{_nodes(other for other in group if other is not claim)} has the same partition-id, "
                    f"{claim.told.partition}, and so the same images: give every node another one"
                )
    return reasons


def _owners(group: Sequence[Claim], bound: Mapping[str, str]) -> list[Claim]:
    """Those of several claims to one thing that are known: by the operator, or by the key that they had before."""
    owners = [claim for claim in group if claim.registered] or list(group)
    if len(owners) > 1:
        owners = [claim for claim in owners if claim.key and claim.key == bound.get(claim.told.client)]
    return owners


# --- how many tasks ------------------------------------------------------------------------------------------------


def _own(claim: Claim, rules: Rules) -> set[str]:
    """The client's tasks that the suite does not have."""
    return set(claim.told.tasks) - set(rules.declared)


def _own_tasks(claims: Sequence[Claim], rules: Rules) -> dict[int, str]:
    most = rules.most_own_tasks
    return {
        claim.node_id: f"it has {len(own)} tasks that the server's suite does not have, more than "
        f"max-tasks-per-client = {most}: name fewer (tasks in its node config), or raise max-tasks-per-client"
        for claim in claims
        if most and len(own := _own(claim, rules)) > most
    }


def _beyond_total(claims: Sequence[Claim], rules: Rules) -> dict[int, str]:
    """Whom to refuse next so that the run gets few enough tasks: whoever brings the most, which nobody else needs.

    A task that several bring counts for each by its share. So two who invent the same tasks do not stand behind one
    that has a single task of its own.
    """
    held = [_own(claim, rules) for claim in claims]
    total = len({task for claim in claims for task in claim.told.tasks})
    if not rules.most_tasks or total <= rules.most_tasks or not any(held):
        return {}
    holders = Counter(task for own in held for task in own)
    shares = [sum(Fraction(1, holders[task]) for task in own) for own in held]
    return {
        claim.node_id: f"the run would have {total} tasks, more than max-tasks-total = {rules.most_tasks}, and no "
        f"client brings more than this one, which has {len(own)} that the server's suite does not have: name fewer "
        "(tasks in its node config), or raise max-tasks-total"
        for claim, own, share in zip(claims, held, shares, strict=True)
        if share == max(shares)
    }


# --- what a task is ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Topic:
    """Something that all holders of a task must say alike.

    Attributes
    ----------
    of : callable
        What a claim says about the task of this name; None if it says nothing.
    what : str
        What it is, for errors.
    shown : callable
        A value in words.
    advice : str
        What to do.
    right : callable
        What is right by the server's suite; None where the suite does not tell, as about most topics.
    """

    of: Callable[[Claim, str], Hashable | None]
    what: str
    shown: Callable[[Hashable], str]
    advice: str
    right: Callable[[str, Rules], Hashable | None] = lambda task, rules: None


def _listed(classes: Hashable) -> str:
    names = list(classes) if isinstance(classes, tuple) else []
    return str(names) if len(names) <= SHOWN else f"{str(names[:SHOWN])[:-1]}, … {len(names)} in all]"


def _suite_spelling(task: str, rules: Rules) -> str | None:
    return next((name for name in rules.declared if folded(name) == folded(task)), None)


SPELLING = Topic(
    of=lambda claim, task: task,
    right=_suite_spelling,
    what="the task's name",
    shown=repr,
    advice="a name that differs by its case alone is the same file on some machines; write it alike everywhere",
)
CLASSES = Topic(
    of=lambda claim, task: claim.told.tasks[task].classes,
    right=lambda task, rules: rules.declared.get(task) or None,
    what="the classes",
    shown=_listed,
    advice="a task is one label set in one order; rename the folders, and where a site has no images of some class, "
    "keep the empty folder or declare the whole list (classes, in the suite or in the node config)",
)
DATA = Topic(
    of=lambda claim, task: claim.told.tasks[task].data or None,
    what="the digest of the images' labels",
    shown=str,
    advice="shares must be of the same files; run `matu data check` on the nodes",
)
HEADS = Topic(
    of=lambda claim, task: claim.told.tasks[task].head,
    what="the digest of the zero-shot head",
    shown=lambda digest: str(digest) or "none",
    advice="text tower, heads file or prompt templates differ; give all nodes the same",
)


def _against_suite(claims: Sequence[Claim], rules: Rules) -> dict[int, str]:
    """Who says something else about a task than the server's suite."""
    reasons: dict[int, str] = {}
    for topic in (SPELLING, CLASSES):
        for task, votes in _votes(claims, topic).items():
            right = topic.right(task, rules)
            for value, voters in votes.items():
                if right is not None and value != right:
                    reasons = (
                        dict.fromkeys(
                            (claim.node_id for claim in voters), _wrong(task, topic, value, right, "the server's suite")
                        )
                        | reasons
                    )
    return reasons


def _wrong(task: str, topic: Topic, found: Hashable, right: Hashable, judges: str) -> str:
    return f"task {task!r}: {topic.what} {_differ(topic, found, right, judges)}: {topic.advice}"


def _agree(verdict: Verdict, topic: Topic) -> None:
    """Refuse all who say something else about a task than most, and all whom nothing decides between."""
    while True:
        wrong: dict[int, str] = {}
        tied: dict[int, str] = {}
        ties = []
        # Whoever is wrong about one task takes no part, and must not tip the scales of another one either. So votes
        # are counted again until all that are left are right.
        for task, votes in _votes(verdict.accepted.values(), topic).items():
            most = max(map(len, votes.values()))
            largest = [value for value, voters in votes.items() if len(voters) == most]
            if len(largest) > 1:
                ties.append(_tie(task, topic, votes))
                undecided = f"task {task!r}: nobody can tell who is right about {topic.what}"
                tied |= {claim.node_id: undecided for voters in votes.values() for claim in voters}
                continue
            right = largest[0]
            judges = f"most holders ({_names(votes[right])})"
            for value, voters in votes.items():
                if value != right:
                    wrong |= {c.node_id: _wrong(task, topic, value, right, judges) for c in voters}
        if not wrong:
            verdict.refuse(tied)
            verdict.ties += ties
            return
        verdict.refuse(wrong)


def _differ(topic: Topic, found: Hashable, right: Hashable, judges: str) -> str:
    text = f"{topic.shown(found)}, where {judges} say {topic.shown(right)}"
    if isinstance(found, tuple) and isinstance(right, tuple):
        more, fewer = (tuple(n for n in a if n not in set(b)) for a, b in ((found, right), (right, found)))
        parts = [f"only here: {_listed(more)}"] if more else []
        parts += [f"missing here: {_listed(fewer)}"] if fewer else []
        text += f" ({'; '.join(parts) or 'in another order'})"
    return text


def _votes(claims: Iterable[Claim], topic: Topic) -> dict[str, dict[Hashable, list[Claim]]]:
    """Who says what, by task. Names of tasks that differ by case alone are of one task, unless that is settled."""
    votes: dict[str, dict[Hashable, list[Claim]]] = {}
    spelled: dict[str, str] = {}
    for claim in claims:
        for task in claim.told.tasks:
            value = topic.of(claim, task)
            if value is not None:
                name = spelled.setdefault(folded(task), task)
                votes.setdefault(name, {}).setdefault(value, []).append(claim)
    return dict(sorted(votes.items()))


def _tie(task: str, topic: Topic, votes: Mapping[Hashable, Sequence[Claim]]) -> str:
    lines = [f"{topic.shown(value)}: {_names(voters)}" for value, voters in list(votes.items())[:SHOWN]]
    return "\n    ".join(
        [
            f"task {task!r}: the holders do not agree on {topic.what}, and no side has more of them:",
            *lines,
            topic.advice,
        ]
    )


# --- helpers -------------------------------------------------------------------------------------------------------


def _groups(claims: Iterable[Claim], key: Callable[[Claim], Hashable]) -> dict[Hashable, list[Claim]]:
    groups: dict[Hashable, list[Claim]] = {}
    for claim in claims:
        groups.setdefault(key(claim), []).append(claim)
    return groups


def _names(claims: Iterable[Claim]) -> str:
    return listed((claim.told.client for claim in claims), SHOWN)


def _nodes(claims: Iterable[Claim]) -> str:
    return some([claim.who for claim in claims], SHOWN, " and ")
