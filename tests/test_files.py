"""Files that are there whole or not at all, whatever breaks on the way."""

import json
import os
import stat
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from safetensors import safe_open
from safetensors.torch import save_file

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
    assert found == {"shared": 0o640, "private": 0o600, "folder": 0o750}


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


def test_equal_tensors_and_metadata_give_equal_files(tmp_path):
    """The names hold whatever JSON writes in another way than a person does."""
    metadata = {name: name for name in ("a", "θ", '"', "\\", "\n", "\x01", "\x7f", "\u2028", "🌱", "/")}
    tensors = {name: torch.arange(5.0) for name in ("x", "é/\t", "y")}
    written = set()
    for shift in range(len(metadata)):
        keys = [*metadata][shift:] + [*metadata][:shift]
        files.write_tensors(tmp_path / "a", tensors, {key: metadata[key] for key in keys})
        written.add((tmp_path / "a").read_bytes())
    assert len(written) == 1
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert file.metadata() == metadata
        assert all(file.get_tensor(name).tolist() == [0, 1, 2, 3, 4] for name in tensors)
    assert names(tmp_path) == ["a"]


# --- who may read what ---


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    return {str(p.relative_to(folder)): stat.S_IMODE(p.stat().st_mode) for p in sorted(folder.rglob("*"))}


def test_tensors_follow_the_umask_like_every_other_file(tmp_path, umask):
    with files.replacing(tmp_path / "tensors") as temporary:
        save_file({"a": torch.zeros(2)}, temporary)  # makes it 0600, whatever the umask
    files.write_text(tmp_path / "text", "")
    assert set(modes(tmp_path).values()) == {0o666 & ~umask}


def test_the_list_of_who_may_access_a_folder_counts(tmp_path, monkeypatch):
    granted = os.open

    def opened(path, flags, mode=0o777, **options):
        return granted(path, flags, mode & 0o664, **options)  # as a folder whose list gives the group all

    monkeypatch.setattr(os, "open", opened)
    before = os.umask(0)
    try:
        files.write_text(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert modes(tmp_path) == {"a": 0o664}


def test_private_folders_are_for_their_owner_whatever_the_umask(tmp_path, umask):
    (tmp_path / "there").mkdir()
    before = modes(tmp_path)
    files.private_folder(tmp_path / "there" / "one" / "two")
    files.private_folder(tmp_path / "there" / "one" / "two")
    assert modes(tmp_path) == before | {"there/one": 0o700, "there/one/two": 0o700}


# --- folders that nobody else has ---


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    wanted = tmp_path / "runs" / "now"
    assert [files.exclusive_folder(wanted).name for _ in range(3)] == ["now", "now-2", "now-3"]
    (tmp_path / "runs" / "now-4").write_text("a file")
    assert files.exclusive_folder(wanted).name == "now-5"


def test_many_at_once_get_a_folder_each(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: files.exclusive_folder(tmp_path / "now"), range(64)))
    assert len(set(found)) == 64


def test_obstacles_are_said_and_nothing_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "dead").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    before = names(tmp_path)
    assert files.obstacle(tmp_path) == files.obstacle(tmp_path / "new" / "below") == ""
    assert files.obstacle(tmp_path / "file") == f"{tmp_path}/file is a file, expected a folder"
    assert files.obstacle(tmp_path / "file" / "below") != ""
    assert files.obstacle(tmp_path / "dead" / "x") == f"{tmp_path}/dead is a link that leads nowhere, expected a folder"
    assert files.obstacle(tmp_path / "circle" / "x") != ""
    assert files.obstacle(tmp_path / ("x" * 300)) != ""
    assert files.obstacle(tmp_path / "nul\0") != ""
    assert names(tmp_path) == before
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert files.obstacle(tmp_path / "new") == f"{tmp_path} may not be written by this user"
    read_only = SimpleNamespace(f_flag=os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda _: read_only)
    assert files.obstacle(tmp_path / "new") == f"{tmp_path} is on a read-only file system"


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
