"""One or two clients of five lie, in any number and any text that they send. The others are not harmed or blamed."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.federation.registration import FederationError
from matu_flwr.names import folded
from tests.support.laws import examples
from tests.support.scripted import Scripted

HANDS = [{"cats": 30, "dogs": 20}, {"cats": 40, "hens": 25}, {"dogs": 20, "hens": 30}, {"cats": 35}, {"dogs": 30}]
METHODS = ("matu", "fedavg", "pertask-fedavg", "fedrep", "matfl", "emr", "ties", "task-arithmetic")
# Honest updates have norms up to 6 here, and honest heads change by 1.5. Over three rounds, a client that stays
# within the screen's bound may move a task by some tens of that. What lies beyond is no matter of degree.
FAR = 600.0

Change = Callable[[Message], Message]

factors = st.one_of(
    st.floats(1, 1e38), st.floats(-1e38, -1), st.sampled_from([-1.0, 0.0, 8.0, 1e3, -1e3, 1e6, 1e20, 3.4e38])
)
numbers = st.one_of(st.floats(), st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, 1, 10**9, 1.7e308, -0.0]))
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(["\x1b[2J\x1b[31m", "a\nb", "\u202ex", "[red]", "<script>", "..", "fit"]),
)


@st.composite
def lies(draw: st.DrawFn) -> Change:
    """One change of what a reply says. The function changes the reply, or gives another in its place."""
    kind = draw(st.sampled_from(["scale", "spike", "number", "number", "seconds", "error"]))
    record = draw(st.sampled_from(["unified", "vectors", "heads"]))
    factor, at, number, text = draw(factors), draw(st.integers(0, 99)), draw(numbers), draw(texts)

    def change(reply: Message) -> Message:
        content = reply.content
        if kind == "error":
            return Message(Error(2, text), reply_to=reply)
        if kind == "seconds":
            content["metrics"][f"seconds.{text}"] = float(number)
        elif kind in ("scale", "spike"):
            if record in content:
                content[record] = ArrayRecord(
                    {name: Array(lengthened(a.numpy(), kind, factor, at)) for name, a in content[record].items()}
                )
        else:
            where = sorted((name, key) for name in ("scalars", "metrics") for key in content[name])
            name, key = where[at % len(where)]
            content[name] = type(content[name])({**content[name], key: like(content[name][key], number, text)})
        return reply

    return change


def lengthened(values: np.ndarray, kind: str, factor: float, at: int) -> np.ndarray:
    """All values times the factor, or one of them replaced by it. Bits and other integers stay as they are."""
    if values.dtype.kind != "f":
        return values
    changed = values.astype(np.float64)
    if kind == "scale":
        changed *= factor
    else:
        changed.flat[at % changed.size] = factor
    return changed.clip(-3.4e38, 3.4e38).astype(values.dtype)


def like(old: Any, number: float, text: str) -> Any:
    """A lie of the same type as the truth."""
    if isinstance(old, list):
        return [like(item, number, text) for item in old]
    if type(old) is float:
        return float(number)
    if type(old) is int:
        return int(number) if np.isfinite(number) and abs(number) < 2**63 else 2**63 - 1
    return text if isinstance(old, str) else old


def script(round_: int, client: str, task: str) -> list[float]:
    """Updates that differ a little between clients, tasks and rounds."""
    shift = 0.1 * round_ + 0.2 * int(client[-1]) + 0.5 * len(set(task) & set("cdh"))
    return [1.0 + shift, -2.0, 3.0 - shift, 4.0 if task != "hens" else -2.0]


def started(method: str) -> Scripted:
    return Scripted(
        method, HANDS, vector=script, bias=lambda round_, client, task: [0.5, -1.0], rounds=3, max_failed_fraction=0.5
    )


def texts_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["error"] for event in events if event["event"] == "client" and event["error"]]


@st.composite
def announced(draw: st.DrawFn) -> Change:
    """One change of what an announcement says."""
    key = draw(st.sampled_from(["client", "partition", "tasks", "train", "test", "classes", "absent"]))
    at, number, text = draw(st.integers(0, 99)), draw(numbers), draw(texts)
    names = st.sampled_from(["a", "b", "c", "cats", "Cats", "client-000", "", "\x1b[2J", " a", "=1+1", "\u202e"])
    listed = draw(
        st.one_of(
            st.lists(names, max_size=4).map(json.dumps),
            st.lists(st.integers(-1, 3), max_size=3).map(json.dumps),
            st.sampled_from(
                ["[" * 5000, "{}", "null", "[1e999]", '["\\ud800"]', "[[]]", "[true]", "[" + "9" * 5000 + "]"]
            ),
            texts,
        )
    )
    invented = sorted(draw(st.sets(names | st.integers(0, 60).map("t{:02d}".format), min_size=1, max_size=40)))

    def change(reply: Message) -> Message:
        scalars = dict(reply.content["scalars"])
        if key == "tasks":
            kept = [scalars["tasks"].index(task) if task in scalars["tasks"] else 0 for task in invented]
            for column in ("train", "test", "classes", "absent", "heads", "data"):
                scalars[column] = [scalars[column][row] for row in kept]
            scalars["tasks"] = invented
        elif key in ("classes", "absent"):
            old = scalars[key]
            scalars[key] = [listed if row == at % len(old) else item for row, item in enumerate(old)]
        else:
            scalars[key] = like(scalars[key], number, text if at % 2 else "client-000")
        reply.content["scalars"] = ConfigRecord(scalars)
        return reply

    return change


LIARS = st.sampled_from([(1,), (1, 4)])  # below half of the clients


@examples(60)
@given(st.sampled_from(METHODS), st.lists(announced(), min_size=1, max_size=2), LIARS)
def test_lies_of_an_announcement_harm_nobody(method, changes, liars):
    run = started(method)
    names = {f"client-{i:03d}" for i in range(len(HANDS))}
    told: dict[int, str] = {}

    def tamper(reply: Message, node: dict) -> Message:
        who = node["partition-id"]
        if who in liars and not run.asked and not reply.has_error():
            for change in changes:
                reply = change(reply)
            told[who] = reply.content["scalars"]["client"]
        return reply

    run.grid.tamper = tamper
    run.strategy.register(run.grid, declared=dict.fromkeys(("cats", "dogs", "hens"), ("a", "b")))
    accepted = {client.name: client for client in run.strategy.clients}
    stolen = {folded(name) for who, name in told.items()}
    honest = {name for i, name in enumerate(sorted(names)) if i not in liars}
    # Nobody can tell two nodes of one name, or of one share, from one another. All other honest ones take part.
    assert {name for name in honest if folded(name) not in stolen} <= accepted.keys()
    assert len(run.strategy.classes) <= 3 + 2 * run.settings.max_tasks_per_client
    for client in accepted.values():
        for text in (client.name, *client.tasks, *(name for info in client.tasks.values() for name in info.classes)):
            assert text.isprintable()
            assert text.strip()
    assert all(run.strategy.classes.get(task, ("a", "b")) == ("a", "b") for task in ("cats", "dogs", "hens"))


@examples(60)
@given(
    st.sampled_from(METHODS),
    st.lists(lies(), min_size=1, max_size=2),
    st.sampled_from([(1,), (2,), (1, 2, 3)]),
    LIARS,
)
def test_liars_harm_nobody(method, changes, rounds, liars):
    run = started(method)

    def tamper(reply: Message, node: dict) -> Message:
        current = run.asked[-1][2].round if run.asked else 0
        if node["partition-id"] not in liars or reply.has_error() or current not in rounds:
            return reply
        for change in changes:
            if not reply.has_error():
                reply = change(reply)
        return reply

    run.grid.tamper = tamper
    stopped = ""
    try:
        run.run()
    except FederationError as error:
        stopped = str(error)
    strategy = run.strategy
    assert not stopped, stopped  # fewer than may fail
    for event in run.of("client"):
        if event["client"] not in {f"client-{liar:03d}" for liar in liars}:
            assert event["status"] == "ok", event
    json.dumps(run.events, allow_nan=False)
    assert all(text.isprintable() and len(text) < 2000 for text in texts_of(run.events))
    for event in run.of("accuracy"):
        assert all(0 <= value <= 1 for value in event["accuracy"].values())
        assert all(0 <= value <= 1e6 for value in event["loss"].values())
    for vector in strategy.task_vectors.values():
        assert torch.isfinite(vector).all()
        assert float(vector.norm()) < FAR
    for head in strategy.heads.values():
        for part in (head.weight, head.bias):
            assert torch.isfinite(part).all()
            assert float(part.norm()) < FAR


def test_the_federation_is_healthy_without_a_liar():
    for method in METHODS:
        run = started(method).run()
        assert {event["status"] for event in run.of("client")} == {"ok"}
        assert all(float(vector.norm()) < 30 for vector in run.strategy.task_vectors.values())
