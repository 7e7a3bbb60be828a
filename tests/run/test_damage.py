"""Whatever became of a checkpoint or of the end of a history, a run resumes from what is whole, or says what is not."""

import copy
import json
import os
import random
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from matu_flwr import digests
from matu_flwr.backbones import LinearHead
from matu_flwr.config.settings import Settings
from matu_flwr.federation.state import describe, restore, values_of
from matu_flwr.merging import PAPER, SeparateTaskVectors, unify
from matu_flwr.run.checkpoint import CheckpointError, checkpoints, find_checkpoint, write_checkpoint
from matu_flwr.run.history import HISTORY
from matu_flwr.run.resume import Keeper, Resumed, check_federation, settings_of
from matu_flwr.texts import Brief
from tests.run.test_checkpoint import CLIENTS, Owner, history, names, state


def kept(round_):
    """A state with everything that a strategy may keep."""
    owner = Owner()
    owner.task_vectors = {"dots": torch.arange(12.0) + round_, "bars": torch.zeros(12)}
    owner.heads = {"dots": LinearHead(torch.ones(2, 3), torch.zeros(2))}
    owner.merged = unify({"dots": torch.arange(12.0) - 5, "bars": -torch.arange(12.0)})
    owner.sent = SeparateTaskVectors({"dots": torch.ones(12)})
    owner.trained = {"client-000": round_}
    owner.nodes = {("client-000", "dots"): torch.ones(12)}
    return describe(owner, ["task_vectors", "heads", "merged", "sent", "trained", "nodes"])


@pytest.fixture
def run(tmp_path):
    """A run's folder with the checkpoints of rounds 2 and 3."""
    mark = history(tmp_path, {"event": "plan"}, {"event": "round", "round": 1})
    for round_ in (2, 3):
        described, tensors = kept(round_)
        write_checkpoint(tmp_path, state(round_, described=described, history=mark, settings={"rounds": 9}), tensors, 2)
    return tmp_path


def newest(run, kind="json"):
    return run / "checkpoints" / f"round-000003.{kind}"


def signed(content):
    """The JSON of a checkpoint with the right checksum of its own."""
    content = {key: value for key, value in content.items() if key != "sha256"}
    return json.dumps({**content, "sha256": digests.of_json(content)}).encode()


def with_tensors(run, tensors):
    """Exchange the tensors of the newest checkpoint, and sign them."""
    save_file(tensors, newest(run, "safetensors"))
    content = json.loads(newest(run).read_bytes())
    newest(run).write_bytes(signed(content | {"tensors": digests.of_file(newest(run, "safetensors"))}))


def found_in(run):
    """The round that a run resumes from, and the lines about what was skipped."""
    lines = []
    _, checkpoint, tensors = find_checkpoint(run, lines.append)
    restore(Owner(), checkpoint.described, tensors)
    return checkpoint.round, lines


def without(key):
    return lambda content: signed({k: v for k, v in content.items() if k != key})


JSONS = {
    "a list": (lambda _: b"[]", "expected a mapping, found a list"),
    "null": (lambda _: b"null", "expected a mapping, found a NoneType"),
    "empty": (lambda _: b"", "JSONDecodeError"),
    "deep": (lambda _: b'{"a":' * 100_000, "RecursionError"),
    "deep lists": (lambda _: b"[" * 10_000_000, "RecursionError"),
    "digits": (lambda _: b'{"a": ' + b"1" * 5000 + b"}", "ValueError"),
    "UTF-16": (lambda content: signed(content).decode().encode("utf-16-le")[1:], "UnicodeDecodeError"),
    "NUL": (lambda content: signed(content) + b"\0", "JSONDecodeError"),
    "unsigned": (lambda content: json.dumps({k: v for k, v in content.items() if k != "sha256"}).encode(), "no sha256"),
    "signature of another type": (lambda content: json.dumps(content | {"sha256": 3}).encode(), "no sha256"),
    "another signature": (
        lambda content: json.dumps(content | {"sha256": "0" * 64}).encode(),
        "incomplete or was changed",
    ),
    "a key twice": (lambda content: signed(content)[:-1] + b', "round": 3}', "a key stands twice among"),
    "another round": (lambda content: signed(content | {"round": 2}), "is of round 2, expected the round in its name"),
    "a negative round": (lambda content: signed(content | {"round": -3}), "round = -3: Input should be greater than"),
    "another format": (lambda content: signed(content | {"format": 2}), "has format 2, expected 1: another release"),
    "no format": (without("format"), "has format None, expected 1"),
    "no tensors": (without("tensors"), r"its SHA-256 is [0-9a-f]{64}, not None"),
    "no mark": (lambda content: signed(content | {"history": {}}), "history.bytes"),
    "seconds that are none": (lambda content: signed(content | {"seconds": float("nan")}), "seconds = nan"),
    **{f"no {key}": (without(key), "is not what a run writes: " + key) for key in ("round", "settings", "described")},
}


@pytest.mark.parametrize("case", JSONS)
def test_a_json_file_that_cannot_be_used_is_skipped_with_one_line(run, case):
    change, reason = JSONS[case]
    newest(run).write_bytes(change(json.loads(newest(run).read_bytes())))
    round_, (line,) = found_in(run)
    assert round_ == 2
    assert "round-000003" in line
    assert line.endswith("; trying the checkpoint before it")
    assert "\n" not in line
    assert len(line) <= 2100
    with pytest.raises(CheckpointError, match=reason):
        find_checkpoint(newest(run))


TENSORS = {
    "NaN": (lambda t: t["task_vectors/dots"].fill_(float("nan")), "tensor 'task_vectors/dots' .* NaN or infinity"),
    "infinity": (lambda t: t["heads/dots/bias"].fill_(float("inf")), "tensor 'heads/dots/bias' .* NaN or infinity"),
    "one is missing": (lambda t: t.pop("task_vectors/dots"), "'task_vectors/dots' is missing, expected 'torch.float32"),
    "one too many": (
        lambda t: t.update(more=torch.ones(1)),
        "'more' is .*, expected 'none of this name'",
    ),
    "other dtype": (
        lambda t: t.update({"task_vectors/dots": torch.ones(12).half()}),
        r"torch.float16 \[12\], expected 'torch\.fl",
    ),
    "other shape": (
        lambda t: t.update({"task_vectors/dots": torch.ones(3, 4)}),
        r"float32 \[3, 4\], expected '",
    ),
}


@pytest.mark.parametrize("layout", [True, False], ids=["listed", "of an earlier release"])
@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_cannot_be_used_are_skipped(run, case, layout):
    change, reason = TENSORS[case]
    _, _, tensors = find_checkpoint(newest(run))
    change(tensors)
    if not layout:
        newest(run).write_bytes(without("layout")(json.loads(newest(run).read_bytes())))
    with_tensors(run, tensors)
    if not layout and case.startswith("other"):
        return  # seen when the strategy has the state: see below
    round_, (line,) = found_in(run)
    assert (round_, "\n" in line) == (2, False)
    if layout:
        with pytest.raises(CheckpointError, match=reason):
            find_checkpoint(newest(run))


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize("what", ["folder", "pipe", "device", "link to nothing", "link to itself"])
def test_what_is_no_file_is_skipped_and_later_removed(run, kind, what):
    path = newest(run, kind)
    path.unlink()
    if what == "folder":
        path.mkdir()
        (path / "something").touch()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path if what == "link to itself" else run / "nowhere")
    round_, (line,) = found_in(run)
    assert (round_, "round-000003" in line) == (2, True)
    described, tensors = kept(2)
    write_checkpoint(run, state(2, described=described), tensors, 2)  # as a resumed run does first
    assert names(run) == ["round-000002.json", "round-000002.safetensors"]
    write_checkpoint(run, state(3, described=described), tensors, 2)


def test_what_may_not_be_read_is_skipped(run, monkeypatch):
    real = type(run).read_bytes

    def refused(path):  # as root, permissions hold nobody back
        if path == newest(run):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(type(run), "read_bytes", refused)
    round_, (line,) = found_in(run)
    assert (round_, "PermissionError: [Errno 13] Permission denied" in line) == (2, True)


def test_a_folder_that_may_not_be_entered_is_said(run, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(type(run), "iterdir", refused)
        with pytest.raises(CheckpointError, match="the folder of checkpoints, cannot be read: Permission denied"):
            find_checkpoint(run)
    with pytest.raises(CheckpointError, match="cannot be looked at: File name too long"):
        find_checkpoint(run / ("x" * 300))


def test_a_header_that_claims_to_be_huge_is_skipped(run):
    path = newest(run, "safetensors")
    path.write_bytes((2**63).to_bytes(8, "little") + path.read_bytes()[8:])
    content = json.loads(newest(run).read_bytes())
    newest(run).write_bytes(signed(content | {"tensors": digests.of_file(path)}))
    round_, (line,) = found_in(run)
    assert (round_, "cannot be read (SafetensorError" in line) == (2, True)


def test_checkpoints_are_in_the_order_of_their_rounds(run):
    for name in ("round-1000000.json", "round-3.json", "round-٣٣٣٣٣٣.json", "round-000009.json.txt"):
        (run / "checkpoints" / name).touch()
    assert [path.name for path in checkpoints(run)] == ["round-1000000.json", newest(run).name, "round-000002.json"]


def test_a_run_s_folder_may_be_called_like_a_file(run):
    assert find_checkpoint(run.rename(run.with_name("v1.json")))[1].round == 3


# --- any damage ---


def survives(run):
    """Resume as far as possible. Only this package's own errors may come of it."""
    try:
        _, found = settings_of({"resume-from": str(run)}, lambda line: None)
        check_federation(found.checkpoint, CLIENTS, "f" * 64)
        restore(Owner(), found.checkpoint.described, found.tensors)
    except Brief:
        return None
    return found.checkpoint.round


def places(value, path=()):
    """The paths of all values inside a JSON value."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from places(inner, (*path, key))


OTHERS = (None, True, -1, 1.5, 10**30, "x", "", [], {}, [[]], [["a", 1]], {"dict": 3}, {"tensor": []}, {"head": {}})


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.long), 17])
def test_values_of_other_types_at_every_level(run, every):
    content = json.loads(newest(run).read_bytes())
    assert survives(run) == 3
    outcomes = []
    paths = list(places({k: v for k, v in content.items() if k not in ("sha256", "tensors")}))[1:]
    for count, path in enumerate(paths):
        for other in OTHERS[count % every :: every]:
            changed = copy.deepcopy(content)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = other
            newest(run).write_bytes(signed(changed))
            outcomes.append(survives(run))
    assert len(outcomes) > 1500 / every
    assert outcomes.count(2) > len(outcomes) / 2  # most are seen when the file is read


def alike(kind, one, other):
    try:
        return one == other or (kind == "json" and json.loads(one) == json.loads(other))
    except ValueError:
        return False


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_bytes_flipped_cut_and_swapped(run, kind):
    whole, chance = newest(run, kind).read_bytes(), random.Random(0)
    for _ in range(150):
        data = bytearray(whole)
        start, stop = sorted(chance.randrange(len(whole)) for _ in range(2))
        act = chance.choice(("flip", "cut", "swap", "repeat", "drop"))
        if act == "flip":
            data[start] ^= 1 << chance.randrange(8)
        elif act == "cut":
            data = data[:start]
        elif act == "swap":
            data[start], data[stop] = data[stop], data[start]
        elif act == "repeat":
            data[start:start] = data[start:stop]
        else:
            del data[start:stop]
        newest(run, kind).write_bytes(data)
        # Spaces between the parts of JSON may change.
        assert survives(run) == (3 if alike(kind, bytes(data), whole) else 2)
        if kind == "safetensors":  # and if whoever changed it had signed it
            content = json.loads(newest(run).read_bytes())
            original = newest(run).read_bytes()
            newest(run).write_bytes(signed(content | {"tensors": digests.of_bytes(bytes(data))}))
            assert survives(run) in (2, 3)
            newest(run).write_bytes(original)


# --- the history ---

GARBAGE = {
    "half a line": b'{"event": "rou',
    "half a line and more": b'{"event": "rou\n{"event": "round", "round": 4}\n',
    "binary": bytes(range(256)) * 4 + b"\n",
    "invalid UTF-8": b'{"event": "round", "x": "\xff\xfe"}\n{"event": "round"}\n',
    "NUL": b"\0" * 4096 + b"\n" + b"\0\n",
    "10 MB": b'{"event": "' + b"x" * 10**7 + b'"}\n\n',
    "no event": b'17\n"x"\nnull\n[]\n{}\n{"event": 3}\n{"event": "note"}\n{"event": ["end"]}\n',
    "deep": b"[" * 10**6 + b"\n",
    "an end without a status": b'{"event": "end"}\n',
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_after_the_mark_does_not_stop_a_resume(run, case):
    with (run / HISTORY).open("ab") as file:
        file.write(GARBAGE[case])
    assert survives(run) == 3


def test_garbage_after_the_end_of_a_run_that_completed(run):
    with (run / HISTORY).open("ab") as file:
        file.write(b'{"event": "end", "status": "completed"}\n\0\0\n{"event": "ro')
    with pytest.raises(CheckpointError, match="has completed: there is nothing to resume"):
        settings_of({"resume-from": str(run)})


def test_a_history_that_is_no_file(run):
    (run / HISTORY).unlink()
    os.mkfifo(run / HISTORY)
    assert survives(run) is None


def test_a_mark_beyond_all_memory_is_no_reason_to_read_so_much(run):
    content = json.loads(newest(run).read_bytes())
    newest(run).write_bytes(signed(content | {"history": {"bytes": 2**62, "sha256": "0"}}))
    assert survives(run) is None


# --- the strategy ---


class Named:
    """As much of a strategy as is looked at before it goes on."""

    d, kept, clients, model = 12, ("task_vectors",), CLIENTS, SimpleNamespace(fingerprint="f" * 64)

    def resume(self, completed, described, tensors):
        restore(self, described, tensors)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (
            {"task_vectors": {"dots": torch.ones(11)}},
            r"vector of task 'dots' has shape \(11,\) of torch.float32, exp",
        ),
        ({"task_vectors": {"dots": torch.ones(12).half()}}, r"has shape \(12,\) of torch.float16, expected \(12,\) of"),
        (
            {"task_vectors": {}, "start": 1},
            "has 'start' of its strategy, expected only .task_vectors.: another",
        ),
    ],
    ids=["length", "dtype", "attribute"],
)
def test_a_state_of_another_model_or_method_is_refused(tmp_path, attributes, reason):
    owner = Owner()
    vars(owner).update(attributes)
    described, tensors = describe(owner, list(attributes))
    keeper = Keeper(Settings(), recorder=None)
    with pytest.raises(CheckpointError, match=reason):
        keeper.resume(Named(), Resumed(tmp_path, state(described=described), tensors), 1)


# --- what a strategy keeps ---

# One value of each field of each type that a strategy may keep, other than the field's default.
FIELDS = {
    "head": {"weight": torch.ones(2, 3), "bias": torch.arange(2.0), "zero_shot": True},
    "unified": {
        "vector": torch.arange(9.0),
        "masks": {"a": torch.arange(9) % 2 == 0, "b": torch.arange(9) > 3},
        "rescalers": {"a": 1.5, "b": 0.25},
        "opposites": {"a": 0.125, "b": 0.0},
    },
    "separate": {"vectors": {"a": torch.ones(4), "b": torch.arange(4.0).bfloat16()}},
}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if hasattr(one, "keys"):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other and type(one) is type(other)


def test_every_field_of_every_kept_type_comes_back(tmp_path):
    """A field that is new has no value above: this test fails until it has one, and until it comes back."""
    from dataclasses import fields

    from matu_flwr.federation.state import KEPT_TYPES

    assert FIELDS.keys() == KEPT_TYPES.keys()
    for kind, kept_type in KEPT_TYPES.items():
        assert FIELDS[kind].keys() == {field.name for field in fields(kept_type)}
        owner = Owner()
        owner.thing = kept_type(**FIELDS[kind])
        described, tensors = describe(owner, ["thing"])
        write_checkpoint(tmp_path, state(described=described), tensors, 1)
        _, checkpoint, read = find_checkpoint(tmp_path)
        back = values_of(checkpoint.described, read)["thing"]
        assert type(back) is kept_type
        for name, value in FIELDS[kind].items():
            assert same(value, getattr(back, name)), f"{kind}.{name}"


@pytest.mark.parametrize("operator", [{}, PAPER], ids=["complete", "as published"])
def test_a_unified_vector_keeps_what_cleared_bits_stand_for(operator):
    owner, other = Owner(), Owner()
    owner.merged = unify({"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([-3.0, -1.0])}, **operator)
    restore(other, *describe(owner, ["merged"]))
    assert other.merged.opposites == owner.merged.opposites
    assert torch.equal(other.merged.reconstruct("a"), owner.merged.reconstruct("a"))


def test_equal_states_give_equal_files(tmp_path):
    """Whatever the order in which clients replied, and whatever the order of the tensors."""
    written = set()
    for names_ in (("a", "b", "c"), ("c", "a", "b")):
        owner = Owner()
        owner.task_vectors = {name: torch.full((8,), float(ord(name))) for name in names_}
        owner.trained = dict.fromkeys((*names_, "d"), 3)
        owner.releases = {(name, "x"): 1 for name in names_}
        described, tensors = describe(owner, ["task_vectors", "trained", "releases"])
        path = write_checkpoint(tmp_path / names_[0], state(described=described), tensors, 1)
        written.add((path.read_bytes(), path.with_suffix(".safetensors").read_bytes()))
    assert len(written) == 1
