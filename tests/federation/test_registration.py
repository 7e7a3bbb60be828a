"""How nodes are asked who they are: as they come, again if they cannot take part, and for how long."""

import time
from types import SimpleNamespace

import pytest
from flwr.app import Context, Message, RecordDict

from matu_flwr import wire
from matu_flwr.config.settings import Settings
from matu_flwr.federation import registration
from matu_flwr.federation.registration import Client, FederationError, register, rejoined
from matu_flwr.wire import Announcement, TaskInfo
from tests.support.local_grid import LocalGrid

FINGERPRINT = "0123456789abcdef" * 4
LIGHT, VERY = ("dark", "light"), ("dark", "very light")


def site(name, classes=LIGHT, *, partition=-1, tasks=("scans",)):
    return Announcement(name, partition, FINGERPRINT, {task: TaskInfo(classes, 20, 5) for task in tasks})


class Site(LocalGrid):
    """Nodes 1, 2, ... that announce what `told` has for them; an error is raised, None never answers.

    `later(grid)` is called at every look at who is connected, with the number of that look in `grid.looks`.
    """

    def __init__(self, *told, later=None, **options):
        self.told = dict(enumerate(told, 1))
        self.looks, self.later, self.asked = 0, later, []
        super().__init__(
            self._answer,
            [{}] * len(told),
            node_ids=list(self.told),
            tamper=self._silent,
            **{"simulated": False} | options,
        )

    def come(self, node, told):
        self.told[node] = told
        self.contexts[node] = Context(1, node, {}, RecordDict(), {})

    def go(self, node):
        del self.contexts[node]

    def get_nodes(self):
        self.looks += 1
        if self.later:
            self.later(self)
        return super().get_nodes()

    def _answer(self, message, context):
        self.asked.append(context.node_id)
        told = self.told[context.node_id]
        if isinstance(told, Exception):
            raise told
        return Message(wire.encode_announcement(told) if told else RecordDict(), reply_to=message)

    def _silent(self, reply, _):
        return reply if reply.has_error() or reply.content else None


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in {"LOOK": 0, "ASK_AGAIN": 0.02, "SETTLED": 0, "LEAST_WAIT": 0.05}.items():
        monkeypatch.setattr(registration, name, seconds)


@pytest.fixture(autouse=True)
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(registration, "log", lambda level, text, *values: lines.append(text % values))
    return lines


def names(grid, at_least=0, *, declared=None, bound=None, **values):
    settings = Settings.from_flat({"node-timeout": 0.3, **{k.replace("_", "-"): v for k, v in values.items()}})
    clients = register(grid, settings, FINGERPRINT, "run", at_least, declared=declared, bound=bound)
    return [client.name for client in clients]


# --- how many are enough ---


def test_all_who_are_there_are_asked_once_and_nobody_waits(said):
    grid, began = Site(site("a"), site("b"), site("c")), time.monotonic()
    assert names(grid, node_timeout=60) == ["a", "b", "c"]
    assert grid.asked == [1, 2, 3]
    assert time.monotonic() - began < 5
    assert said == []


def test_two_nodes_of_which_one_is_bad_are_not_two_clients(said):
    grid = Site(site("a"), RuntimeError("no such folder\x1b[2J: /data/scans"))
    with pytest.raises(FederationError) as stopped:
        names(grid)
    assert str(stopped.value) == (
        "1 of 2 connected nodes can take part after 0 s, wanted 2 (min-nodes = 2):\n"
        "  node 2: RuntimeError: no such folder\\x1b[2J: /data/scans (code 2)\n"
        "put right what stands there, start more nodes, raise node-timeout (now 0.3 s), or lower min-nodes"
    )
    assert grid.asked.count(1) == 1, "who can take part is not asked again"
    assert said[0] == "node 2 takes no part: RuntimeError: no such folder\\x1b[2J: /data/scans (code 2)"
    assert len(said) == 2, "the same reason is told once"
    assert said[1].startswith("1 of 2 clients can take part; waiting up to ")


def test_the_bad_one_does_not_stop_two_good_ones():
    assert names(Site(RuntimeError("broken"), site("a"), site("b"))) == ["a", "b"]


def test_a_node_is_asked_again_and_may_have_been_mended():
    def mend(grid):
        if len(grid.asked) == 3:
            grid.told[1] = site("a")

    grid = Site(RuntimeError("no folder"), site("b"), later=mend)
    assert names(grid, node_timeout=30) == ["a", "b"]
    assert grid.asked[:4] == [1, 2, 1, 1]


def test_nodes_that_come_late_are_asked():
    def later(grid):
        if grid.looks in (3, 6):
            grid.come(10 + grid.looks, site(f"late-{grid.looks}"))

    assert names(Site(site("a"), later=later), min_nodes=3, node_timeout=30) == ["a", "late-3", "late-6"]


def test_nobody_is_there_yet():
    def later(grid):
        if grid.looks == 4:
            for node in (1, 2):
                grid.come(node, site(f"n{node}"))

    assert names(Site(later=later), node_timeout=30) == ["n1", "n2"]
    with pytest.raises(FederationError, match=r"^0 of 0 connected nodes can take part after 0 s, wanted 2 \(min-nodes"):
        names(Site(), node_timeout=0.05)


def test_a_node_that_never_answers_is_named_and_the_others_go_on():
    assert names(Site(None, site("a"), site("b")), node_timeout=0.1) == ["a", "b"]
    with pytest.raises(FederationError, match=r"node 1: no reply within 0.1 s"):
        names(Site(None, site("a")), node_timeout=0.1)


def test_one_that_hangs_does_not_hide_one_that_comes_late():
    grid = Site(None, site("a"), later=lambda grid: grid.looks == 4 and grid.come(3, site("c")))
    assert names(grid, node_timeout=0.3) == ["a", "c"]


def test_nobody_else_comes_in_a_simulation():
    grid, began = Site(site("a"), RuntimeError("broken"), simulated=True), time.monotonic()
    with pytest.raises(FederationError, match="wanted 2"):
        names(grid, node_timeout=600)
    assert time.monotonic() - began < 5
    assert grid.asked == [1, 2]


def test_as_many_as_the_checkpoint_has_are_wanted():
    with pytest.raises(FederationError, match=r"wanted 3 \(the 3 clients of the checkpoint\).*\n.*now 0\.05 s\)$"):
        names(Site(site("a"), site("b")), 3, node_timeout=0.05)


# --- who is right ---


def test_a_bad_first_site_turns_nobody_away():
    assert names(Site(site("bad", VERY, partition=0), site("b", partition=1), site("c", partition=2))) == ["b", "c"]


def test_a_tie_stops_the_run_at_once_where_all_are_there_who_are_wanted():
    with pytest.raises(
        FederationError, match=r"(?s)do not agree.*\['dark', 'light'\]: 'a'.*\['dark', 'very light'\]: 'b'"
    ):
        names(Site(site("a"), site("b", VERY)), node_timeout=600)


def test_a_tie_is_decided_by_a_site_that_is_still_expected():
    later = lambda grid: grid.looks == 5 and grid.come(3, site("c"))  # noqa: E731  # a statement has no value
    with pytest.raises(FederationError, match="2 of 3 connected nodes can take part"):
        names(Site(site("b", VERY), site("a"), later=later), min_nodes=3)
    later = lambda grid: grid.looks == 5 and [grid.come(3, site("c")), grid.come(4, site("d"))]  # noqa: E731
    assert names(Site(site("b", VERY), site("a"), later=later), min_nodes=3, node_timeout=30) == ["a", "c", "d"]


def test_the_suite_decides_a_tie():
    assert names(Site(site("a"), site("b", VERY)), min_nodes=1, declared={"scans": VERY}) == ["b"]


def test_a_node_that_has_gone_keeps_nobody_from_its_name():
    """Started anew without a key of its own, it has a new id, and the old one stays connected for a while."""
    grid = Site(site("a"), site("b"), site("a"), later=lambda grid: grid.looks == 12 and grid.go(1))
    clients = register(grid, Settings.from_flat({"node-timeout": 30.0}), FINGERPRINT, "run")
    assert [(client.name, client.node_id) for client in clients] == [("a", 3), ("b", 2)]


def test_invented_tasks_do_not_get_in(said):
    bad = site("bad", tasks=tuple(f"t{i:03}" for i in range(100)))
    assert names(Site(bad, site("a"), site("b"))) == ["a", "b"]
    assert "client 'bad' (node 1) takes no part: it has 100 tasks that the server's suite does not have" in said[0]


# --- keys ---


def known(node, key, name=None):
    return {node: {"public_key": key} | ({"name": name} if name else {})}


def test_a_registered_name_belongs_to_its_key(said):
    grid = Site(site("a"), site("a"), site("b"), known=known(1, b"x") | known(2, b"y", "a") | known(3, b"z", "b"))
    clients = register(grid, Settings.from_flat({"node-timeout": 0.3}), FINGERPRINT, "run")
    assert [(client.name, client.node_id) for client in clients] == [("a", 2), ("b", 3)]
    assert len({client.key for client in clients} - {""}) == 2
    assert "client 'a' (node 1) takes no part: client 'a' (node 2) has the same name, and it belongs to" in said[0]


def test_a_key_that_was_registered_under_another_name(said):
    grid = Site(site("a"), site("b"), site("c"), known=known(1, b"x", "north\x1b[2J"))
    assert names(grid) == ["b", "c"]
    assert r"its key was registered under the name 'north\x1b[2J', and it calls itself 'a'" in said[0]


def test_a_name_stays_bound_over_a_resume():
    first = Site(site("a"), site("b"), known=known(1, b"x") | known(2, b"y"))
    settings = Settings.from_flat({"node-timeout": 0.1})
    bound = {client.name: client.key for client in register(first, settings, FINGERPRINT, "run")}
    other = Site(site("a"), site("b"), known=known(1, b"stranger") | known(2, b"y"))
    with pytest.raises(FederationError, match="the name 'a' belongs to the node with the key"):
        names(other, 2, bound=bound, bind_names=True, node_timeout=0.05)
    assert names(other, 2, bound=bound) == ["a", "b"], "without keys that stay, every start has new ones"
    with pytest.raises(FederationError, match="the name 'a' belongs to the node with the key"):
        register(other, settings, FINGERPRINT, "run", 2, bound=bound, keys_stay=True)
    both = Site(site("a"), site("b"), site("a"), known=known(1, b"stranger") | known(2, b"y") | known(3, b"x"))
    found = register(both, settings, FINGERPRINT, "run", 2, bound=bound)
    assert [(client.name, client.node_id) for client in found] == [("a", 3), ("b", 2)]


def test_who_is_new_neither_stops_a_resume_nor_stands_for_one_that_is_missing():
    bound = {"a": "", "b": ""}
    late = Site(site("x"), site("a"), later=lambda grid: grid.looks == 4 and grid.come(3, site("b")))
    assert names(late, 2, bound=bound, node_timeout=5) == ["a", "b"]
    with pytest.raises(FederationError, match=r"1 of 2 (.*\n)+ +client 'x' \(node 1\): it was not in the run when"):
        names(Site(site("x"), site("a")), 2, bound=bound, node_timeout=0.05)


# --- nodes that come back ---


def back(grid, settings=None, key="", asked=None, registered=False):
    """Where the client `a` is after its node 1 has gone; `b` is still there, as node 2."""
    clients = [Client(name, -1, node, site(name).tasks, key, registered) for name, node in (("a", 1), ("b", 2))]
    settings = Settings.from_flat({"node-timeout": 0.1, **(settings or {})})
    found = rejoined(grid, clients, settings, FINGERPRINT, "run", set() if asked is None else asked)
    return found[0].node_id


def without_1(*told, **options):
    grid = Site(None, site("b"), *told, **options)
    grid.go(1)
    return grid


def test_a_client_comes_back():
    asked = set()
    assert back(without_1(site("x"), site("a")), asked=asked) == 4
    assert asked == {3, 4}


def test_two_that_claim_to_be_back_are_both_refused(said):
    asked = set()
    grid = without_1(site("a"), site("a"))
    assert back(grid, asked=asked) == 1
    assert [line.split(":")[0] for line in said] == ["node 3 (a) takes no part", "node 4 (a) takes no part"]
    grid.go(4)
    assert back(grid, asked=asked) == 3, "its namesake has gone, so that it is asked again"


def test_the_key_decides_who_is_back():
    nodes = known(3, b"stranger") | known(4, b"own")
    own = registration.connected(Site(None, known=known(1, b"own")))[1].key
    assert back(without_1(site("a"), site("a"), known=nodes), key=own) == 4
    assert back(without_1(site("a"), known=known(3, b"stranger")), key=own) == 3
    assert back(without_1(site("a"), known=known(3, b"stranger")), {"bind-names": True}, own) == 1
    # one name that an operator gave says that nodes have keys that stay
    assert back(without_1(site("a"), known=known(3, b"stranger") | known(2, b"y", "b")), key=own) == 1
    assert back(without_1(site("a"), known=known(3, b"stranger")), key=own, registered=True) == 1
    assert back(without_1(site("a"), known=known(3, b"new", "a")), {"bind-names": True}, own) == 3
    assert back(without_1(site("a"), known=known(3, b"own", "other")), key=own) == 1


def test_who_comes_back_holds_what_it_held(said):
    assert back(without_1(site("a", VERY))) == 1
    assert back(without_1(site("a", partition=3))) == 1
    assert said == ["node 3 (a) takes no part: it is new, or has other tasks than before"] * 2
    assert back(without_1(RuntimeError("x\ny\x07"))) == 1
    assert said[-1] == "node 3 takes no part: y\\x07 (code 2)"


# --- texts of others ---


def test_reasons_are_clean_lines_and_not_too_many():
    error = SimpleNamespace(reason="Traceback\n\x1b]0;title\x07\u202eevil " + "x" * 9000, code=2)
    text = registration.reason_of(SimpleNamespace(error=error))
    assert text.isprintable()
    assert len(text) < 600
    with pytest.raises(FederationError) as stopped:
        names(Site(*[RuntimeError(f"broken {i}") for i in range(60)], simulated=True))
    assert len(str(stopped.value).splitlines()) == 43
    assert "\n  and 20 more\n" in str(stopped.value)


# --- nodes that come and go ---


def test_nodes_that_come_and_go_do_not_hold_up_the_start_and_nothing_is_kept_of_them(monkeypatch):
    halls = []
    made = registration._Registration
    monkeypatch.setattr(registration, "_Registration", lambda *told: halls.append(made(*told)) or halls[0])

    def churn(grid):
        if grid.looks > 1:
            grid.go(grid.looks + 99)
        grid.come(grid.looks + 100, site(f"x{grid.looks}"))
        assert grid.looks < 5000, "this goes on for ever"

    began = time.monotonic()
    monkeypatch.setattr(registration, "LOOK", 0.002)
    assert names(Site(site("a"), site("b"), later=churn), node_timeout=0.2)[:2] == ["a", "b"]
    assert time.monotonic() - began < 5
    (hall,) = halls
    for kept in (hall._claims, hall._failed, hall._asked, hall._told):
        assert len(kept) <= 3


def test_a_node_that_answers_no_more_keeps_nobody_from_its_name():
    """Node 1 was killed after its first answer and is started anew as node 3, while the SuperLink still lists both."""

    def later(grid):
        if grid.looks == 3:
            grid.told[1] = None
            grid.come(3, site("a"))
        if grid.asked.count(1) > 1 and 2 not in grid.contexts:
            grid.come(2, site("b"))

    assert names(Site(site("a"), later=later), node_timeout=0.5) == ["a", "b"]
