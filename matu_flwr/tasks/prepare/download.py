"""Downloads files. An interrupted download is continued, and a file is accepted only if its checksum is right."""

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
"""Called with the number of bytes that are there, and the number expected (0 = not known)."""

_CHUNK = 1 << 20
# Attempts for each address. After a cut connection the next attempt continues at the byte that was reached.
_ATTEMPTS = 3
_AGENT = "matu-flwr"


def md5_of(path: Path) -> str:
    """MD5 of a file in hexadecimal digits."""
    # MD5 because it is what the publishers of data sets give. It finds damage, but does not stop an attacker.
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
    """Download a file, unless it is already there with the right checksum.

    It is written to ``<target>.part`` and renamed when its MD5 is right. A later call continues a file that is only
    there in part.

    Parameters
    ----------
    task : str
        Name of the task, for errors.
    urls : sequence of str
        Addresses of the file. If one fails, the next is tried.
    target : Path
        Where the file goes.
    md5 : str
        The file's MD5 in hexadecimal digits.
    progress : callable, optional
        Called again and again during the download; see `Progress`.
    timeout : float
        Seconds without a byte after which a connection counts as cut.
    pause : float
        Seconds before the second attempt; the pause before the third is twice as long.

    Returns
    -------
    bool
        Whether the file was downloaded; False if it was there.

    Raises
    ------
    TaskError
        No address gave a file with this checksum, or the file cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Another process that wants the same file waits here, and then finds it.
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
        f"task {task!r}: {target.name} could not be downloaded ({'; '.join(failures)}): try again (an unfinished "
        f"download is continued), or get the file elsewhere and put it at {target} (MD5 {md5})"
    )


def _from(url: str, part: Path, md5: str, progress: Progress | None, timeout: float, pause: float) -> str | None:
    """Download from one address into `part`. None if the file is complete and right, else the reason why not."""
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
            # Errors such as 404 will not go away. Errors from 500 on are the server's and may.
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and error.code < 500:
                return failure
            # The server cannot continue from here, so what was downloaded does not belong to this file.
            if error.code < 500:
                part.unlink(missing_ok=True)
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
        # What was continued may have been the beginning of another file. The next attempt starts at the first byte.
    return failure


def _go_on(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    """Request the missing bytes of a file, and append them to `part`."""
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
            # The server refuses because the file is already complete.
            return
        raise
    with response:
        # A server that does not support ranges answers 200 and sends the whole file.
        begins = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT and begins
        have = have if resumed else 0
        length = int(response.headers.get("Content-Length") or 0)
        expected = have + length if length else 0
        if length > shutil.disk_usage(part.parent).free:
            raise OSError(f"{length} bytes are still missing, and the disk has less space than that")
        with part.open("ab" if resumed else "wb") as stream:
            while chunk := _read(response):
                stream.write(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(have, expected)
    if expected and have < expected:
        raise ConnectionError(f"{have} of {expected} bytes arrived")


def _read(response: http.client.HTTPResponse) -> bytes:
    """Read the next bytes of a response.

    Any failure, also of TLS, becomes a `ConnectionError`. An `OSError` would be taken for a failure of the disk.
    """
    try:
        return response.read(_CHUNK)
    except OSError as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
