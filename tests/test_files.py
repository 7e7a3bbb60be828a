"""Files that are there whole or not at all, whatever breaks on the way."""

import json
import os
import stat
import threading
import warnings

import pytest
from matplotlib.figure import Figure

from matu_flwr import files

PLACES = ["fdopen", "fsync", "replace"]


def crash(*_, **__):
    raise OSError(28, "No space left on device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, place):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, place, crash)
        with pytest.raises(OSError, match="No space left"):
            files.write_json(path, {"new": 2})
    assert names(tmp_path) == ["a.json"]
    assert json.loads(path.read_text()) == {"old": 1}


def test_an_error_of_the_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"old")

    def half():
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            assert path.read_bytes() == b"old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert (names(tmp_path), path.read_bytes()) == (["a.bin"], b"old")


def test_content_reaches_the_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    done = []
    flush, replace = os.fsync, os.replace

    def flushed(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        flush(handle)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", lambda *arguments: (done.append("name"), replace(*arguments)))
    files.write_text(tmp_path / "a", "x")
    assert done == ["file", "name", "folder"]
    done.clear()
    with files.new_folder(tmp_path / "b", mode=0o755) as work:
        (work / "one").write_text("1")
        (work / "two").write_text("2")
    assert done == ["file", "file", "folder", "name", "folder"]


def test_json_for_people(tmp_path):
    files.write_json(tmp_path / "a", {"b": "τ", "a": [1]})
    assert (tmp_path / "a").read_text(encoding="utf-8") == '{\n "b": "τ",\n "a": [\n  1\n ]\n}\n'


def test_a_mode_is_less_what_the_umask_takes_away(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "shared", b"")
        files.write_bytes(tmp_path / "private", b"", mode=0o600)
        with files.new_folder(tmp_path / "folder", mode=0o755) as work:
            assert stat.S_IMODE(work.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert found == {"shared": 0o640, "private": 0o600, "folder": 0o755}


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_folder_is_there_with_all_its_files_or_not_at_all(tmp_path, monkeypatch, place):
    def fill():
        with files.new_folder(tmp_path / "entry", mode=0o755) as work:
            (work / "one").write_text("1")
            assert names(tmp_path) == [work.name]

    with monkeypatch.context() as patch:
        patch.setattr(os, place, crash)
        with pytest.raises(OSError, match="No space left"):
            fill()
    assert names(tmp_path) == []
    fill()
    assert (names(tmp_path), names(tmp_path / "entry")) == (["entry"], ["one"])


def test_a_folder_with_files_is_not_replaced(tmp_path):
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry" / "mine").touch()
    with pytest.raises(OSError, match="not empty"), files.new_folder(tmp_path / "entry", mode=0o755) as work:
        (work / "other").touch()
    assert (names(tmp_path), names(tmp_path / "entry")) == (["entry"], ["mine"])


def test_many_writers_of_one_file(tmp_path):
    """Whoever reads sees one writer's content, whole."""
    path, wrong = tmp_path / "a", []
    contents = [bytes([n]) * 100_000 for n in range(4)]
    files.write_bytes(path, contents[0])
    writers = [threading.Thread(target=lambda c=c: [files.write_bytes(path, c) for _ in range(10)]) for c in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        wrong += [] if path.read_bytes() in contents else [1]
    assert (wrong, names(tmp_path)) == ([], ["a"])


def test_a_picture_draws_texts_as_they_are(tmp_path):
    """A dollar sign starts a formula in matplotlib, and one that it does not know is an error."""
    name = r"$\\mathds{R}$"
    figure = Figure(figsize=(3, 2))
    axes = figure.add_subplot()
    axes.set_title(name)
    axes.set_yticks([0, 1], [name, "b"])
    axes.annotate(name, (0, 0))
    axes.legend([axes.plot([0, 1])[0]], [name])
    figure.text(0, 0, f"{name} \N{CJK UNIFIED IDEOGRAPH-6811}")  # a letter that the font does not have
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files.write_picture(tmp_path / "a.png", figure, bbox_inches="tight")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert names(tmp_path) == ["a.png"]
