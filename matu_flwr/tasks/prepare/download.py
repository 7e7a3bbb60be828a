"""Downloads that go on where they were cut off, and count only when their checksum is right."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from matu_flwr.files import put
from matu_flwr.tasks.errors import TaskError

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes expected (0 = not known)."""

_CHUNK = 1 << 20
_ATTEMPTS = 3  # per address; a cut connection goes on from the byte it reached
_AGENT = "matu-flwr"


def md5_of(path: Path) -> str:
    """MD5 of a file: against damage on the way, not against an attacker; it is what the publishers give."""
    found = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def fetch(
    task: str,
    urls: Sequence[str],
    target: Path,
    md5: str,
    *,
    progress: Progress | None = None,
    timeout: float = 30.0,
    pause: float = 1.0,
) -> bool:
    """Download a file, unless it is there with the right checksum.

    It is written to ``<target>.part``, which a later call continues, and renamed once its MD5 is right.

    Parameters
    ----------
    task : str
        Name of the task, for messages.
    urls : sequence of str
        Addresses of the same file; the next is tried when one fails.
    target : Path
        Where the file goes.
    md5 : str
        Its checksum, in hexadecimal digits.
    progress : callable, optional
        Told how far it is.
    timeout : float
        Seconds without a byte after which a connection counts as cut.
    pause : float
        Seconds before a second attempt; doubled before the third.

    Returns
    -------
    bool
        Whether anything was downloaded.

    Raises
    ------
    TaskError
        When no address gives the file with this checksum, or it cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if target.is_file() and md5_of(target) == md5:
                return False
            failures = []
            for url in urls:
                failure = _from(url, part, md5, progress, timeout, pause)
                if failure is None:
                    put(part, target)
                    return True
                failures.append(f"{url}: {failure}")
    except OSError as error:
        raise TaskError(
            f"task {task!r}: cannot write {target}: {error}; make room or choose another data folder"
        ) from error
    raise TaskError(
        f"task {task!r}: {target.name} could not be downloaded ({'; '.join(failures)}): try again, an unfinished "
        f"download goes on; or get it elsewhere and put it at {target} (MD5 {md5})"
    )


def _from(url: str, part: Path, md5: str, progress: Progress | None, timeout: float, pause: float) -> str | None:
    """Fetch from one address; None if the whole file is there, else why not."""
    failure = "no attempt"
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        resumed = part.exists()
        try:
            _go_on(url, part, progress, timeout)
        except urllib.error.HTTPError as error:
            failure = f"the server answers {error.code} {error.reason}"
            error.close()
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and error.code < 500:
                return failure  # 404 and the like will not change
            if error.code < 500:
                part.unlink(missing_ok=True)  # what is there is no beginning of this file
            continue
        except urllib.error.URLError as error:
            failure = f"no connection ({error.reason})"
            continue
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            failure = f"the connection was cut ({error or type(error).__name__})"
            continue
        if (found := md5_of(part)) == md5:
            return None
        part.unlink()
        failure = f"its MD5 is {found}, expected {md5}"
        if not resumed:
            return failure
        # what was resumed may have been the beginning of another file: once more from the first byte
    return failure


def _go_on(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    """Ask for what is missing of a file, and append it."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": _AGENT})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        size = error.headers.get("Content-Range", "").rpartition("/")[2]
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and size == str(have):
            error.close()
            return  # nothing is missing
        raise
    with response:
        # A server that does not know ranges answers 200 and sends everything.
        begins = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT and begins
        have = have if resumed else 0
        length = int(response.headers.get("Content-Length") or 0)
        expected = have + length if length else 0
        if length > shutil.disk_usage(part.parent).free:
            raise OSError(f"{length} bytes are missing, more than is free there")
        with part.open("ab" if resumed else "wb") as stream:
            while chunk := _read(response):
                stream.write(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(have, expected)
    if expected and have < expected:
        raise ConnectionError(f"{have} of {expected} bytes arrived")


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next bytes; whatever breaks on the way (TLS too) is a cut connection, and no fault of the disk."""
    try:
        return response.read(_CHUNK)
    except OSError as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
