import json
from pathlib import Path

from tests.cli.finished import finished_run
from tests.support.command import matu


def test_report_writes_the_summary_and_names_it(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    text = matu("report", str(folder), "--tensorboard", str(tmp_path / "tb"))
    assert text.split() == ["summary", str(folder / "summary.json"), "tensorboard", str(tmp_path / "tb")]
    assert json.loads((folder / "summary.json").read_text())["run"]["status"] == "completed"
    assert list((tmp_path / "tb").iterdir())


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    text = matu("report", str(tmp_path), status=1)
    assert "history.jsonl does not exist: expected the output folder of a run" in " ".join(text.split())


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    text = matu("report", str(folder), "--tensorboard", str(tmp_path / "file" / "below"), status=1)
    assert "error: the report cannot be written: " in text
