"""Fetches files from the network and verifies their checksums."""

import hashlib
import http.client
import lzma
import os
import secrets
import sys
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

from sage.storage import NotWritten, open_regular, sync_folder
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


def checked(path: Path, *, sha256: str | None = None, md5: str | None = None, dataset: str = "NAME") -> Path:
    """Return `path` if the file exists and its checksums match; else raise how to fetch `dataset`."""
    remedy = f"run `sage data prepare {dataset}`"
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
    the final name is complete. Each mirror is tried up to `attempts` times.

    Raises:
        DataError: if no mirror returns the file.
        NotWritten: an OSError, if the file cannot be written, for example because the disk is full.
    """
    if path.is_file() and not _damage(path, sha256=sha256, md5=md5):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.partial")
    failures = []
    try:
        for url in [*urls] * attempts:
            try:
                _receive(url, part, timeout)
            except NotWritten:
                raise
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{url}: {error or type(error).__name__}")
                continue
            if damage := _damage(part, sha256=sha256, md5=md5):
                failures.append(f"{url}: {damage}")
                continue
            part.replace(path)
            sync_folder(path.parent)
            return path
    finally:
        part.unlink(missing_ok=True)
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


def _add(file: FileIO, chunk: bytes, path: Path) -> None:
    try:
        rest = memoryview(chunk)
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:  # from the file system, not the network
        raise NotWritten(path, error) from error


def _receive(url: str, path: Path, timeout: float) -> None:
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress

    with urllib.request.urlopen(url, timeout=timeout) as response, path.open("wb", buffering=0) as file:
        length = response.headers.get("Content-Length")
        columns = (*Progress.get_default_columns(), DownloadColumn())
        with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(path.name, total=length and int(length))
            while chunk := response.read(_CHUNK):
                _add(file, chunk, path)
                progress.advance(task, len(chunk))
            os.fsync(file.fileno())
        # http.client reports no error if the body is truncated.
        if length and file.tell() != int(length):
            raise OSError(f"the body ended after {file.tell()} of {length} bytes")
