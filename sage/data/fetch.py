"""Fetches files from the network and verifies their checksums."""

import hashlib
import http
import http.client
import lzma
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from email.message import Message
from pathlib import Path

from sage.data.partial_file import PartialFile, partial_file
from sage.storage import NotWritten, open_regular
from sage.storage.lock import Locked, locked

_CHUNK = 1 << 20


class DataError(ValueError):
    """A file of a data set is missing, damaged, or cannot be fetched."""


@contextmanager
def preparing(root: Path, name: str, *, is_there: Callable[[], object] | None = None) -> Iterator[bool]:
    """Lock a data set while it is prepared; yield whether there is anything to prepare.

    Args:
        is_there: Raises a DataError if the data set lacks a file. It is called before the lock is acquired,
            because complete data may be in a read-only folder, and again afterwards.

    Raises:
        DataError: if another process is still preparing it after an hour.
    """
    if is_there is not None and not _lacks(is_there):
        yield False
        return
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(root / f".{name}.lock", wait=3600))
        except Locked as error:
            raise DataError(
                f"{name} is being prepared in {root} by {error}: wait until it ends or stop it"
            ) from error
        yield is_there is None or _lacks(is_there)


def _lacks(is_there: Callable[[], object]) -> bool:
    try:
        is_there()
    except DataError:
        return True
    return False


def sha256_of(path: Path) -> str:
    """Compute the sha256 of a file, in hexadecimal."""
    return _sum_of(path, "sha256")


def checked(
    path: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    dataset: str = "NAME",
    remedy: str | None = None,
) -> Path:
    """Return `path` if the file exists and its checksums match; else raise how to fetch `dataset`.

    Args:
        remedy: What to do instead, if the file is not fetched by `sage data prepare`.
    """
    remedy = remedy or f"run `sage data prepare {dataset}`"
    if not path.is_file():
        raise DataError(f"{path} is missing: {remedy}")
    if damage := _damage(path, sha256=sha256, md5=md5):
        raise DataError(f"{path} is damaged, {damage}: {remedy}")
    return path


def download(
    urls: Sequence[str],
    path: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    timeout: float = 30,
    attempts: int = 2,
) -> Path:
    """Download one file from the first mirror that returns it intact, unless it is already present.

    The file is written under a temporary name and renamed after its checksums are verified, so a file with
    the final name is complete. Each mirror is tried up to `attempts` times. If a transfer breaks off, or the
    process is killed, the partial file stays, and the next attempt, or the next call, requests the rest of it
    (RFC 9110, section 14: `Range`, with `If-Range` if the server gave an ETag or Last-Modified). Without a
    checksum, a file is continued only from the same address and if the server gave one of these. If the
    checksums of a file that was continued do not match, it is fetched once more from its start.

    Raises:
        DataError: if no mirror returns the file.
        NotWritten: an OSError, if the file cannot be written, for example because the disk is full. The
            partial file is then removed.
    """
    if path.is_file() and not _damage(path, sha256=sha256, md5=md5):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    with partial_file(path) as part:
        for url in [*urls] * attempts:
            try:
                damage = _fetch(url, part, timeout, sha256=sha256, md5=md5)
            except NotWritten:
                raise
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{url}: {error or type(error).__name__}")
                continue
            if damage:
                part.clear()
                failures.append(f"{url}: {damage}")
                continue
            part.complete(path)
            return path
    raise DataError("\n  ".join([f"{path.name} could not be fetched:", *failures]))


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a tar or zip archive into a folder; raise an error if it would write outside the folder."""
    into.mkdir(parents=True, exist_ok=True)
    try:
        _extract(archive, into)
    except (tarfile.ReadError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(f"{archive} is damaged: {error}: remove it and prepare the data set again") from error
    return into


def _extract(archive: Path, into: Path) -> None:
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            try:
                tar.extractall(into, filter="data")
            except tarfile.FilterError as error:
                raise DataError(f"{archive} is not unpacked: {error}") from error
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for name in zipped.namelist():
                # zipfile would extract such a name to some path inside the folder without an error.
                if not (into / name).resolve().is_relative_to(into.resolve()):
                    raise DataError(f"{archive} is not unpacked: {name!r} is outside {into}")
            zipped.extractall(into)
    else:
        raise DataError(f"{archive} is neither a tar nor a zip archive")


def _sum_of(path: Path, algorithm: str) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _damage(path: Path, **expected: str | None) -> str | None:
    """Describe the first checksum of a file that does not match, or return None."""
    for algorithm, wanted in expected.items():
        if wanted and (found := _sum_of(path, algorithm)) != wanted.lower():
            return f"its {algorithm} is {found}, not {wanted}"
    return None


def _fetch(url: str, part: PartialFile, timeout: float, **expected: str | None) -> str | None:
    """Receive a file, or the rest of it; return what is wrong with its checksums, or None."""
    validator = ""
    may_continue = any(expected.values())
    if part.source is not None and part.source[0] == url:
        validator = part.source[1]
        may_continue = may_continue or bool(validator)
    if not may_continue:
        part.clear()
    if not part.num_bytes:
        _receive(url, part, timeout)
        return _damage(part.path, **expected)
    _receive(url, part, timeout, {"If-Range": validator} if validator else {})
    if not _damage(part.path, **expected):
        return None
    part.clear()
    _receive(url, part, timeout)
    return _damage(part.path, **expected)


def _receive(url: str, part: PartialFile, timeout: float, condition: Mapping[str, str] | None = None) -> None:
    """Receive the bytes that follow those of a partial file, or all bytes if the server does not continue it.

    Args:
        condition: Headers of the request under which the server may continue the file; None: begin anew.
    """
    request = urllib.request.Request(url)
    if condition is not None:
        request.headers = {"Range": f"bytes={part.num_bytes}-", **condition}
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if condition is None or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()
        return _receive(url, part, timeout)
    with response:
        if condition is None or response.status != http.HTTPStatus.PARTIAL_CONTENT:
            part.begin(url, _validator(response.headers))
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {part.num_bytes}-"):
            found = response.headers.get("Content-Range")
            length = part.num_bytes
            part.clear()
            raise OSError(f"the server was asked for the bytes from {length} on, and sent {found!r}")
        _receive_body(response, part)


def _validator(headers: Message) -> str:
    """Return what identifies this version of a file: its ETag, if it is a strong one, else Last-Modified."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


def _receive_body(response: http.client.HTTPResponse, part: PartialFile) -> None:
    """Append a body to a partial file."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress

    length = response.headers.get("Content-Length")
    total = part.num_bytes + int(length) if length else None
    columns = (*Progress.get_default_columns(), DownloadColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(part.path.name, total=total, completed=part.num_bytes)
            while chunk := response.read(_CHUNK):
                part.add(chunk)
                progress.advance(task, len(chunk))
    finally:
        part.sync()
    # http.client reports no error if the body is truncated.
    if total is not None and part.num_bytes != total:
        raise OSError(f"the body ended after {part.num_bytes} of {total} bytes")
