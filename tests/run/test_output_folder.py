"""Where a run of plain `flwr run` writes."""

import time

import server_app
from matu_flwr.config.settings import Settings


def test_runs_of_the_same_second_get_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "20261130-101500")
    found = [server_app.output_folder(Settings()) for _ in range(2)]
    assert found == [tmp_path / "runs" / f"20261130-101500-offline-matu{end}" for end in ("", "-2")]


def test_a_folder_that_is_named_is_used_as_it_is(tmp_path):
    settings = Settings.from_flat({"out-dir": str(tmp_path / "mine")})
    assert server_app.output_folder(settings) == server_app.output_folder(settings) == tmp_path / "mine"
