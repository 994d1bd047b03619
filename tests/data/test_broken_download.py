"""Tests that a broken download is continued, from servers that break off, ignore ranges or change files."""

import fcntl
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sage.data.fetch import DataError, download

BODY = bytes(range(256)) * 40
OTHER = BODY[::-1]
SHA256, OTHER_SHA256 = (hashlib.sha256(body).hexdigest() for body in (BODY, OTHER))


class Server(ThreadingHTTPServer):
    """A server of one file, which notes the ranges that were requested of it."""

    body = BODY
    etag = ""
    modified = ""
    breaks_after: int | None = None
    """Bytes of a body after which the connection is closed; None: never."""
    has_ranges = True
    shift = 0
    """Bytes by which a range that is sent begins too late."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        asked, wanted = self.headers.get("Range"), self.headers.get("If-Range")
        server.asked.append(asked)
        start = 0
        if asked and server.has_ranges and wanted in (None, server.etag, server.modified):
            start = int(asked.removeprefix("bytes=").removesuffix("-")) + server.shift
        if start and start >= len(server.body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.modified:
            self.send_header("Last-Modified", server.modified)
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        self.wfile.write(server.body[start:][: server.breaks_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def break_off(server: Server, path: Path, sha256: str | None = SHA256) -> Path:
    """Download 4,000 bytes, and return the partial file."""
    server.breaks_after = 4000
    with pytest.raises(DataError, match=f"after 4000 of {len(BODY)} bytes"):
        download([server.url], path, sha256=sha256, attempts=1)
    server.breaks_after = None
    server.asked.clear()
    (partial,) = path.parent.glob("*.partial")
    assert partial.read_bytes() == BODY[:4000]
    return partial


@pytest.mark.parametrize("sha256", [SHA256, None])
@pytest.mark.parametrize(
    ("etag", "modified"), [('"1"', ""), ('W/"1"', "Sun, 06 Nov 1994 08:49:37 GMT"), ("", "")]
)
def test_a_next_call_continues_a_file_whose_version_can_be_compared(
    server: Server, tmp_path: Path, sha256: str | None, etag: str, modified: str
) -> None:
    server.etag, server.modified = etag, modified
    break_off(server, tmp_path / "file", sha256)
    assert download([server.url], tmp_path / "file", sha256=sha256).read_bytes() == BODY
    assert server.asked == ["bytes=4000-" if sha256 or etag else None]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_retry_continues_after_each_break(server: Server, tmp_path: Path) -> None:
    server.breaks_after = 4000
    assert download([server.url], tmp_path / "file", sha256=SHA256, attempts=3).read_bytes() == BODY
    assert server.asked == [None, "bytes=4000-", "bytes=8000-"]


def test_a_server_that_ignores_ranges_sends_the_file_anew(server: Server, tmp_path: Path) -> None:
    break_off(server, tmp_path / "file")
    server.has_ranges = False
    assert download([server.url], tmp_path / "file", sha256=SHA256).read_bytes() == BODY
    assert server.asked == ["bytes=4000-"]


@pytest.mark.parametrize("etags", [('"1"', '"2"'), ("", "")], ids=["etag", "none"])
def test_a_file_that_changed_in_between_is_fetched_from_its_start(
    server: Server, tmp_path: Path, etags: tuple[str, str]
) -> None:
    server.etag = etags[0]
    break_off(server, tmp_path / "file", OTHER_SHA256)
    server.etag, server.body = etags[1], OTHER
    assert download([server.url], tmp_path / "file", sha256=OTHER_SHA256, attempts=1).read_bytes() == OTHER
    # With an ETag the server sends it anew at once; without one, the checksum shows it.
    assert server.asked == ["bytes=4000-"] + ([] if etags[0] else [None])


def test_a_file_that_became_shorter_is_fetched_from_its_start(server: Server, tmp_path: Path) -> None:
    break_off(server, tmp_path / "file")
    server.body = OTHER[:3000]
    expected = hashlib.sha256(server.body).hexdigest()
    assert download([server.url], tmp_path / "file", sha256=expected, attempts=1).read_bytes() == OTHER[:3000]
    assert server.asked == ["bytes=4000-", None]  # the first is answered by 416


def test_a_damaged_partial_file_is_fetched_once_from_its_start(server: Server, tmp_path: Path) -> None:
    partial = break_off(server, tmp_path / "file")
    partial.write_bytes(b"damaged")
    assert download([server.url], tmp_path / "file", sha256=SHA256, attempts=1).read_bytes() == BODY
    assert server.asked == ["bytes=7-", None]
    partial = break_off(server, tmp_path / "other")
    with pytest.raises(DataError, match=f"not {OTHER_SHA256}"):
        download([server.url], tmp_path / "other", sha256=OTHER_SHA256, attempts=1)
    assert server.asked == ["bytes=4000-", None]
    assert not partial.exists()


def test_another_range_than_the_requested_one_is_refused(server: Server, tmp_path: Path) -> None:
    break_off(server, tmp_path / "file")
    server.shift = 1
    reason = re.escape("asked for the bytes from 4000 on, and sent 'bytes 4001-")
    with pytest.raises(DataError, match=reason):
        download([server.url], tmp_path / "file", sha256=SHA256, attempts=1)
    assert download([server.url], tmp_path / "file", sha256=SHA256).read_bytes() == BODY


def test_a_partial_file_that_another_process_uses_is_left_to_it(server: Server, tmp_path: Path) -> None:
    partial = break_off(server, tmp_path / "file")
    with partial.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert download([server.url], tmp_path / "file", sha256=SHA256).read_bytes() == BODY
    assert server.asked == [None]
    assert partial.read_bytes() == BODY[:4000]
    assert sorted(tmp_path.iterdir()) == sorted([partial, Path(f"{partial}.source"), tmp_path / "file"])


def test_a_link_with_the_name_of_the_partial_file_is_not_followed(server: Server, tmp_path: Path) -> None:
    partial = break_off(server, tmp_path / "file")
    partial.unlink()
    partial.symlink_to(tmp_path / "elsewhere")
    assert download([server.url], tmp_path / "file", sha256=SHA256).read_bytes() == BODY
    assert not (tmp_path / "elsewhere").exists()
