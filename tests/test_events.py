"""Events are what their types say, to the last key: those of a run of today, and those of an earlier release."""

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from matu_flwr.events import KINDS, EndEvent, Event, PlanEvent
from matu_flwr.run.history import read_history
from matu_flwr.run.recorder import Recorder
from matu_flwr.run.summary import end_of, plan_of
from matu_flwr.strategies.matu import merge_options
from tests.run import histories as made
from tests.support.federation import Federation

TYPES = {get_args(get_type_hints(kind)["event"])[0]: kind for kind in get_args(Event)}
OLD = Path(__file__).parent / "run" / "old-run" / "history.jsonl"


def wrong(value, hint, where=""):
    """What does not fit, by its place; empty if all does."""
    kind, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return []
    if is_typeddict(hint):
        if not isinstance(value, dict):
            return [f"{where}: {value!r}"]
        missing, strange = hint.__required_keys__ - value.keys(), value.keys() - get_type_hints(hint).keys()
        found = [f"{where}: {sorted(missing)} missing, {sorted(strange)} unknown"] if missing or strange else []
        hints = get_type_hints(hint)
        return found + [w for key in value.keys() & hints for w in wrong(value[key], hints[key], f"{where}.{key}")]
    if kind is Literal:
        return [] if value in inner else [f"{where}: {value!r}"]
    if kind in (Union, types.UnionType):
        return [] if any(not wrong(value, one) for one in inner) else [f"{where}: {value!r} is none of {hint}"]
    if kind in (list, dict, Mapping) and not isinstance(value, kind):
        return [f"{where}: {value!r}"]
    if kind is list:
        return [w for item in value for w in wrong(item, inner[0], f"{where}[]")]
    if kind in (dict, Mapping):
        return [w for key, item in value.items() for w in wrong(item, inner[1], f"{where}.{key}")]
    fits = (isinstance(value, hint) and type(value) is not bool) or (hint is bool and type(value) is bool)
    return [] if fits or (hint is float and type(value) is int) else [f"{where}: {value!r} is no {hint.__name__}"]


def all_wrong(events):
    return [w for event in events for w in wrong(event, TYPES[event["event"]], event["event"])]


def test_the_checker_finds_what_is_wrong():
    good = made.end()
    assert wrong(good, EndEvent) == []
    assert wrong({key: value for key, value in good.items() if key != "time"}, EndEvent) == [
        ": ['time'] missing, [] unknown"
    ]
    assert wrong(good | {"more": 1}, EndEvent) == [": [] missing, ['more'] unknown"]
    assert wrong(good | {"seconds": "3"}, EndEvent) == [".seconds: '3' is no float"]
    assert wrong(good | {"similarity": {"order": []}}, EndEvent) != []
    assert wrong(made.plan() | {"rounds": True}, PlanEvent) == [".rounds: True is no int"]


def test_every_kind_has_its_type():
    assert tuple(TYPES) == KINDS


def test_an_earlier_release_s_events():
    events = read_history(OLD)
    assert {event["event"] for event in events} == {"plan", "client", "accuracy", "round", "end"}
    assert all_wrong(events) == []
    assert plan_of(events) is events[0]
    assert end_of(events) is events[-1]


def test_made_up_events():
    """Those that most tests of reports and screens are drawn from."""
    assert all_wrong(made.history(rounds=2)) == []


@pytest.mark.parametrize("values", [{}, {"robust__clip_norm": 1e-6, "strategy": "fedavg"}], ids=["matu", "clipped"])
def test_events_of_a_run(tmp_path, values):
    events = Federation(tmp_path, rounds=2, **values).run().events
    assert {event["event"] for event in events} == {"client", "accuracy", "round"}
    assert all_wrong(events) == []
    assert any("clipped" in event for event in events) == bool(values)
    with Recorder(tmp_path / "out", merge_options(Federation(tmp_path).settings.matu)) as recorder:
        for event in [made.plan(), *events]:
            recorder.observe(event)
    assert all_wrong(read_history(tmp_path / "out" / "history.jsonl")) == []
