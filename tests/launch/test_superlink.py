"""A SuperLink that waits longer for its processes."""

from types import ModuleType

from flwr.supercore.corestate import in_memory_corestate

from matu_flwr.launch import superlink


def test_flower_keeps_its_times_where_they_are_set(monkeypatch):
    for name in ("HEARTBEAT_DEFAULT_INTERVAL", "HEARTBEAT_PATIENCE"):
        monkeypatch.setattr(in_memory_corestate, name, getattr(in_memory_corestate, name))
    assert superlink.wait_longer(in_memory_corestate)
    # As Flower computes them: a first word within the interval, a sign of life within PATIENCE intervals.
    interval, patience = in_memory_corestate.HEARTBEAT_DEFAULT_INTERVAL, in_memory_corestate.HEARTBEAT_PATIENCE
    assert interval == superlink.FIRST_WORD
    assert interval * patience == superlink.SIGN_OF_LIFE


def test_a_token_is_good_for_longer_than_flower_would_have_it(monkeypatch):
    from datetime import timedelta

    from flwr.supercore.corestate.in_memory_corestate import InMemoryCoreState

    for name in ("HEARTBEAT_DEFAULT_INTERVAL", "HEARTBEAT_PATIENCE"):
        monkeypatch.setattr(in_memory_corestate, name, getattr(in_memory_corestate, name))
    source = (
        InMemoryCoreState.claim_task,
        InMemoryCoreState.activate_task,
        InMemoryCoreState.acknowledge_task_heartbeat,
    )
    # All three read the names from this module when they are called.
    assert all("HEARTBEAT_DEFAULT_INTERVAL" in function.__code__.co_names for function in source)
    assert all(function.__globals__ is vars(in_memory_corestate) for function in source)
    assert timedelta(seconds=superlink.FIRST_WORD) > timedelta(minutes=5)


def test_another_flower_keeps_its_own_times():
    other = ModuleType("other")
    assert not superlink.wait_longer(other)
    assert not hasattr(other, "HEARTBEAT_DEFAULT_INTERVAL")
