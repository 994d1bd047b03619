"""Tests that files are downloaded completely or not at all, and archives unpacked into their folder."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sage.data.fetch import DataError, checked, download, sha256_of, unpack

BODY = b"a benchmark's data " * 9999
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()


class Mirror(BaseHTTPRequestHandler):
    """A web server with a complete, a damaged, and a truncated file, and one for the second try."""

    flaky = True

    def do_GET(self) -> None:
        if self.path == "/absent" or (self.path == "/flaky" and Mirror.flaky):
            Mirror.flaky = False
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        body = {"/damaged": BODY.replace(b"d", b"b"), "/short": BODY[:-1]}.get(self.path, BODY)
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the address of a server on the loopback."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(Mirror, "flaky", True)
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("sums", [{"sha256": SHA256}, {"md5": MD5}, {}], ids=["sha256", "md5", "none"])
def test_a_complete_file_gets_its_name(mirror: str, tmp_path: Path, sums: dict[str, Any]) -> None:
    path = download([f"{mirror}/whole"], tmp_path / "new" / "file", **sums)
    assert path == tmp_path / "new" / "file"
    assert path.read_bytes() == BODY
    assert sha256_of(path) == SHA256
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("bad", ["absent", "damaged", "short"])
def test_a_bad_mirror_is_skipped(mirror: str, tmp_path: Path, bad: str) -> None:
    path = download([f"{mirror}/{bad}", f"{mirror}/whole"], tmp_path / "file", sha256=SHA256)
    assert path.read_bytes() == BODY


def test_a_mirror_is_tried_again(mirror: str, tmp_path: Path) -> None:
    assert download([f"{mirror}/flaky"], tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize(("bad", "reason"), [("absent", "404"), ("damaged", f"not {SHA256}")])
def test_if_every_mirror_is_bad_no_file_is_left(mirror: str, tmp_path: Path, bad: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        download([f"{mirror}/{bad}"], tmp_path / "file", sha256=SHA256)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"file could not be fetched:\s+file:///nowhere"):
        download(["file:///nowhere"], tmp_path / "file")


def test_a_good_file_is_not_fetched_again_and_a_damaged_one_is(mirror: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(BODY)
    download([f"{mirror}/absent"], path, sha256=SHA256)
    path.write_bytes(b"damaged")
    assert download([f"{mirror}/whole"], path, sha256=SHA256).read_bytes() == BODY


def test_a_checked_file_exists_and_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(DataError, match=r"file is missing: run `sage data prepare digits`"):
        checked(path, sha256=SHA256, dataset="digits")
    path.write_bytes(b"damaged")
    found = hashlib.md5(b"damaged").hexdigest()
    with pytest.raises(
        DataError, match=rf"file is damaged, its md5 is {found}, not {MD5}: run `sage data prepare digits`"
    ):
        checked(path, md5=MD5, dataset="digits")
    path.write_bytes(BODY)
    assert checked(path, sha256=SHA256, md5=MD5) == path


def tar(path: Path, name: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(BODY)
        archive.addfile(member, io.BytesIO(BODY))
    return path


def zipped(path: Path, name: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, BODY)
    return path


@pytest.mark.parametrize("pack", [tar, zipped])
def test_an_archive_is_unpacked_into_its_folder_and_nowhere_else(
    tmp_path: Path, pack: Callable[[Path, str], Path]
) -> None:
    folder = unpack(pack(tmp_path / "good", "a/b"), tmp_path / "into")
    assert (folder / "a" / "b").read_bytes() == BODY
    with pytest.raises(DataError, match="is not unpacked"):
        unpack(pack(tmp_path / "evil", "../escaped"), tmp_path / "into")
    assert not (tmp_path / "escaped").exists()


def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(BODY)
    with pytest.raises(DataError, match="neither a tar nor a zip"):
        unpack(path, tmp_path / "into")
