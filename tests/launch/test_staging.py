"""What of a checkout goes to Flower, and the folders that a run has for itself."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from matu_flwr.launch import staging
from matu_flwr.launch.staging import StagingError, short_folder, stage, workplace


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def app(tmp_path):
    folder = tmp_path / "checkout"
    write(folder, "server_app.py", "pkg/core.py")
    (folder / "pyproject.toml").write_text("")
    return folder


APP = ["pkg/core.py", "pyproject.toml", "server_app.py"]


def test_only_what_a_bundle_can_hold_is_staged(app, tmp_path):
    write(app, "pkg/suites/a.yaml", "LICENSE", ".gitignore")
    write(app, ".venv/lib/x.py", "env/pyvenv.cfg", "env/x.py", "runs/old/summary.json", "pkg/__pycache__/core.py")
    write(app, "big.safetensors", "comparisons/a.json")
    write(tmp_path / "staged", "left_over.py")
    staged = stage(app, tmp_path / "staged")
    assert files(staged) == sorted([*APP, "pkg/suites/a.yaml", "LICENSE", ".gitignore"])


def test_a_folder_named_runs_inside_the_package_is_staged(app, tmp_path):
    write(app, "pkg/runs/a.py")
    assert "pkg/runs/a.py" in files(stage(app, tmp_path / "s"))


def test_only_folders_that_the_bundle_takes_from_are_looked_into(app, tmp_path, monkeypatch):
    (app / "pyproject.toml").write_text('[tool.flwr.app]\nfab-include = ["server_app.py", "./pkg/**/*.py"]\n')
    write(app, "data/labels/a.json", "notes.md")
    looked = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: (looked.append(Path(folder).name), scandir(folder))[1])
    staged = stage(app, tmp_path / "s")
    assert looked[:2] == ["checkout", "pkg"]
    assert "data" not in looked
    monkeypatch.undo()
    assert files(staged) == APP


@pytest.mark.parametrize("line", ['fab-include = ["**/*.py"]', "fab-include = 3", "fab-include = [", ""])
def test_an_app_that_does_not_say_what_it_takes_is_staged_whole(app, tmp_path, line):
    (app / "pyproject.toml").write_text(f"[tool.flwr.app]\n{line}\n")
    write(app, "other/a.py")
    assert "other/a.py" in files(stage(app, tmp_path / "s"))


def test_odd_things_in_a_checkout_are_left_out_and_named(app, tmp_path, monkeypatch):
    (app / "pkg" / ".#core.py").symlink_to("somebody@host.123:1")  # the lock of Emacs
    (app / "pkg" / "gone.py").symlink_to("/mnt/gone.py")
    (app / "pkg" / "circle.py").symlink_to("circle.py")
    (app / "data").symlink_to("/mnt/gone")
    (app / "here").symlink_to(".")
    (app / "pkg" / "up").symlink_to("..")
    os.mkfifo(app / "pkg" / "pipe.yaml")
    os.mkfifo(app / "pkg" / "pipe")
    monkeypatch.chdir(app / "pkg")  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("talk.json")
        said = []
        staged = stage(app, tmp_path / "s", said.append)
    assert files(staged) == APP
    (line,) = said
    assert line == (
        "left out of the app's bundle: pkg/circle.py (Too many levels of symbolic links), pkg/gone.py (a link to "
        "/mnt/gone.py, which is not there), pkg/pipe.yaml (no regular file), pkg/talk.json (no regular file)"
    )


def test_a_file_that_cannot_be_read_is_left_out_and_named(app, tmp_path, monkeypatch):
    write(app, "pkg/secret.py")

    def copyfile(source, target):
        if source.name == "secret.py":
            raise PermissionError(13, "Permission denied")
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(staging.shutil, "copyfile", copyfile)
    said = []
    assert files(stage(app, tmp_path / "s", said.append)) == APP
    assert said == ["left out of the app's bundle: pkg/secret.py (Permission denied)"]


def test_files_and_folders_behind_links_are_staged(app, tmp_path):
    write(tmp_path / "elsewhere", "lib/a.py", "b.py")
    (app / "lib").symlink_to(tmp_path / "elsewhere" / "lib")
    (app / "b.py").symlink_to(tmp_path / "elsewhere" / "b.py")
    assert files(stage(app, tmp_path / "s")) == sorted([*APP, "lib/a.py", "b.py"])


def test_a_copy_of_a_read_only_checkout_can_be_removed(app, tmp_path):
    (app / "pkg" / "core.py").chmod(0o444)
    (app / "pkg").chmod(0o555)
    staged = stage(app, tmp_path / "s")
    (app / "pkg").chmod(0o755)
    assert stat.S_IMODE((staged / "pkg").stat().st_mode) & stat.S_IWUSR


def test_a_checkout_may_hold_the_place_of_its_copy(app):
    staged = stage(app, app / "here" / "staged")
    assert files(staged) == APP


# --- folders of a run ---


def test_each_run_has_folders_of_its_own_which_go_with_it(tmp_path):
    base = tmp_path / ".flwr"
    with workplace(base) as one, workplace(base) as other:
        assert len({one.home, other.home, one.ray, other.ray}) == 4
        assert one.kernels == other.kernels == base / "kernels"
        assert {stat.S_IMODE(folder.stat().st_mode) for folder in (one.home, one.ray)} == {0o700}
        assert (one.home.parent, other.home.parent) == (base, base)
    assert not any(folder.exists() for folder in (one.home, other.home, one.ray, other.ray))


def test_what_a_killed_run_left_is_removed_and_what_is_at_work_stays(tmp_path):
    base = tmp_path / ".flwr"
    code = (
        "import sys, os, pathlib; from matu_flwr.launch.staging import own_folder, short_folder, RAY\n"
        "home, lock = own_folder(pathlib.Path(sys.argv[1])); ray = short_folder(); (home / RAY).symlink_to(ray)\n"
        "print(home, ray, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(base)], capture_output=True, text=True, check=False)
    home, ray = map(Path, done.stdout.split())
    assert home.is_dir()
    assert ray.is_dir()
    mine = base / "run-of-somebody"  # a name that only looks like one of ours is no reason to follow its link
    mine.mkdir()
    (tmp_path / "precious").mkdir()
    (mine / "ray-files").symlink_to(tmp_path / "precious")
    with workplace(base) as first, workplace(base):
        assert first.home.is_dir()
        assert not home.exists()
        assert not ray.exists()
    assert (tmp_path / "precious").is_dir()


@pytest.mark.parametrize("way", ["file", "link", "no locks"])
def test_where_nothing_can_be_written_the_temporary_folder_is_used(tmp_path, monkeypatch, way):
    base = tmp_path / "read-only" / ".flwr"
    base.parent.mkdir()
    if way == "file":
        base.write_text("")
    elif way == "link":
        base.symlink_to(tmp_path / "nowhere" / "at" / "all")
        (tmp_path / "nowhere").write_text("")
    else:

        def no_locks(*_, **__):
            raise NotImplementedError("FileSystem does not appear to support flock")

        monkeypatch.setattr(FileLock, "acquire", no_locks)
    said = []
    with workplace(base, said.append) as place:
        assert place.home.is_relative_to(place.ray)
        assert place.kernels is None
        (place.home / "a").write_text("")
    assert not place.ray.exists()
    (line,) = said
    assert line.startswith(f"{base} cannot be used (")
    assert line.endswith(f"Flower's files of this run go to {place.home}")


def test_a_long_temporary_folder_is_not_used_for_sockets(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    found = short_folder()
    found.rmdir()
    name = "ray/session_2026-11-30_16-26-39_716467_1234567/sockets/plasma_store"
    assert len(str(found / name)) <= 107
    assert not list(long.iterdir())


def test_without_a_short_folder_the_setting_to_give_is_named(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging.tempfile, "mkdtemp", full)
    with pytest.raises(StagingError, match=r"none of .*/tmp, .* can be written and has a path .*; set TMPDIR"):
        short_folder()
