"""The benchmarks run, on sizes that say nothing about speed."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from tests.support.federation import TINY_SUITE

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def run(tmp_path):
    def run(script, *arguments, without=()):
        """What a benchmark wrote as JSON, where some packages cannot be imported."""
        environment = {key: value for key, value in os.environ.items() if key != "MATU_DATA_DIR"}
        code = (
            f"import runpy, sys; sys.modules.update(dict.fromkeys({list(without)!r})); "
            f"sys.path.insert(0, {str(BENCHMARKS)!r}); "
            f"runpy.run_path({str(BENCHMARKS / script)!r}, run_name='__main__')"
        )
        command = [sys.executable, "-c", code, *arguments, "--json", tmp_path / "found.json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "found.json").read_text())

    return run


@pytest.mark.long
def test_local_training(run):
    small = ("--model", "vit_mini_clip_32", "--device", "cpu", "--batch-size", "8", "--steps", "2")
    # a GPU machine may have neither Flower nor Ray
    rows = run("local_training.py", *small, "--repeats", "1", without=["flwr", "ray"])["training"]
    assert [row["trainable"] for row in rows] == ["full", "lora"]
    assert all(row["ratio"] > 0 for row in rows)
    found = run("local_training.py", *small, "--round", "--clients", "3", "--tasks", "3")["round"]
    assert found["round_seconds"] == pytest.approx(sum(found["seconds"].values()), abs=0.01)


@pytest.mark.system
@pytest.mark.long
def test_deployment(run):
    found = run("deployment.py", "--rounds", "2", "--steps", "1", "--batch-size", "4", "--tasks", "2")
    assert {"round", "server", "client: train", "client: unify", "Flower alone"} <= set(found["seconds"])
    assert all(spent["median"] >= 0 for spent in found["seconds"].values())
    assert {"flower-superlink", "flower-supernode", "flwr-serverapp", "flwr-clientapp"} <= set(found["peak_bytes"])


@pytest.mark.system
@pytest.mark.long
def test_simulation(run):
    crowd = (
        "--nodes",
        "6",
        "--sampled",
        "3",
        "--rounds",
        "4",
        "--flower-rounds",
        "2",
        "--tasks",
        "3",
        "--images",
        "240",
    )
    found = run("simulation.py", *crowd, "--steps", "2", "--batch-size", "4")
    assert found["ours"]["failed"] == 0
    assert len(found["ours"]["rounds"]) == len(found["ours"]["memory_mib"]) == 4
    assert all(mib > 0 for mib in found["ours"]["memory_mib"])
    assert found["ratio"] > 0
    for row in found["rows"]:
        assert 0 < row["outside"]["median"] < 1


def test_input_path(run):
    (row,) = run("input_path.py", "--sizes", "32", "--repeats", "1")["measurements"]
    assert row["images"] == 400
    assert row["cached_images_per_second"][0] > 0


SMALL = ("--repeats", "1")


@pytest.mark.long
@pytest.mark.parametrize("operator", ["default", "paper"])
def test_merging_client(run, operator):
    arguments = ("--sizes", "1001", "4096", "--tasks", "1", "3", "--operator", operator)
    found = run("merging_client.py", *arguments, *SMALL, without=["flwr", "ray"])
    rows = found["measurements"]
    assert [(row["d"], row["tasks"]) for row in rows] == [(1001, 1), (1001, 3), (4096, 1), (4096, 3)]
    assert all(row["same"] for row in rows), "not what the stacked program computes"
    assert all(row["share_of_copy"]["median"] > 0 and row["times_faster"]["median"] > 0 for row in rows)
    assert all("unify_working_mib" in row for row in rows)
    assert found["machine"]["torch"]


@pytest.mark.parametrize(
    ("switches", "passes"),
    [((), 1), (("--agreement", "threshold-or-soft"), 2), (("--operator", "paper"), 2)],
)
@pytest.mark.long
def test_merging_server(run, switches, passes):
    arguments = ("--sizes", "1001", "--clients", "2", "5", "--tasks", "3", *switches)
    rows = run("merging_server.py", *arguments, *SMALL, without=["flwr", "ray"])["measurements"]
    assert [row["clients"] for row in rows] == [2, 5]
    assert all(row["same"] for row in rows), "not what the stacked program computes"
    assert all(row["learning"] and row["passes"] == passes for row in rows)
    assert all(row["share_of_copy"]["median"] > 0 and row["downlink_seconds"]["median"] > 0 for row in rows)


@pytest.mark.long
def test_merging_files(run, tmp_path):
    arguments = ("--size", "1001", "--tasks", "3", "--folder", str(tmp_path))
    rows = run("merging_files.py", *arguments, *SMALL, without=["flwr", "ray"])["measurements"]
    assert [row["side"] for row in rows] == ["client", "server"]
    assert all(row["same"] for row in rows), "files give another result than memory"
    assert list(tmp_path.glob("matu-files-*")) == [], "the files were left behind"


@pytest.mark.long
def test_merging_growth(run):
    rows = run("merging_growth.py", "--base", "2000", "--steps", "3", *SMALL, without=["flwr", "ray"])["measurements"]
    assert {row["against"] for row in rows} == {"d", "T", "N", "k"}
    assert all(len(row["seconds"]) == len(row["mib"]) == 3 for row in rows)


def test_merging_kernels(run):
    arguments = ("--sizes", "1001", "--tasks", "2", "3", "--clients", "2", "--threads", "1")
    rows = run("merging_kernels.py", *arguments, *SMALL, without=["flwr", "ray"])["measurements"]
    codes = [("quantise", "int8"), ("dequantise", "int8"), ("quantise", "int4"), ("dequantise", "int4")]
    assert [(row["what"], row["of"]) for row in rows] == [
        ("unify", "2 tasks"), ("unify", "3 tasks"), ("merge", "2 replies"), *codes
    ]  # fmt: skip
    assert all(row["times_faster"]["median"] > 0 and row["times_faster_on_cores"]["median"] > 0 for row in rows)


def test_without_kernels_plain_torch_runs(merging_programs):
    client, _, _, _ = merging_programs
    taus = client.vectors(100, 3)
    twin = importlib.import_module("matu_flwr.merging.unify")
    with mock.patch.object(twin, "elect_and_mask", side_effect=twin.elect_and_mask) as plain:
        found = client.measuring.in_plain_torch(lambda: client.measuring.OPERATORS["default"].unify(taus))
    assert plain.call_count == 1
    assert torch.equal(found.vector, client.measuring.OPERATORS["default"].unify(taus).vector)


@pytest.mark.long
def test_wire(run, tmp_path):
    suite = tmp_path / "tiny.yaml"
    suite.write_text(TINY_SUITE)
    found = run("wire.py", "--suite", str(suite), "--steps", "3", "--tasks", "1", "3", *SMALL)
    rows = found["codecs"]
    assert len(rows) == 2 * 4 * 2
    for row in rows:
        if row["compression"] == "none":
            assert row["bytes"] == pytest.approx(row["predicted_bytes"], rel=0.01)
        assert row["encode_mb_per_second"]["median"] > 0
    of = {(row["tasks"], row["dtype"], row["compression"]): row for row in rows}
    assert of[3, "int4", "none"]["times_fewer"] > 4
    assert of[3, "int4", "zstd"]["bytes"] < of[3, "int4", "none"]["bytes"]
    assert of[1, "float32", "zstd"]["loss"] == 0 < of[1, "int8", "none"]["loss"] < of[1, "int4", "none"]["loss"] < 0.15
    (masks,) = found["masks"]
    assert masks["joint_entropy"] < masks["entropy"] < 1
    # the wire's own file of vectors is read too
    vectors = {f"{name}/task_vector": torch.randn(2000) for name in "abc"} | {"a/head/bias": torch.zeros(3)}
    save_file(vectors, tmp_path / "task_vectors.safetensors")
    arguments = ("--updates", str(tmp_path / "task_vectors.safetensors"), "--tasks", "3")
    assert {row["d"] for row in run("wire.py", *arguments, *SMALL)["codecs"]} == {2000}


@pytest.fixture(scope="module")
def merging_programs():
    """The stacked programs of both benchmarks, imported as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        names = ("merging_client", "merging_server", "tests.merging.slow_twin", "tests.merging.cases")
        yield tuple(map(importlib.import_module, names))


@pytest.mark.parametrize("operator", ["default", "paper"])
def test_the_stacked_programs_are_the_slow_twin(merging_programs, operator):
    client, server, slow_twin, cases = merging_programs
    switches = client.measuring.OPERATORS[operator]
    taus = client.vectors(37, 3)
    vectors = {task: cases.to_floats(tau) for task, tau in taus.items()}
    twin = slow_twin.unify(vectors, switches.magnitude, switches.reconstruction)
    found = client.stacked(taus, switches)
    assert cases.to_floats(found.vector) == pytest.approx(twin.vector, rel=1e-6, abs=0)
    assert {task: mask.tolist() for task, mask in found.masks.items()} == twin.masks
    assert found.rescalers == pytest.approx(twin.rescalers, rel=1e-12)
    assert found.opposites == pytest.approx(twin.opposites or {}, rel=1e-12)
    options = replace(switches.options, epsilon=0.0, epsilon_unit="similarity")
    updates = server.replies(37, 4, 3, 2, reconstruction=switches.reconstruction)
    expected = slow_twin.aggregate([cases.to_twin(update) for update in updates], options)
    for task, tau in server.stacked(updates, options).items():
        assert tau.tolist() == pytest.approx(expected.task_vectors[task], rel=1e-5, abs=1e-6)


@pytest.mark.long
def test_hostile_federations(run):
    # In the first step the heads are zeros, and no gradient reaches the backbone.
    found = run("hostile_federations.py", "--rounds", "1", "--steps", "2", "--only", "× 10³")["rows"]
    assert [(row["case"], row["bad named"], row["innocent named"]) for row in found] == [("× 10³", ["client-000"], [])]
    assert found[0]["lost"] == found[0]["moved"] == 0


@pytest.mark.long
def test_screen_honest(run):
    (found,) = run(
        "screen_honest.py",
        "--runs",
        "matu",
        "--seeds",
        "1",
        "--rounds",
        "1",
        "--clients",
        "4",
        "--set",
        "train.steps=2",  # in the first step the heads are zeros, and no gradient reaches the backbone
    )["rows"]
    assert (found["refused"], found["rolled back"]) == (0, 0)
    assert 1 <= found["vector"] < 10
    assert 0 < found["share of the round"] < 1


@pytest.mark.long
def test_hostile_clients(run):
    found = run(
        "hostile_clients.py", "--rounds", "1", "--steps", "1", "--images", "96", "--tests", "24", "--only", "without"
    )
    (row,) = found["without them"]
    assert len(row["accuracy"]) == 4
    assert row["failed"] == ""
