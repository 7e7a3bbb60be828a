from pathlib import Path

from tests.cli.finished import finished_run
from tests.support.command import matu


def test_show_prints_what_the_run_printed(tmp_path: Path) -> None:
    assert "completed in 3 s, peak memory of the server process 5.0 kB" in matu(
        "show", str(finished_run(tmp_path / "r"))
    )


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    text = matu("show", str(tmp_path), status=1)
    assert "history.jsonl does not exist: expected the output folder of a run" in " ".join(text.split())
