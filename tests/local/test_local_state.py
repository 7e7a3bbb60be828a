import os
import re

import pytest
import torch
from safetensors.torch import save_file

from matu_flwr.local import ClientState, StateError


@pytest.fixture
def state(tmp_path):
    return ClientState(tmp_path, "run-1", "client-007")


def files(state):
    return sorted(path.name for path in state.path.parent.iterdir())


def test_empty_before_the_first_save(state):
    assert state.load(before=1) == {}
    assert not state.path.parent.exists()


def test_what_was_saved_comes_back(state):
    tensors = {"a/vector": torch.arange(5.0), "a/weight": torch.ones(2, 3).T, "b": torch.zeros(0)}
    state.save(tensors, 3)
    found = state.load(before=4)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert files(state) == ["client-007.safetensors"]


def test_a_save_replaces_everything(state):
    state.save({"old": torch.ones(1)}, 1)
    state.save({"new": torch.ones(2)}, 2)
    assert list(state.load(before=3)) == ["new"]


def test_clients_and_runs_have_files_of_their_own(tmp_path):
    for experiment, client in (("run-1", "a"), ("run-1", "b"), ("run-2", "a")):
        ClientState(tmp_path, experiment, client).save({experiment + client: torch.ones(1)}, 1)
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
    assert files(state) == ["client-007.safetensors"]
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
    (state.path.parent / ".client-007-abc").write_bytes(state.path.read_bytes()[:20])
    assert state.load(before=2)["value"].tolist() == [1.0]


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_torn_file(state, keep):
    state.save({"value": torch.ones(100)}, 1)
    state.path.write_bytes(state.path.read_bytes()[:keep])
    with pytest.raises(
        StateError,
        match=rf"^client 'client-007': its state file {re.escape(str(state.path))} cannot be read \(.*\); remove",
    ):
        state.load(before=2)


@pytest.mark.parametrize(
    "metadata", [None, {"other": "x"}, {"stamp": "no json"}, {"stamp": "{}"}, {"stamp": "[]"}, {"stamp": "1"}], ids=str
)
def test_a_file_without_a_stamp(state, metadata):
    state.path.parent.mkdir(parents=True)
    save_file({"value": torch.ones(1)}, state.path, metadata)
    with pytest.raises(StateError, match="client-007"):
        state.load(before=2)


def test_a_file_of_another_client(tmp_path, state):
    other = ClientState(tmp_path, "run-1", "client-001")
    other.save({"value": torch.ones(1)}, 1)
    other.path.rename(state.path)
    with pytest.raises(
        StateError, match=r"is of client 'client-001' in experiment 'run-1', expected 'client-007' in 'run-1'$"
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


@pytest.mark.parametrize("experiment", ["../../elsewhere", "{tmp}/elsewhere", "..", "a/b", ""])
def test_an_experiment_name_stays_inside_the_folder(tmp_path, experiment):
    """The name comes from the server, and nothing that comes from there may choose where a node writes."""
    root = tmp_path / "deep" / "state"
    with pytest.raises(StateError, match="name"):
        ClientState(root, experiment.format(tmp=tmp_path), "client-007").save({"value": torch.ones(1)}, 1)
    assert not list(tmp_path.rglob("*.safetensors"))
