"""The benchmarks run, on sizes that say nothing about speed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def run(tmp_path):
    def run(script, *arguments, without=()):
        """What a benchmark wrote as JSON, where some packages cannot be imported."""
        environment = {key: value for key, value in os.environ.items() if key != "MATU_DATA_DIR"}
        code = (
            f"import runpy, sys; sys.modules.update(dict.fromkeys({list(without)!r})); "
            f"runpy.run_path({str(BENCHMARKS / script)!r}, run_name='__main__')"
        )
        command = [sys.executable, "-c", code, *arguments, "--json", tmp_path / "found.json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "found.json").read_text())

    return run


def test_local_training(run):
    small = ("--model", "vit_mini_clip_32", "--device", "cpu", "--batch-size", "8", "--steps", "2")
    # a GPU machine may have neither Flower nor Ray
    rows = run("local_training.py", *small, "--repeats", "1", without=["flwr", "ray"])["training"]
    assert [row["trainable"] for row in rows] == ["full", "lora"]
    assert all(row["ratio"] > 0 for row in rows)
    found = run("local_training.py", *small, "--round", "--clients", "3", "--tasks", "3")["round"]
    assert found["round_seconds"] == pytest.approx(sum(found["seconds"].values()), abs=0.01)


def test_input_path(run):
    (row,) = run("input_path.py", "--sizes", "32", "--repeats", "1")["measurements"]
    assert row["images"] == 400
    assert row["cached_images_per_second"][0] > 0
