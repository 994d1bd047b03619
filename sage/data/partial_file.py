"""The partial file of a download: it stays if the download breaks off, and the next one continues it."""

import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from sage.storage import NotWritten, sync_folder, write_text

_MAX_SOURCE_BYTES = 1 << 16


class PartialFile:
    """A file that is being downloaded, open and locked, and a note of where its bytes came from.

    The note, NAME.source next to the file, has two lines: the address, and the validator that the server gave
    for that version of the file (its ETag or Last-Modified), which is empty if it gave none.
    """

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self._file = file
        self._note = path.with_name(f"{path.name}.source")

    @property
    def num_bytes(self) -> int:
        """The number of bytes received so far."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def source(self) -> tuple[str, str] | None:
        """The address and the validator of the bytes received so far; None if they are not known."""
        try:
            with self._note.open("rb") as file:
                url, validator, *rest = file.read(_MAX_SOURCE_BYTES).decode().split("\n")
        except (OSError, ValueError):
            return None
        return None if rest else (url, validator)

    def begin(self, url: str, validator: str) -> None:
        """Remove the content, and note where the new content comes from."""
        self.clear()
        write_text(self._note, f"{url}\n{validator}")

    def add(self, chunk: bytes) -> None:
        """Append bytes.

        Raises:
            NotWritten: an OSError, if the file system refuses them.
        """
        try:
            self._file.seek(0, os.SEEK_END)
            rest = memoryview(chunk)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:  # from the file system, not the network
            raise NotWritten(self.path, error) from error

    def sync(self) -> None:
        """Write what was received to disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise NotWritten(self.path, error) from error

    def clear(self) -> None:
        """Remove the content and the note."""
        self._note.unlink(missing_ok=True)
        self._file.truncate(0)

    def complete(self, path: Path) -> None:
        """Give the file its final name."""
        self._note.unlink(missing_ok=True)
        self.path.replace(path)
        sync_folder(path.parent)

    def remove(self) -> None:
        """Remove the file and the note."""
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


@contextmanager
def partial_file(path: Path) -> Iterator[PartialFile]:
    """Open the partial file of `path` in the same folder, with what an earlier download has received.

    Its name depends on the name of `path` only. If the block raises, what was received stays, except if the
    disk is full. While another process uses it, or if the file system has no flock, a new file with a random
    name is used instead, and always removed.

    Raises:
        NotWritten: an OSError, if no file can be made, or if the block raises it.
    """
    mark = hashlib.sha256(path.name.encode()).hexdigest()[:16]
    own = path.with_name(f".{path.name[:40]}.{mark}.partial")
    file = _open_alone(own)
    stays = file is not None
    if file is None:
        own = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.partial")
        try:
            file = own.open("xb", buffering=0)
        except OSError as error:
            raise NotWritten(own, error) from error
    with file:
        partial = PartialFile(own, file)
        try:
            yield partial
        except NotWritten:
            stays = False
            raise
        finally:
            # After `complete`, a file with this name is that of another process.
            if _is_still(own, file.fileno()) and not (stays and partial.num_bytes):
                partial.remove()


def _open_alone(path: Path) -> FileIO | None:
    """Open and lock a file, which is created if it is missing; None if that is not possible."""
    while True:
        try:
            descriptor = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666
            )
        except OSError:
            return None
        file = FileIO(descriptor, "w")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process has locked it, or the file system has no flock
            file.close()
            return None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            file.close()
            return None
        if _is_still(path, descriptor):
            return file
        file.close()  # its owner has renamed or removed it in between


def _is_still(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    return False
