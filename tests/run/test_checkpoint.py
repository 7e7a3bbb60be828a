"""Checkpoint files: whole or not there; what is torn, altered or of another run is found and named."""

import json
import os
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.backbones import LinearHead
from matu_flwr.config.sections import ScreenSettings
from matu_flwr.config.settings import Settings, SettingsError
from matu_flwr.federation.state import StrategyStateError, describe, restore
from matu_flwr.merging import unify
from matu_flwr.run import checkpoint
from matu_flwr.run import resume as checkpoint_resume
from matu_flwr.run.checkpoint import (
    Checkpoint,
    CheckpointError,
    find_checkpoint,
    read_checkpoint,
    read_tensors,
    write_checkpoint,
)
from matu_flwr.run.history import HistoryError, HistoryMark, HistoryWriter
from matu_flwr.run.resume import check_federation, federation, same_settings, settings_of
from matu_flwr.strategies import Client
from matu_flwr.wire import TaskInfo
from tests.support.laws import examples

CLIENTS = [
    Client("client-000", 0, 11, {"dots": TaskInfo(("1", "2"), 40, 10, "", "abc")}),
    Client("client-001", 1, 12, {"dots": TaskInfo(("1", "2"), 30, 10, "", "abc")}),
]


def state(round_=3, **changes):
    found = {
        "round": round_,
        "rounds": 9,
        "attempt": 0,
        "time": "2026-11-26T00:00:00+00:00",
        "run_name": "run-1",
        "fingerprint": "f" * 64,
        "settings": Settings().flat() | {"rounds": 9, "train.lr": 1e-4},
        "federation": federation(CLIENTS),
        "history": HistoryMark(10, "0" * 64),
        "seconds": 1.5,
        "described": {"task_vectors": {"dict": [["dots", {"tensor": "a"}]]}},
    }
    return Checkpoint(**found | changes)


def some(round_=3):
    return {"a": torch.arange(50.0) + round_}


def write(folder, *rounds, keep=2):
    return [write_checkpoint(folder, state(round_), some(round_), keep) for round_ in rounds]


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


# --- files ---


def test_what_was_written_comes_back(tmp_path):
    (path,) = write(tmp_path, 3)
    assert read_checkpoint(path) == state(3)
    assert torch.equal(read_tensors(path)["a"], some()["a"])
    for named in (tmp_path, tmp_path / "checkpoints", path, path.with_suffix(".safetensors")):
        out_dir, found, tensors = find_checkpoint(named)
        assert (out_dir, found, list(tensors)) == (tmp_path, state(3), ["a"])


def test_the_last_ones_are_kept(tmp_path):
    write(tmp_path, 0, 1, 2, 3)
    assert names(tmp_path) == [f"round-00000{r}.{kind}" for r in (2, 3) for kind in ("json", "safetensors")]
    write(tmp_path, 4, keep=1)
    assert names(tmp_path) == ["round-000004.json", "round-000004.safetensors"]


def test_what_an_abandoned_attempt_left_is_removed(tmp_path):
    write(tmp_path, 5, 6)
    (tmp_path / "checkpoints" / ".round-000009.safetensors.0123.tmp").write_bytes(b"torn")
    (tmp_path / "checkpoints" / "round-000007.safetensors").write_bytes(b"without its text")
    write(tmp_path, 5)
    assert names(tmp_path) == ["round-000005.json", "round-000005.safetensors"]


def test_tensors_that_share_memory(tmp_path):
    whole = torch.arange(10.0)
    path = write_checkpoint(tmp_path, state(), {"a": whole, "b": whole, "c": whole[2:4], "d": torch.zeros(0)}, 2)
    found = read_tensors(path)
    assert found["a"].tolist() == found["b"].tolist() == whole.tolist()
    assert (found["c"].tolist(), found["d"].tolist()) == ([2, 3], [])


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr("matu_flwr.run.checkpoint.log", lambda level, text, *values: lines.append(text % values))
    return lines


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["torn", "changed", "gone", "empty"])
def test_one_that_is_broken_is_passed_over_aloud(tmp_path, said, kind, damage):
    write(tmp_path, 2, 3)
    path = tmp_path / "checkpoints" / f"round-000003.{kind}"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        changed = content.replace(b"run-1", b"run-2") if kind == "json" else content[:-1] + b"\x01"
        path.write_bytes({"torn": content[: len(content) // 2], "changed": changed, "empty": b""}[damage])
    assert find_checkpoint(tmp_path)[1].round == 2
    if kind == "json" and damage == "gone":
        assert said == []  # without it there never was one
        return
    (line,) = said
    assert str(tmp_path / "checkpoints" / "round-000003") in line
    assert line.endswith("; trying the checkpoint before it")
    if damage == "changed":
        assert re.search(r"is incomplete or was changed: its SHA-256 is [0-9a-f]{64},", line)
    with pytest.raises(CheckpointError, match="round-000003"):  # named itself, it is refused
        find_checkpoint(path)


def test_none_can_be_used(tmp_path, said):
    for path in write(tmp_path, 2, 3):
        path.write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"^no checkpoint can be used:\n  .*3\.json cannot be read.*\n  .*2\.json"
    ):
        find_checkpoint(tmp_path)
    assert len(said) == 2


def test_there_is_none(tmp_path):
    with pytest.raises(CheckpointError, match="has no checkpoint: the run ended before its first round, or ran with"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="none does not exist: expected the output folder of a run; give an abs"):
        find_checkpoint(tmp_path / "none")


def test_one_of_another_release_is_refused(tmp_path, monkeypatch):
    (path,) = write(tmp_path, 3)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(
        CheckpointError, match="has format 1, expected 2: another release of matu-flwr wrote it; resume"
    ):
        read_checkpoint(path)


@pytest.mark.parametrize("place", ["save_file", "write_json", "replace", "fsync"])
def test_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch, place):
    write(tmp_path, 2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if place == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(*((type(tmp_path), "replace") if place == "replace" else (checkpoint, place)), full)
        with pytest.raises(
            CheckpointError,
            match=r"^the checkpoint of round 3 cannot be written to .*: \[Errno 28\] No space left on device; make",
        ):
            write(tmp_path, 3)
    assert find_checkpoint(tmp_path)[1].round == 2
    assert not list(tmp_path.rglob("*.tmp"))  # half a file would take the room that is short
    write(tmp_path, 3)
    assert find_checkpoint(tmp_path)[1].round == 3


# --- what a strategy keeps ---


class Owner:
    pass


TENSOR = st.builds(lambda n: torch.arange(float(n)), st.integers(0, 5))
LEAF = st.one_of(
    st.none(),
    st.integers(-9, 9),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    TENSOR,
    st.builds(lambda n, z: LinearHead(torch.ones(n, 3), torch.arange(float(n)), z), st.integers(1, 4), st.booleans()),
    st.builds(lambda n: unify({"a": torch.arange(1.0, n), "b": -torch.arange(1.0, n)}), st.integers(2, 20)),
)
VALUE = st.recursive(
    LEAF,
    lambda inner: st.dictionaries(st.one_of(st.text(max_size=4), st.tuples(st.text(max_size=3), st.text())), inner),
    max_leaves=6,
)


def alike(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, LinearHead):
        return alike(vars(one), vars(other))
    if type(one).__name__ == "UnifiedTaskVector":
        return one.rescalers == other.rescalers and all(
            torch.equal(one.reconstruct(t), other.reconstruct(t)) for t in one.tasks
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    return one == other


@examples(100)
@given(VALUE)
def test_law_any_state_comes_back_through_files(tmp_path_factory, value):
    one, other = Owner(), Owner()
    one.thing = value
    described, tensors = describe(one, ["thing"])
    folder = tmp_path_factory.mktemp("c")
    path = write_checkpoint(folder, state(described=described), tensors, 1)
    restore(other, read_checkpoint(path).described, read_tensors(path))
    assert alike(one.thing, other.thing)


def test_one_tensor_under_many_names_is_stored_once():
    one, other = Owner(), Owner()
    one.mean = torch.ones(3)
    one.task_vectors = {"a": one.mean, "b": one.mean}
    described, tensors = describe(one, ["task_vectors", "mean"])
    assert list(tensors) == ["task_vectors/a"]
    restore(other, described, tensors)
    assert other.mean is other.task_vectors["a"] is other.task_vectors["b"]


@pytest.mark.parametrize(
    "value", [torch.ones(1), {"a": torch.ones(1)}, [torch.ones(1)]], ids=["tensor", "dict", "list"]
)
def test_tensors_that_nobody_named_are_not_lost_in_silence(value):
    one = Owner()
    one.median = value
    with pytest.raises(
        StrategyStateError, match=r"^Owner\.median holds tensors and is not named in Owner\.kept: a run"
    ):
        describe(one, [])
    one._median = vars(one).pop("median")
    assert describe(one, []) == ({}, {})


def test_a_kind_that_cannot_be_kept_is_named():
    one = Owner()
    one.thing = {"a": {1, 2}}
    with pytest.raises(StrategyStateError, match=r"^thing/a of Owner is a set, expected tensors, heads"):
        describe(one, ["thing"])


# --- settings and clients of a resumed run ---


def test_settings_come_from_the_checkpoint(tmp_path):
    asked = {"resume-from": str(tmp_path), "window": 7, "rounds": 9}
    found = same_settings(asked, state(), tmp_path)
    assert (found.rounds, found.train.lr, found.window, found.out_dir) == (9, 1e-4, 7, str(tmp_path))


def test_a_run_that_a_bad_client_stopped_is_resumed_with_another_screen(tmp_path):
    asked = {"resume-from": str(tmp_path), "screen.factor": 3.0, "screen.jump": 0.0}
    assert same_settings(asked, state(), tmp_path).screen == ScreenSettings(factor=3, jump=0)


def test_other_settings_are_refused_by_name(tmp_path):
    asked = {"resume-from": "x", "rounds": 12, "train.lr": "0.0001", "matu.kappa": 0, "seed": 1}
    with pytest.raises(
        CheckpointError,
        match=r"^the checkpoint of round 3 in .* has other settings: rounds = 9, you gave 12, matu\.kappa = 3, "
        r"you gave 0, seed = 0, you gave 1; leave them out to resume with those of the checkpoint, or start a new run$",
    ):
        same_settings(asked, state(), tmp_path)


def test_a_typed_value_is_compared_also_where_it_is_a_default(tmp_path):
    with pytest.raises(CheckpointError, match=r"has other settings: rounds = 9, you gave 30; leave them out"):
        same_settings({"resume-from": "x", "rounds": 30}, state(), tmp_path)


def test_a_preset_that_is_typed_again_does_not_undo_what_was_typed_over_it(tmp_path):
    typed = {"matu.preset": "paper", "matu.payload": "update"}
    mark = history(tmp_path, {"event": "plan"})
    write_checkpoint(tmp_path, state(history=mark, settings=Settings.from_run_config(typed).flat()), some(), 2)
    found, _ = settings_of({"resume-from": str(tmp_path), "matu.preset": "paper"})
    assert (found.matu.preset, found.matu.payload, found.matu.magnitude) == ("paper", "update", "max")
    with pytest.raises(CheckpointError, match=r"matu\.payload = 'update', you gave 'vector'"):
        settings_of({"resume-from": str(tmp_path), "matu.payload": "vector"})


def test_a_checkpoint_of_an_earlier_release_may_name_a_preset_that_is_gone(tmp_path):
    begun = state(settings=Settings.from_flat({"matu.kappa": 0}).flat() | {"matu.preset": "no-cross-task"})
    found = same_settings({"resume-from": "x"}, begun, tmp_path)
    assert (found.matu.preset, found.matu.kappa) == ("", 0)


GONE = {"evaluate": "ride", "train.optimizer": "adamw", "backbone.last-blocks": 2, "partition.classes-per-holder": 3}
"""As release 0.1.0 wrote them into every checkpoint, whether they were used or not."""


def test_a_checkpoint_of_an_earlier_release_may_have_settings_that_are_gone(tmp_path):
    begun = state(settings=Settings.from_flat({"rounds": 9, "train.lr": 0.5}).flat() | GONE)
    asked = {"resume-from": "x", "partition.split": "dirichlet"}
    found = same_settings(asked, begun, tmp_path)
    assert found == same_settings(asked, state(settings={"rounds": 9, "train.lr": 0.5}), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("evaluate", "phase"),
        ("train.optimizer", "sgd"),
        ("backbone.trainable", "blocks"),
        ("partition.split", "pathological"),
        ("partition.split", "shard"),
    ],
)
def test_a_run_that_this_release_cannot_go_on_with_is_refused(tmp_path, key, value):
    mark = history(tmp_path, {"event": "plan"})
    begun = state(history=mark, settings=Settings().flat() | GONE | {key: value})
    write_checkpoint(tmp_path, begun, some(), 2)
    with pytest.raises(CheckpointError) as refusal:
        settings_of({"resume-from": str(tmp_path)})
    assert str(refusal.value) == (
        f"the checkpoint of round 3 in {tmp_path} cannot be resumed: {key} = {value!r} was removed after release "
        "0.1.0: use that release"
    )


def test_a_setting_that_is_gone_is_not_asked_for_again(tmp_path):
    begun = state(settings=Settings().flat() | GONE)
    with pytest.raises(SettingsError, match=r"^setting 'evaluate' was removed after release 0\.1\.0: "):
        same_settings({"resume-from": "x", "evaluate": "ride"}, begun, tmp_path)


def test_a_resumed_run_stays_in_its_folder(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"^out-dir = '/elsewhere', but a resumed run goes on in its own folder, "
    ):
        same_settings({"out-dir": "/elsewhere"}, state(), tmp_path)


def test_a_checkpoint_knows_whose_name_it_is_and_which_classes_are_missing():
    info = TaskInfo(("1", "2"), 40, 10, absent=(1,))
    found = federation([Client("north", -1, 7, {"dots": info}, "k" * 16, True)])["north"]
    assert (found["key"], found["registered"]) == ("k" * 16, True)
    assert found["tasks"]["dots"]["classes without images"] == [1]
    # Keys are checked when clients register. Here other ones are no other federation, as in every simulation.
    check_federation(state(), [Client(c.name, c.partition, 99, c.tasks, "new") for c in CLIENTS], "f" * 64)


def test_the_same_federation_under_other_node_ids():
    check_federation(state(), [Client(c.name, c.partition, 99, c.tasks) for c in CLIENTS], "f" * 64)


OTHERS = {
    "missing": (CLIENTS[:1], "client 'client-001' is missing: start its node"),
    "new": ([*CLIENTS, Client("c", 2, 13, CLIENTS[0].tasks)], "client 'c' was not in the run then: stop its node"),
    "partition": (
        [CLIENTS[0], Client("client-001", 4, 12, CLIENTS[1].tasks)],
        "client 'client-001' has partition 4, expected 1",
    ),
    "tasks": (
        [CLIENTS[0], Client("client-001", 1, 12, {"bars": CLIENTS[1].tasks["dots"]})],
        r"client 'client-001' has tasks \['bars'\], expected \['dots'\]",
    ),
    "images": (
        [CLIENTS[0], Client("client-001", 1, 12, {"dots": TaskInfo(("1", "2"), 31, 10, "", "abd")})],
        r"client 'client-001', task 'dots': training images 31, expected 30\n.*digest of the labels 'abd', expected",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_federation_is_refused(case):
    clients, text = OTHERS[case]
    with pytest.raises(CheckpointError, match=rf"^the clients are not those of the checkpoint of round 3:\n  {text}"):
        check_federation(state(), clients, "f" * 64)


def test_another_backbone_is_refused():
    with pytest.raises(CheckpointError, match=r"another layout \(fingerprint eeeeeeeeeeee…\) than at the check"):
        check_federation(state(), CLIENTS, "e" * 64)


# --- the run's folder ---


def history(folder, *events):
    with HistoryWriter(folder / "history.jsonl") as writer:
        for event in events:
            writer.write(event)
        return writer.mark()


def test_a_run_that_has_completed_is_not_resumed(tmp_path):
    mark = history(tmp_path, {"event": "plan"})
    write_checkpoint(tmp_path, state(history=mark), some(), 2)
    assert settings_of({"resume-from": str(tmp_path)})[1].checkpoint.round == 3
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write(json.dumps({"event": "end", "status": "completed"}) + "\n")
    with pytest.raises(CheckpointError, match="has completed: there is nothing to resume"):
        settings_of({"resume-from": str(tmp_path)})


def test_the_history_has_to_be_that_of_the_checkpoint(tmp_path):
    mark = history(tmp_path, {"event": "plan"}, {"event": "round", "round": 1})
    write_checkpoint(tmp_path, state(history=mark), some(), 2)
    whole = (tmp_path / "history.jsonl").read_bytes()
    for other, reason in (
        (whole[:-4], r"it has 45 bytes, expected at least 49; restore the file, or start a new run$"),
        (whole.replace(b"1", b"2"), r"one or more of its first 49 bytes were changed, though every line is still an"),
        (whole.replace(b'"round": 1', b'"round":: '), r"history\.jsonl, line 2: expected a JSON object, found b'{"),
        (b"\xff" + whole[1:], r"history\.jsonl, line 1: expected a JSON object, found b'\\xff"),
    ):
        (tmp_path / "history.jsonl").write_bytes(other)
        with pytest.raises(HistoryError, match=r"is not the history that belongs to the checkpoint: .*" + reason):
            settings_of({"resume-from": str(tmp_path)})
    (tmp_path / "history.jsonl").unlink()
    with pytest.raises(HistoryError, match=r"cannot read .*, the history that a resumed run continues: "):
        settings_of({"resume-from": str(tmp_path)})


def test_without_resume_from_nothing_is_resumed():
    settings_, found = settings_of({"rounds": 3})
    assert (settings_.rounds, found) == (3, None)


def test_free_keys_are_settings():
    assert set(checkpoint_resume.FREE) <= Settings().flat().keys()
    assert not set(checkpoint_resume.FREE) & {"keep-checkpoints", "rounds", "seed", "suite", "strategy"}
