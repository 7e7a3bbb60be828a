"""Copying the app's files for Flower, and a folder of its own for each run.

Two runs of one checkout share nothing that is written: each has a folder with its copy of the app, Flower's home, and
a folder for Ray's sockets. All are removed when the run ends. What a killed run has left is removed at a later start.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from matu_flwr.texts import Brief, some

# Kinds of files that Flower puts into an app bundle.
BUNDLED = (".py", ".toml", ".md", ".yaml", ".yml", ".json")
ALSO = ("LICENSE", ".gitignore", "pyproject.toml")
# Folders of results, which may be large.
RESULTS = ("runs", "comparisons")
PREFIX, LOCK, RAY = "run-", ".lock", "ray-files"
SHORT_PREFIX = "matu-"
# Longest path of a folder under which Ray's sockets fit. The path of a socket has at most 107 bytes (macOS: 103), and
# Ray adds 69: /ray/session_<date>_<time>_<µs>_<process>/sockets/plasma_store.
LONGEST = (107 if sys.platform == "linux" else 103) - 69


class StagingError(Brief, RuntimeError):
    """There is no place for a run's own files; the text says what was tried, and which setting helps."""


# --- the app ---------------------------------------------------------------------------------------------------------


def stage(app_dir: Path, target: Path, say: Callable[[str], None] = lambda text: None) -> Path:
    """Copy the files that belong into an app bundle to `target`, and return that folder.

    `flwr run` looks at every file below the app's folder before it chooses. With a virtual environment beside the code
    that takes three seconds at every start; with data sets it takes minutes. So only folders from which `fab-include`
    of the app's pyproject.toml takes something are looked into.

    Only regular files are copied, and files behind links. Dead links, circles of links, sockets, pipes, and files that
    cannot be read are left out; `say` is told which of them would have belonged into the bundle.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    skipped: list[str] = []
    wanted = included(app_dir)

    def copy(folder: Path, to: Path, above: frozenset[tuple[int, int]]) -> None:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(f"{folder.relative_to(app_dir)} ({error.strerror})")
            return
        top = not above
        for entry in entries:
            name, path = entry.name, Path(entry.path)
            bundled = path.suffix in BUNDLED or name in ALSO
            # Emacs locks a file that is being edited by a link `.#name` that leads nowhere.
            if name.startswith(".#") or (top and not ({name, "*"} & wanted or name in ALSO)):
                continue
            try:
                found = entry.stat()
                if stat.S_ISDIR(found.st_mode):
                    this = (found.st_dev, found.st_ino)
                    left_out = name.startswith((".", "__")) or (top and name in RESULTS)
                    # A link to a folder above would never end.
                    if left_out or this in above | {root, place} or (path / "pyvenv.cfg").exists():
                        continue
                    copy(path, to / name, above | {this})
                elif bundled and stat.S_ISREG(found.st_mode):
                    to.mkdir(parents=True, exist_ok=True)
                    # The content alone: a copy of a read-only file could not be removed everywhere.
                    shutil.copyfile(path, to / name)
                elif bundled:
                    skipped.append(f"{path.relative_to(app_dir)} (no regular file)")
            except OSError as error:
                if bundled:
                    skipped.append(f"{path.relative_to(app_dir)} ({reason(path, error)})")

    root, place = identity(app_dir), identity(target)
    copy(app_dir, target, frozenset())
    if skipped:
        say(f"left out of the app's bundle: {some(skipped)}")
    return target


def included(app_dir: Path) -> set[str]:
    """Return the names in the app's folder from which its bundle takes something; "*" stands for all of them."""
    try:
        text = (app_dir / "pyproject.toml").read_text(encoding="utf-8")
        patterns = tomllib.loads(text)["tool"]["flwr"]["app"]["fab-include"]
        names = {str(pattern).removeprefix("./").split("/")[0] for pattern in patterns}
    # An app that does not say, or says it wrongly: Flower will say so in its own words.
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError):
        return {"*"}
    return {"*"} if any(set(name) & set("*?[") for name in names) else names


def identity(path: Path) -> tuple[int, int]:
    """Return what tells a file or folder from all others, whatever links lead to it."""
    found = path.stat()
    return found.st_dev, found.st_ino


def reason(path: Path, error: OSError) -> str:
    """Say in words why a file cannot be copied."""
    if path.is_symlink() and isinstance(error, FileNotFoundError):
        return f"a link to {path.readlink()}, which is not there"
    return error.strerror or str(error)


# --- a folder for each run -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workplace:
    """Folders of one run.

    Attributes
    ----------
    home : Path
        Flower's folder, and the working directory of every process that Flower starts. Ray puts that directory first on
        the clients' import path, so in a checkout it would import the files there and not those of the bundle.
    ray : Path
        Folder with a short path, for Ray's sockets and logs.
    kernels : Path or None
        Folder for compiled functions, which runs share; None where nothing outlives the run.
    """

    home: Path
    ray: Path
    kernels: Path | None


@contextlib.contextmanager
def workplace(base: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[Workplace]:
    """Make the folders of one run, and remove them when the block ends.

    They are made in `base`. If that cannot be written, as in a checkout on a read-only file system, they are made in
    the temporary folder, and `say` is told so.

    Raises
    ------
    StagingError
        Neither can be written, or there is no short path for Ray.
    """
    with contextlib.ExitStack() as stack:
        ray = short_folder()
        stack.callback(shutil.rmtree, ray, ignore_errors=True)
        try:
            home, lock = own_folder(base)
            kernels: Path | None = base / "kernels"
        # NotImplementedError: a file system without locks.
        except (OSError, NotImplementedError) as error:
            # The folder with the short path is also a folder of this run alone.
            home, lock, kernels = ray / "home", None, None
            home.mkdir()
            say(f"{base} cannot be used ({error}): Flower's files of this run go to {home}")
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        if lock is not None:
            stack.callback(lock.release)
            (home / RAY).symlink_to(ray)
        yield Workplace(home, ray, kernels)


def own_folder(base: Path) -> tuple[Path, FileLock]:
    """Make a folder in `base` that no other run has, and lock it; and remove those of runs that are no more."""
    base.mkdir(parents=True, exist_ok=True)
    # Whoever looks for leftovers must not see a folder between its making and its locking.
    with FileLock(base / LOCK):
        remove_leftovers(base)
        home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        lock = FileLock(home / LOCK)
        lock.acquire()
    return home, lock


def remove_leftovers(base: Path) -> None:
    """Remove the folders of runs that were killed. The kernel drops a lock when its process dies, however it dies."""
    for folder in base.glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
                continue
            with FileLock(folder / LOCK, timeout=0):
                ray = (folder / RAY).readlink() if (folder / RAY).is_symlink() else None
                # The link lies in a folder that only its owner can write; the name is checked all the same.
                if ray is not None and ray.name.startswith(SHORT_PREFIX) and ray.is_dir():
                    shutil.rmtree(ray, ignore_errors=True)
                shutil.rmtree(folder, ignore_errors=True)
        # At work, or not ours to remove.
        except (Timeout, OSError):
            continue


def short_folder() -> Path:
    """Make a folder whose path is short enough for Ray's sockets, for this user only.

    Raises
    ------
    StagingError
        No temporary folder can be written, or all have too long a path.
    """
    named = [os.environ.get("RAY_TMPDIR", ""), os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp", "/dev/shm"]
    folders = list(dict.fromkeys(str(Path(name).absolute()) for name in named if name))
    for folder in folders:
        # 9 = a slash and what mkdtemp makes up.
        if len(os.fsencode(folder)) + len(SHORT_PREFIX) + 9 <= LONGEST:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix=SHORT_PREFIX, dir=folder))
    raise StagingError(
        f"there is no place for the sockets of Ray, which runs the simulated clients: none of {', '.join(folders)} can "
        f"be written and has a path of at most {LONGEST - len(SHORT_PREFIX) - 9} characters; set TMPDIR to such a one"
    )
