"""`matu data partition`: what a person types and reads."""

import json

import pytest
import typer
from typer.testing import CliRunner

from matu_flwr.cli.partition import partition

app = typer.Typer()
app.command()(partition)


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.delenv("MATU_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments, status=0):
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == status, result.output
        return result.output

    return call


SMALL = """
name: small
max_train: 48
max_test: 20
tasks:
  hand: {loader: sklearn-digits, group: digits}
  again: {loader: sklearn-digits, group: digits}
  third: {loader: sklearn-digits}
"""


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    return "small.yaml"


def test_files_and_what_is_said(run, suite, tmp_path):
    text = run("--suite", suite, "--nodes", "4", "--seed", "2", "--out", "here", "-c", "partition.min-examples=4")
    found = json.loads((tmp_path / "here" / "partition.json").read_text())
    assert text.splitlines() == [
        "small, seed 2: 3 tasks, 4 clients, 144 training images",
        f"fingerprint      {found['fingerprint']}",
        f"partition        {tmp_path / 'here' / 'partition.json'}",
        f"partition image  {tmp_path / 'here' / 'partition.png'}",
    ]
    assert (found["suite"], found["seed"], len(found["clients"])) == ("small", 2, 4)
    assert found["partition"]["min-examples"] == 4
    assert (tmp_path / "here" / "partition.png").is_file()


def test_an_experiment_file_counts(run, suite, tmp_path):
    (tmp_path / "e.yaml").write_text(
        f"suite: {tmp_path / suite}\nseed: 5\npartition: {{min-examples: 4, split: iid}}\n"
    )
    run("--nodes", "2", "-c", "experiment=e.yaml")
    found = json.loads((tmp_path / "partition" / "partition.json").read_text())
    assert (found["suite"], found["seed"], found["partition"]["split"]) == ("small", 5, "iid")


def test_real_data_choose_the_suite_as_in_a_run(run, monkeypatch, tmp_path):
    monkeypatch.setenv("MATU_DATA_DIR", str(tmp_path / "data"))
    assert run(status=1).startswith("error: task ")  # none of the files of real-12 are there


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--suite", "ofline"], "unknown suite 'ofline': did you mean 'offline'? known: offline"),
        (["-c", "partition.splt=iid"], "unknown setting 'partition.splt'; did you mean 'partition.split'?"),
        (["-c", "partition.split"], "run config 'partition.split': expected KEY=VALUE"),
        (["-c", "partition.split=even"], "setting 'partition.split' = 'even': input should be 'dirichlet' or 'iid'"),
        (["--suite", "small.yaml", "-c", "partition.min-examples=49"], "48 training examples cannot give each of"),
        (
            ["-c", "partition.classes-per-holder=3"],
            "setting 'partition.classes-per-holder' was removed after release 0.1.0: partition.split is dirichlet or",
        ),
        (
            ["--suite", "small.yaml", "--nodes", "1", "-c", "partition.min-examples=1", "--out", "small.yaml"],
            "cannot write to small.yaml: ",
        ),
        (
            ["--suite", "small.yaml", "-c", "partition.min-tasks=4", "-c", "partition.max-tasks=4"],
            "min_tasks is 4, but there are only 3 tasks: lower it or choose a larger suite",
        ),
    ],
)
def test_a_user_s_error_is_one_line(run, suite, arguments, text):
    lines = run(*arguments, status=1).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert text in lines[0]


def test_no_clients_are_refused(run):
    assert "nodes" in run("--nodes", "0", status=2)
