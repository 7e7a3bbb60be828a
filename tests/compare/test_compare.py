"""Cells, resuming, and the numbers of a comparison, on histories written by hand."""

import csv
import dataclasses
import io
import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from matu_flwr import cli
from matu_flwr.compare import cells as module
from matu_flwr.compare import one_run
from matu_flwr.compare.cells import Cell, is_finished, plan_cells, run_cells
from matu_flwr.compare.report import draw_pareto, markdown, write_comparison
from matu_flwr.compare.results import CellResult, read_cell, rows_of
from matu_flwr.config.settings import PRESETS, Settings, SettingsError
from matu_flwr.launch.flower import LaunchError

UP = {"vector": 4000, "masks": 250, "heads": 0, "scalars": 50, "total": 4300}
DOWN = {"vector": 0, "masks": 0, "heads": 0, "scalars": 100, "total": 100}


def write_run(folder, accuracy, *, status="completed", error=None):
    """The history of a run of one round: two clients, three (client, task) pairs, d = 1000."""
    held = {"north": ["corn", "rice"], "south": ["rice"]}
    events = [
        {
            "event": "plan",
            "backbone": {"d": 1000},
            "clients": [{"client": name, "tasks": dict.fromkeys(tasks, 10)} for name, tasks in held.items()],
        },
        *(
            {"event": "client", "client": name, "status": "ok", "bytes_up": UP, "bytes_down": DOWN, "phase": phase}
            for name in held
            for phase in ("train",)
        ),
        {"event": "accuracy", "round": 0, "source": "clients", "accuracy": dict.fromkeys(accuracy, 0.1)},
        {"event": "accuracy", "round": 1, "source": "clients", "accuracy": accuracy},
        {"event": "end", "status": status, "error": error, "seconds": 12.0},
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


ACCURACY = {
    ("matu", 0): {"corn": 0.8, "rice": 0.6},
    ("matu", 1): {"corn": 0.9, "rice": 0.7},
    ("fedavg", 0): {"corn": 0.5, "rice": 0.5},
    ("fedavg", 1): {"corn": 0.5, "rice": 0.3},
    ("central-individual", 0): {"corn": 1.0, "rice": 0.8},
    ("central-individual", 1): {"corn": 1.0, "rice": 1.0},
}


@pytest.fixture
def asked(tmp_path):
    """A runner that writes histories, and what it was asked for."""
    found = []

    def run(folder, values):
        found.append((values["strategy"], values["seed"]))
        write_run(folder, ACCURACY[values["strategy"], values["seed"]])

    run.found = found
    return run


def quiet(text):
    """Say nothing."""


# --- which cells ---


def test_cells_are_methods_times_seeds():
    cells = plan_cells(["matu", "matu:paper", "fedavg"], 2, {"seed": 5, "rounds": 3, "matu.kappa": 2})
    assert [(cell.name, cell.seed) for cell in cells] == [
        ("matu", 5), ("matu:paper", 5), ("fedavg", 5), ("matu", 6), ("matu:paper", 6), ("fedavg", 6)
    ]  # fmt: skip
    assert cells[0].values == {"seed": 5, "rounds": 3, "matu.kappa": 2, "strategy": "matu"}
    assert cells[1].values == {"seed": 5, "rounds": 3, "matu.kappa": 2, "strategy": "matu", "matu.preset": "paper"}
    assert cells[2].values == {"seed": 5, "rounds": 3, "strategy": "fedavg"}  # κ is MaTU's


def test_a_variant_changes_what_it_names_and_nothing_else():
    name = "matu:paper+payload=update+kappa=0+train.steps=5"
    alone, varied, pulled = plan_cells(["matu", name, "fedprox:mu=0.1"], 1, {"matu.kappa": 2})
    changed = {"matu.payload": "update", "matu.kappa": 0, "train.steps": 5}
    assert varied.values == {**alone.values, "matu.preset": "paper", **changed}
    assert pulled.values == {"strategy": "fedprox", "seed": 0, "fedprox.mu": 0.1}


@pytest.mark.parametrize(
    ("names", "values", "text"),
    [
        (["matuu"], {}, "unknown strategy 'matuu'; did you mean 'matu'?"),
        (["matu:papre"], {}, "'papre' is neither KEY=VALUE nor a preset of matu; the presets are paper"),
        (["fedavg:paper"], {}, "strategy 'fedavg:paper': 'paper' is neither KEY=VALUE nor a preset of matu"),
        (["matu:kapa=3"], {}, "unknown setting 'matu.kapa'; did you mean 'matu.kappa'?"),
        (["matu:kappa=-3"], {}, "setting 'matu.kappa' = -3"),
        (["fedavg:matu.kappa=0"], {}, "setting 'matu.kappa' = 0 is an option of strategy 'matu', not of 'fedavg'"),
        (["fedavg", "fedavg"], {}, "strategies fedavg, fedavg: a name is given twice; give each once"),
        (["fedavg"], {"fedprox.mu": 0.1}, "setting 'fedprox.mu' is an option of strategy 'fedprox', which is not"),
        (["fedavg", "fedprox"], {}, "strategy 'fedprox' needs fedprox.mu"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said_before_anything_runs(names, values, text):
    with pytest.raises(SettingsError) as error:
        plan_cells(names, 1, values)
    assert text in str(error.value)


def test_what_is_typed_for_all_cells_wins_over_the_preset_of_a_variant():
    typed = {"matu.payload": "update", "wire.vector-dtype": "bfloat16"}
    _, paper = plan_cells(["matu", "matu:paper"], 1, typed)
    chosen = Settings.from_run_config(paper.values)
    assert (chosen.matu.payload, chosen.wire.vector_dtype, chosen.matu.magnitude) == ("update", "bfloat16", "max")
    (own,) = plan_cells(["matu:paper+payload=vector"], 1, typed)
    assert Settings.from_run_config(own.values).matu.payload == "vector"


def test_a_value_that_a_method_sets_cannot_be_typed_otherwise():
    with pytest.raises(SettingsError, match=r"'ntk-fedavg' sets backbone\.linearised = True, found False: remove"):
        plan_cells(["ntk-fedavg"], 1, {"backbone.linearised": False})


# --- running and resuming ---


def test_finished_cells_do_not_run_again(tmp_path, asked):
    cells = plan_cells(["matu", "fedavg"], 2, {})
    assert run_cells(cells[:3], tmp_path, asked, side_by_side=1, say=quiet) == {}
    assert [name for name, _ in asked.found] == ["matu", "fedavg", "matu"]
    asked.found.clear()
    said = []
    run_cells(cells, tmp_path, asked, side_by_side=1, say=said.append)
    assert asked.found == [("fedavg", 1)]
    assert said == ["3 of 4 cells are finished already", "cell 1/1: fedavg, seed 1"]


def test_an_interrupted_cell_runs_again_from_the_start(tmp_path, asked):
    (cell,) = plan_cells(["matu"], 1, {})
    folder = cell.folder(tmp_path)
    write_run(folder, {"corn": 0.5}, status="failed", error="stopped")
    (folder / "leftover").touch()
    run_cells([cell], tmp_path, asked, side_by_side=1, say=quiet)
    assert asked.found == [("matu", 0)]
    assert not (folder / "leftover").exists()
    assert is_finished(cell, tmp_path)


def test_a_finished_cell_of_an_earlier_release_wrote_its_preset_out(tmp_path, asked):
    (cell,) = plan_cells(["matu:paper+payload=update"], 1, {"rounds": 3})
    run_cells([cell], tmp_path, asked, side_by_side=1, say=quiet)
    old = {"rounds": 3, "strategy": "matu", "seed": 0, **PRESETS["paper"], "matu.payload": "update"}
    (cell.folder(tmp_path) / "cell.json").write_text(json.dumps(old))
    assert is_finished(cell, tmp_path)


def test_a_finished_cell_of_an_earlier_release_may_have_settings_that_are_gone(tmp_path, asked):
    (cell,) = plan_cells(["matu"], 1, {"rounds": 3})
    run_cells([cell], tmp_path, asked, side_by_side=1, say=quiet)
    path = cell.folder(tmp_path) / "cell.json"
    old = json.loads(path.read_text())
    path.write_text(json.dumps(old | {"train.optimizer": "adamw", "partition.classes-per-holder": 4}))
    assert is_finished(cell, tmp_path)
    path.write_text(json.dumps(old | {"partition.split": "shard"}))
    with pytest.raises(
        SettingsError,
        match=r"matu-seed0 cannot be compared: partition\.split = 'shard' was removed after release 0\.1\.0: use that "
        r"release, or name another --out-dir$",
    ):
        is_finished(cell, tmp_path)


def test_results_of_other_settings_are_not_mixed(tmp_path, asked):
    run_cells(plan_cells(["matu"], 1, {"rounds": 3}), tmp_path, asked, side_by_side=1, say=quiet)
    with pytest.raises(
        SettingsError, match=r"matu-seed0 was run with other settings \(rounds\): name another --out-dir"
    ):
        run_cells(plan_cells(["matu"], 1, {"rounds": 4}), tmp_path, asked, side_by_side=1, say=quiet)


def test_a_failed_cell_does_not_stop_the_others(tmp_path, asked):
    cells = plan_cells(["matu", "fedavg"], 1, {})

    def run(folder, values):
        if values["strategy"] == "matu":
            raise LaunchError("the run failed:\n no nodes")
        asked(folder, values)

    failed = run_cells(cells, tmp_path, run, side_by_side=1, say=quiet)
    assert failed == {cells[0]: "the run failed: no nodes"}
    results = [read_cell(cell, tmp_path, failed.get(cell, "")) for cell in cells]
    assert [row.name for row in rows_of(results)] == ["fedavg", "matu"]
    text = markdown(rows_of(results), results, facts())
    assert "| matu | failed |" in text
    assert "matu, seed 0, failed: the run failed: no nodes" in text


def test_cells_run_side_by_side(tmp_path):
    import threading

    meet = threading.Barrier(2, timeout=20)

    def run(folder, values):
        meet.wait()  # only if both run at a time
        write_run(folder, {"corn": 0.5, "rice": 0.5})

    cells = plan_cells(["matu", "fedavg"], 2, {})
    assert run_cells(cells, tmp_path, run, side_by_side=2, say=quiet) == {}


# --- numbers ---


@pytest.fixture
def results(tmp_path, asked):
    cells = plan_cells(["matu", "fedavg", "central-individual"], 2, {})
    run_cells(cells, tmp_path, asked, side_by_side=1, say=quiet)
    return [read_cell(cell, tmp_path) for cell in cells]


def test_a_cell_by_hand(results):
    """Two clients, one round: (2 · 4300) / 2 bytes up; 8 · 2 · 4250 bits over 1000 parameters and 3 pairs."""
    cell = results[0]
    assert (cell.name, cell.seed, cell.error, cell.seconds) == ("matu", 0, "", 12.0)
    assert (cell.bytes_up, cell.bytes_down) == (4300, 100)
    assert cell.bits == pytest.approx(8 * 2 * 4250 / 3000)
    assert cell.mean == pytest.approx(0.7)
    assert cell.nearest is None  # no task graph


def test_rows_by_hand(results):
    best, matu, fedavg = rows_of(results)
    assert [row.name for row in (best, matu, fedavg)] == ["central-individual", "matu", "fedavg"]
    assert matu.mean == pytest.approx(0.75)  # (.7 + .8) / 2
    assert matu.spread == pytest.approx(0.05 * 2**0.5)  # of .7 and .8
    assert matu.normalised == pytest.approx((0.8 / 1 + 0.6 / 0.8 + 0.9 / 1 + 0.7 / 1) / 4)
    assert best.normalised == pytest.approx(1)
    assert (fedavg.worst_task, fedavg.worst) == ("rice", pytest.approx(0.4))
    assert fedavg.tasks == {"corn": pytest.approx(0.5), "rice": pytest.approx(0.4)}
    graphs = [dataclasses.replace(result, nearest=0.5 + result.seed / 4) for result in results]
    assert {row.nearest for row in rows_of(graphs)} == {0.625}  # of .5 and .75
    (alone,) = rows_of([result for result in results if result.name == "matu" and result.seed == 0])
    assert (alone.spread, alone.normalised, alone.difference, alone.p_value) == (None, None, None, None)


def test_differences_to_the_first_method_by_hand(results):
    """fedavg - matu: seed 0 (-.3, -.1), seed 1 (-.4, -.4). Both tasks are below: p = 2/4."""
    by_name = {row.name: row for row in rows_of(results)}
    assert by_name["matu"].difference is None
    fedavg = by_name["fedavg"]
    assert fedavg.difference == pytest.approx(-0.3)
    assert fedavg.difference_spread == pytest.approx(0.1 * 2**0.5)
    assert fedavg.p_value == pytest.approx(0.5)


def test_a_method_that_equals_the_first_differs_by_nothing(results):
    copies = [dataclasses.replace(result, name="copy") for result in results if result.name == "matu"]
    (copy,) = (row for row in rows_of([*results, *copies]) if row.name == "copy")
    assert (copy.difference, copy.difference_spread, copy.p_value) == (0, 0, 1)


def test_only_seeds_that_both_have_are_compared(results):
    only_first = [result for result in results if result.name != "matu" or result.seed == 0]
    fedavg = next(row for row in rows_of(only_first) if row.name == "fedavg")
    assert (fedavg.difference, fedavg.difference_spread) == (pytest.approx(-0.2), None)
    never = [dataclasses.replace(results[0], error="disk full"), *(r for r in results if r.name == "fedavg")]
    assert next(row for row in rows_of(never) if row.name == "fedavg").difference is None


def facts():
    return {"suite": "farm", "command": "matu compare", "machine": "m", "versions": {"flwr": "1"}, "date": "2026-01-01"}


def test_the_four_files(tmp_path, results):
    failed = CellResult("ties", 0, "disk full")
    rows = rows_of([*results, failed])
    files = write_comparison(rows, [*results, failed], {"suite": "farm"}, "matu compare", tmp_path / "out")
    content = json.loads(files["json"].read_text())
    assert [method["name"] for method in content["methods"]] == ["central-individual", "matu", "fedavg", "ties"]
    assert len(content["cells"]) == 7
    table = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert float(table[1]["mean"]) == pytest.approx(0.75)
    assert float(table[1]["accuracy/rice"]) == pytest.approx(0.65)
    assert table[3]["mean"] == ""
    text = files["md"].read_text()
    assert "| matu | .750 ± .071 |  |  | .787 | rice .650 | 0.00 | 0.00 | 22.7 |  | 12 |" in text
    assert "| fedavg | .450 ± .071 | -.300 ± .141 | 0.5 |" in text
    assert "To the first: difference to matu with the same seed," in text
    assert "| corn | 1.000 | .850 | .500 |" in text
    assert "ties, seed 0, failed: disk full" in text
    assert files["png"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_comparison_of_failures_is_written_all_the_same(tmp_path):
    failed = [CellResult("ties", 0, "disk full")]
    files = write_comparison(rows_of(failed), failed, {"suite": "farm"}, "matu compare", tmp_path)
    assert all(path.exists() for path in files.values())


# --- the command ---


def test_names_are_text_and_no_markup(tmp_path):
    """A cell of a Markdown table, HTML, a formula in a picture."""
    names = ("a|b", "<img src=x>", r"$\mathds{R}$", "[l](u)", "`c", "*d")
    accuracy = {name: (index + 1) / 10 for index, name in enumerate(names)}
    results = [
        CellResult("matu", seed, accuracy=accuracy, error="" if seed else "it | <b>failed</b>\nin two lines")
        for seed in (0, 1)
    ]
    text = markdown(rows_of(results), results, facts())
    tables = [line for line in text.splitlines() if line.startswith("|")]
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    assert set(bars) == {12, 3}
    for name in (r"a\|b", r"\<img src=x\>", r"\$\\mathds{R}\$", r"\[l\](u)", r"\`c", r"\*d"):
        assert f"| {name} |" in text
    assert r"failed: it \| \<b\>failed\</b\> in two lines" in text
    draw_pareto(rows_of(results), r"$\mathds{R}$", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_command(tmp_path, monkeypatch):
    calls = []

    def run_in_process(folder, arguments, *, shown):
        run_config = arguments["run_config"]
        calls.append((run_config, arguments["home"], arguments["num_nodes"]))
        assert shown
        if run_config["strategy"] == "ties":
            raise LaunchError("no room")
        write_run(folder, {"corn": 0.5, "rice": 0.25})

    monkeypatch.setattr(one_run, "run_in_process", run_in_process)
    monkeypatch.delenv("MATU_DATA_DIR", raising=False)
    options = ["--out-dir", str(tmp_path / "out"), "--rounds", "4", "--nodes", "6", "-c", "train.lr=0.01"]
    arguments = ["compare", "--strategies", "matu,fedprox,ties", "--seeds", "1", *options, "-c", "fedprox.mu=0.1"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 1, result.output  # one cell failed
    assert [run_config["strategy"] for run_config, _, _ in calls] == ["matu", "fedprox", "ties"]
    assert "fedprox.mu" not in calls[0][0]
    assert calls[1][0]["fedprox.mu"] == 0.1
    assert all(values["rounds"] == 4 and values["train.lr"] == 0.01 for values, _, _ in calls)
    assert all(nodes == 6 for _, _, nodes in calls)
    assert "ties, seed 0, failed: no room" in result.output
    assert "comparison.md" in result.output
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "matu compare --strategies matu,fedprox,ties --suite offline --seeds 1" in text
    again = CliRunner().invoke(cli.app, arguments)
    assert "2 of 3 cells are finished already" in again.output
    assert len(calls) == 4

    assert "error: unknown strategy 'nothing'" in CliRunner().invoke(
        cli.app, ["compare", "--strategies", "nothing"]
    ).output  # fmt: skip
    shutil.rmtree(tmp_path / "out")


def test_a_cell_s_folder_is_a_name_on_every_disk(tmp_path):
    assert Cell("matu:paper", 3, {}).folder(tmp_path) == tmp_path / "cells" / "matu-paper-seed3"
    assert Cell("matu:kappa=0+rho=.5", 3, {}).folder(tmp_path).name == "matu-kappa=0+rho=.5-seed3"
    assert Cell("fedavg:suite=a/b", 3, {}).folder(tmp_path).name == "fedavg-suite=a-b-seed3"
    assert module.end_of(tmp_path) is None


def test_a_run_that_cannot_start_gives_its_reason(tmp_path):
    """In a real process of its own, shown or not."""
    arguments = {
        "app_dir": str(tmp_path / "none"),
        "home": str(tmp_path),
        "run_config": {},
        "num_nodes": 1,
        "num_cpus": 1,
    }
    for shown in (True, False):
        with pytest.raises(LaunchError, match=r"none is not a Flower app: it has no pyproject.toml"):
            one_run.run_in_process(tmp_path, arguments | {"num_gpus": 0.0}, shown=shown)


def test_an_interruption_starts_nothing_more(tmp_path):
    begun = []

    def run(folder, values):
        begun.append(values["strategy"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(plan_cells(["matu", "fedavg", "individual"], 2, {}), tmp_path, run, side_by_side=1, say=quiet)
    assert begun == ["matu"]
