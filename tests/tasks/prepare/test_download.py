"""The downloader against a server on this machine, well-behaved and not."""

import hashlib
import http.server
import threading

import numpy as np
import pytest

from matu_flwr.tasks import TaskError
from matu_flwr.tasks.prepare.download import fetch

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, from the byte asked for if the server knows ranges; cuts connections as often as told."""

    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range", ""))
        if self.path != "/file.bin":
            return self.send_error(404)
        start = int(asked[6:-1]) if server.ranges and (asked := self.headers.get("Range")) else 0
        if server.ranges and start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = len(CONTENT)
        if server.cuts:
            server.cuts -= 1
            end = start + 1_200_000
        self.wfile.write(CONTENT[start:end])
        return None

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.ranges, server.cuts, server.asked = True, 0, []
        server.url = f"http://127.0.0.1:{server.server_address[1]}/file.bin"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server, target, md5=MD5, urls=None, **options):
    return fetch("task", urls or [server.url], target, md5, pause=0.01, timeout=5, **options)


def test_fresh_then_nothing(server, tmp_path):
    target, seen = tmp_path / "deep" / "file.bin", []
    assert get(server, target, progress=lambda have, total: seen.append((have, total)))
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert not list(tmp_path.rglob("*.part"))
    assert not get(server, target)
    assert server.asked == [""]


def test_a_cut_connection_goes_on_from_the_byte_it_reached(server, tmp_path):
    server.cuts = 2
    assert get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked == ["", "bytes=1200000-", "bytes=2400000-"]


def test_what_an_earlier_call_left_is_continued(server, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("matu_flwr.tasks.prepare.download._ATTEMPTS", 1)
        server.cuts = 1
        text = (
            r"task 'task': file.bin could not be downloaded \(http://127.*: the connection was cut \(1200000 of 3000000"
        )
        with pytest.raises(TaskError, match=text):
            get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin.part").stat().st_size == 1_200_000
    assert get(server, tmp_path / "file.bin")
    assert server.asked == ["", "bytes=1200000-"]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_that_is_whole_already(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_of_another_file_is_thrown_away(server, tmp_path):
    for rubbish in (b"x" * 1000, b"x" * (len(CONTENT) + 5)):
        (tmp_path / "file.bin.part").write_bytes(rubbish)
        assert get(server, tmp_path / "file.bin")
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
        (tmp_path / "file.bin").unlink()


def test_a_server_without_ranges(server, tmp_path):
    server.ranges = False
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1_000_000])
    assert get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_wrong_checksum(server, tmp_path):
    text = rf"task 'task': file.bin could not be downloaded \(.*: its MD5 is {MD5}, expected {'0' * 32}\): try again "
    with pytest.raises(TaskError, match=text):
        get(server, tmp_path / "file.bin", md5="0" * 32)
    assert server.asked == [""]  # the same answer again would help nobody
    assert not list(tmp_path.glob("file.bin*"))


def test_a_damaged_file_is_replaced(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT[:-1])
    assert get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_the_next_address_is_tried(server, tmp_path):
    missing = server.url.replace("file.bin", "gone.bin")
    assert get(server, tmp_path / "file.bin", urls=[missing, server.url])
    assert len(server.asked) == 2
    with pytest.raises(TaskError, match=r"gone.bin: the server answers 404 Not Found\): try again \(an unfinished"):
        get(server, tmp_path / "other.bin", urls=[missing])


def test_no_route(tmp_path):
    with pytest.raises(
        TaskError, match=r"task 'task': file.bin .*127.0.0.1:9/file.bin: no connection .* put it at .*file"
    ):
        fetch("task", ["http://127.0.0.1:9/file.bin"], tmp_path / "file.bin", MD5, pause=0.01)


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "blocked").write_text("a file")
    with pytest.raises(TaskError, match=r"task 'task': cannot write .*blocked/file.bin: .* choose another data folder"):
        get(server, tmp_path / "blocked" / "file.bin")


def test_a_full_disk(server, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(TaskError, match=r"cannot write .*file.bin: 3000000 bytes are still missing, and the disk has"):
        get(server, tmp_path / "file.bin")


def test_a_broken_tls_record_is_a_cut_connection(server, tmp_path, monkeypatch):
    import http.client
    import ssl

    read, broken = http.client.HTTPResponse.read, []

    def breaking(self, size=None):
        if not broken:
            broken.append(True)
            raise ssl.SSLError("EOF occurred in violation of protocol")
        return read(self, size)

    monkeypatch.setattr(http.client.HTTPResponse, "read", breaking)
    assert get(server, tmp_path / "file.bin")
    assert broken
