"""A run that was cut off and goes on gives what one run in one go gives, bit for bit, under every method."""

import pytest
import torch
from safetensors.torch import load_file

from matu_flwr.run import partition_picture, recorder
from matu_flwr.run.history import read_history
from matu_flwr.run.resume import Keeper
from matu_flwr.run.summary import summarise
from matu_flwr.strategies import available
from tests.support.federation import tiny_values
from tests.support.marks import long_but
from tests.support.whole_run import run

NEEDS = {"fedprox": {"fedprox__mu": 0.1}}
# Methods and options whose server or clients keep something of their own; by name, strategy and values.
CASES = {name: (name, NEEDS.get(name, {})) for name in available()} | {
    "matu, error feedback": ("matu", {"matu__error_feedback": True}),
    "matu, global downlink": ("matu", {"matu__downlink": "global", "wire__vector_dtype": "bfloat16"}),
    "matu, local heads": ("matu", {"train__heads": "local"}),
    "matu, some clients a round, local heads": ("matu", {"fraction_train": 0.6, "train__heads": "local"}),
    "fedavg, tested seldom": ("fedavg", {"evaluate_every": 2}),
}


PERSONAL = ("fedper", "fedrep", "ditto", "individual", "task-arithmetic", "ties", "emr")


class CutOffError(Exception):
    """What stands for the end of the process."""


def values(folder, top, strategy, own):
    """Of a run in a folder; the suite is common to all."""
    told = tiny_values(folder, strategy=strategy, rounds=3, server_evaluate=False, **own)
    tiny_values(top)
    return told | {"suite": str(top / "tiny.yaml")}


def cut_off_after(monkeypatch, round_):
    """The run ends when a round is done and before its checkpoint is written."""
    save = Keeper.save

    def saving(keeper, strategy):
        if strategy.completed == round_:
            raise CutOffError
        save(keeper, strategy)

    monkeypatch.setattr(Keeper, "save", saving)


def tensors(folder):
    path = folder / "task_vectors.safetensors"
    return load_file(path) if path.exists() else {}


def own_states(folder):
    return {path.name + path.parent.name: load_file(path) for path in (folder / "state").rglob("*.safetensors")}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def events(folder):
    """Without what may differ: times, run ids, and that the run was resumed."""
    found = [e for e in read_history(folder / "history.jsonl") if e["event"] not in ("resume", "end", "plan")]
    return [{key: value for key, value in event.items() if key != "seconds"} for event in found]


def summary(folder):
    found = summarise(read_history(folder / "history.jsonl"))
    return {key: value for key, value in found.items() if key not in ("run", "timing")}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """They are drawn from what is compared here, and take most of the time."""
    monkeypatch.setattr(recorder, "write_report", lambda out_dir: None)
    monkeypatch.setattr(partition_picture, "draw_partition", lambda found, path: None)


# One of each thing that is kept between rounds: vectors of tasks with clients that keep a remainder, own blocks, an own
# model beside the shared one, a merge at the end, vectors per client, pooled images, and a drawing of clients. The
# others keep one of these, or less.
KEPT = ("matu, error feedback", "fedper", "ditto", "ties", "matfl", "central-mtl")


@pytest.mark.parametrize("case", long_but((*KEPT, "matu, some clients a round, local heads"), CASES))
def test_law_resumed_is_uninterrupted(tmp_path, monkeypatch, case):
    strategy, own = CASES[case]
    last = 1 if strategy == "zero-shot" else 2
    whole, cut = tmp_path / "one", tmp_path / "cut"  # names of one length: state-dir travels, and bytes are compared
    run(whole / "out", values(whole, tmp_path, strategy, own))
    with monkeypatch.context() as patch:
        cut_off_after(patch, last)
        with pytest.raises(CutOffError):
            run(cut / "out", values(cut, tmp_path, strategy, own))
    before = read_history(cut / "out" / "history.jsonl")
    assert (before[-1]["event"], before[-1]["status"]) == ("end", "failed")
    run(cut / "out", {"resume-from": str(cut / "out")}, run_id=2)
    assert equal(tensors(cut / "out"), tensors(whole / "out"))
    assert tensors(whole / "out") or strategy in ("individual", "matfl", "fedper", "zero-shot")
    one, other = own_states(whole), own_states(cut)
    assert one.keys() == other.keys()
    assert all(equal(one[name], other[name]) for name in one)
    assert bool(one) == (strategy in PERSONAL or "local" in case or "feedback" in case)
    assert events(cut / "out") == events(whole / "out")
    assert summary(cut / "out") == summary(whole / "out")
    (resumed,) = [e for e in read_history(cut / "out" / "history.jsonl") if e["event"] == "resume"]
    assert (resumed["round"], resumed["attempt"]) == (last - 1, 1)
