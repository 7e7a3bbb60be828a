import os
import re
import stat
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from matu_flwr.client import ClientState, StateError
from tests.support.laws import examples


@pytest.fixture
def state(tmp_path):
    return ClientState(tmp_path, "run-1", "client-007")


def files(state):
    return sorted(path.name for path in state.folder.iterdir())


def test_empty_before_the_first_save(state):
    assert state.load(before=1) == {}
    assert not state.folder.exists()


def test_what_was_saved_comes_back(state):
    tensors = {"a/vector": torch.arange(5.0), "a/weight": torch.ones(2, 3).T, "b": torch.zeros(0)}
    state.save(tensors, 3)
    found = state.load(before=4)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert files(state) == ["round-000003.safetensors"]


def test_a_save_replaces_everything(state):
    state.save({"old": torch.ones(1)}, 1)
    state.save({"new": torch.ones(2)}, 2)
    assert list(state.load(before=3)) == ["new"]


def test_clients_and_runs_have_files_of_their_own(tmp_path):
    for run_name, client in (("run-1", "a"), ("run-1", "b"), ("run-2", "a")):
        ClientState(tmp_path, run_name, client).save({run_name + client: torch.ones(1)}, 1)
    assert list(ClientState(tmp_path, "run-1", "b").load(before=2)) == ["run-1b"]
    assert list(ClientState(tmp_path, "run-2", "a").load(before=2)) == ["run-2a"]


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_a_crash_while_writing_leaves_the_old_file(state, monkeypatch, broken, kind):
    state.save({"value": torch.tensor([1.0])}, 1)

    def crash(*_, **__):
        raise kind("disk full")

    with monkeypatch.context() as patch:
        if broken == "write":
            patch.setattr(os, "fdopen", lambda handle, mode: Torn(os.dup(handle), mode))
        else:
            patch.setattr(os, broken, crash)
        with pytest.raises((OSError, KeyboardInterrupt)):
            state.save({"value": torch.tensor([2.0])}, 2)
    assert files(state) == ["round-000001.safetensors"]
    assert state.load(before=2)["value"].tolist() == [1.0]


class Torn:
    """A file whose write stops half-way."""

    def __init__(self, handle, mode):
        self.file = open(handle, mode)  # noqa: PTH123, SIM115  # of a descriptor; closed below

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise OSError("no space left on device")


def test_a_kill_while_writing_leaves_the_old_file(state):
    """A killed process cannot tidy up: its half-written file stays, and is not taken for the state."""
    state.save({"value": torch.tensor([1.0])}, 1)
    (state.folder / ".abc").write_bytes(state.path(1).read_bytes()[:20])
    assert state.load(before=2)["value"].tolist() == [1.0]


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_torn_file(state, keep):
    state.save({"value": torch.ones(100)}, 1)
    state.path(1).write_bytes(state.path(1).read_bytes()[:keep])
    with pytest.raises(
        StateError,
        match=rf"^client 'client-007': its state file {re.escape(str(state.path(1)))} cannot be read \(.*\); remove",
    ):
        state.load(before=2)


@pytest.mark.parametrize(
    "metadata", [None, {"other": "x"}, {"stamp": "no json"}, {"stamp": "{}"}, {"stamp": "[]"}, {"stamp": "1"}], ids=str
)
def test_a_file_without_a_stamp(state, metadata):
    state.folder.mkdir(parents=True)
    save_file({"value": torch.ones(1)}, state.path(1), metadata)
    with pytest.raises(StateError, match="client-007"):
        state.load(before=2)


def test_a_file_of_another_client(tmp_path, state):
    other = ClientState(tmp_path, "run-1", "client-001")
    other.save({"value": torch.ones(1)}, 1)
    state.folder.mkdir()
    other.path(1).rename(state.path(1))
    with pytest.raises(
        StateError, match=r"is of client 'client-001' of run 'run-1', expected 'client-007' of run 'run-1'$"
    ):
        state.load(before=2)


def test_a_file_from_the_future(state):
    state.save({"value": torch.ones(1)}, 5)
    assert state.load(before=6)
    for before in (5, 4):
        with pytest.raises(
            StateError, match=rf"saved in round 5, expected a round before {before}: another run uses .* 'run-1'$"
        ):
            state.load(before=before)


@pytest.mark.parametrize("run_name", ["../../elsewhere", "{tmp}/elsewhere", "..", "a/b", ""])
def test_the_name_of_a_run_stays_inside_the_folder(tmp_path, run_name):
    """The name comes from the server, and nothing that comes from there may choose where a node writes."""
    root = tmp_path / "deep" / "state"
    with pytest.raises(StateError, match="name"):
        ClientState(root, run_name.format(tmp=tmp_path), "client-007").save({"value": torch.ones(1)}, 1)
    assert not list(tmp_path.rglob("*.safetensors"))


# --- a run that goes on from a checkpoint ---


def value(state, before, **options):
    return state.load(before=before, **options).get("value", torch.tensor([0.0])).item()


def resumed(state, attempt=1, history=2):
    return ClientState(state.folder.parents[1], "run-1", "client-007", attempt=attempt, history=history)


@pytest.fixture
def kept(tmp_path):
    """A state that keeps what two rounds back need, after rounds 1 to 5; the value is the round's number."""
    state = ClientState(tmp_path, "run-1", "client-007", history=2)
    for round_ in range(1, 6):
        state.save({"value": torch.tensor([float(round_)])}, round_)
    return state


def test_a_round_is_trained_again_from_what_was_before_it(kept):
    # the server's checkpoints are of rounds 4 and 3: it trains round 5 or 4 again
    assert kept.rounds() == [3, 4, 5]
    assert [value(resumed(kept), before) for before in (6, 5, 4)] == [5, 4, 3]


def test_what_a_resumed_run_saves_replaces_what_came_after(kept):
    again = resumed(kept)
    again.save({"value": torch.tensor([40.0])}, 4)
    assert again.rounds() == [3, 4]
    assert [value(again, 5), again.load(before=6)["value"].item()] == [40, 40]
    assert value(resumed(kept, attempt=2), 4) == 3


def test_a_client_that_pauses_keeps_its_last_state(tmp_path):
    state = ClientState(tmp_path, "run-1", "client-007", history=2)
    for round_ in (1, 2, 9):
        state.save({"value": torch.tensor([float(round_)])}, round_)
    assert state.rounds() == [2, 9]
    assert [value(resumed(state), before) for before in (10, 9, 8)] == [9, 2, 2]


def test_before_its_first_round_a_client_has_nothing(tmp_path):
    state = ClientState(tmp_path, "run-1", "client-007", history=2)
    state.save({"value": torch.tensor([4.0])}, 4)
    assert resumed(state).load(before=4) == {}


def test_further_back_than_what_is_kept(kept):
    with pytest.raises(
        StateError,
        match=r"^client 'client-007': its state before round 3 is gone, .* has rounds \[3, 4, 5\] and round 1 was its "
        r"first: resume from a later checkpoint$",
    ):
        resumed(kept).load(before=3)


def test_a_run_that_was_resumed_elsewhere_is_stopped(kept):
    resumed(kept, attempt=2).save({"value": torch.ones(1)}, 5)
    for attempt in (0, 1):
        with pytest.raises(
            StateError, match=rf"was saved by attempt 2 of this run, and attempt {attempt} asks for it: the run was"
        ):
            resumed(kept, attempt).load(before=6)


def test_a_lost_state_is_not_begun_anew(kept, tmp_path):
    assert value(kept, 6, since=5) == 5
    empty = ClientState(tmp_path / "other", "run-1", "client-007")
    with pytest.raises(
        StateError, match=r"has no state before round 6, expected that of round 5, .* was changed or lost"
    ):
        empty.load(before=6, since=5)
    kept.path(5).unlink()
    with pytest.raises(StateError, match="has the state of round 4 before round 6, expected that of round 5"):
        kept.load(before=6, since=5)


@examples(60)
@given(
    trained=st.lists(st.booleans(), min_size=1, max_size=9),
    history=st.integers(0, 3),
    back=st.integers(0, 3),
)
def test_law_every_round_that_has_a_checkpoint_can_be_trained_again(trained, history, back):
    """The plain twin keeps everything."""
    everything, last = {}, len(trained)
    with tempfile.TemporaryDirectory() as folder:
        state = ClientState(Path(folder), "run-1", "client-007", history=history)
        for round_, there in enumerate(trained, start=1):
            if there:
                state.save({"value": torch.tensor([float(round_)])}, round_)
                everything[round_] = float(round_)
        checkpoint = max(last - min(back, history), 0)  # taken after this round; the server died in the next
        again = resumed(state, history=history)
        expected = max((r for r in everything if r <= checkpoint), default=0)
        assert value(again, checkpoint + 1) == expected
        assert len(state.rounds()) <= history + 1


@pytest.mark.parametrize("before", [3, 4, 5, 6])
def test_whatever_round_is_asked_for_the_newest_file_says_whose_turn_it_is(kept, before):
    resumed(kept, attempt=2).save({"value": torch.ones(1)}, 5)  # rounds 3 and 4 are of attempt 0
    with pytest.raises(StateError, match="was saved by attempt 2 of this run, and attempt 1 asks for it"):
        resumed(kept, attempt=1).load(before=before)


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_state_is_for_its_owner_only(tmp_path, umask):
    before = os.umask(umask)
    try:
        root = tmp_path / "state"
        ClientState(root, "run-1", "client-007").save({"a": torch.ones(2)}, 1)
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (root, *root.rglob("*"))}
    assert found == {"state": 0o700, "run-1": 0o700, "client-007": 0o700, "round-000001.safetensors": 0o600}
