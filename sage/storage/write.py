"""Writes files atomically: under a temporary name, synced, then renamed."""

import csv
import errno
import io
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from sage.storage.errors import NotWritten
from sage.storage.schema import Kind

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
"""Errors of `os.link` on a file system that does not support hard links."""


@contextmanager
def writing(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Write a file atomically: it gets its name, and is on disk, when the block ends.

    An existing file is unchanged until then, and remains unchanged if the block raises. Its mode is kept. If
    the path is a symlink, its target is replaced. A device such as /dev/null is written to directly.

    Args:
        private: Only the owner may read and write the file, regardless of the umask.

    Raises:
        NotWritten: (an OSError) The file system refuses to write, for example because the disk is full.
    """
    try:
        found = _found(path)
        if found is not None and not stat.S_ISREG(found.st_mode):
            with _as_it_is(path) as file:
                yield file
            return
        target = Path(os.path.realpath(path)) if found is not None and path.is_symlink() else path
        draft = _draft(target)
        try:
            with open(draft, "xb", opener=_PRIVATE if private else _PLAIN) as file:
                if private or found is not None:
                    os.fchmod(file.fileno(), 0o600 if private or found is None else found.st_mode & 0o777)
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise
        sync_folder(target.parent)
    except NotWritten:
        raise
    except OSError as error:
        raise NotWritten(path, error) from error


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made, before the work whose result goes there.

    If the folder does not exist, its nearest existing parent is tried.

    Raises:
        NotWritten: (an OSError) The file system refuses to make a file.
    """
    import tempfile  # not at the top: it imports shutil and random, and `sage status` only reads

    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise NotWritten(folder, error) from error


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file atomically; see `writing`."""
    with writing(path, private=private) as file:
        file.write(content)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a UTF-8 file atomically; see `writing`. Characters that UTF-8 cannot encode become `?`."""
    write_bytes(path, text.encode("utf-8", errors="replace"), private=private)


def write_csv(
    path: Path, rows: Iterable[Mapping[str, Any]], names: Sequence[str], *, head: Iterable[str] = ()
) -> None:
    """Write rows as CSV atomically; see `writing`. Missing values are left empty.

    Args:
        names: The columns.
        head: Lines above the table, without line endings.
    """
    text = io.StringIO()
    text.writelines(f"{line}\n" for line in head)
    table = csv.DictWriter(text, names, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def write_json(
    path: Path, content: Mapping[str, Any], kind: Kind | None = None, *, private: bool = False
) -> None:
    """Write a JSON object atomically; see `writing`. A non-finite number becomes null."""
    if kind is not None and kind.version > 1:
        content = {"format": kind.version, **content}
    write_text(path, json_text(content, indent=2) + "\n", private=private)


def write_first(path: Path, content: bytes, *, private: bool = False) -> bool:
    """Create a file atomically, unless it already exists; return whether this call created it.

    If several processes call this at once, exactly one creates the file, and no process sees an incomplete
    file. On a file system without hard links, more than one process may create it.

    Raises:
        NotWritten: The file system refuses to write.
    """
    draft = _draft(path)
    try:
        try:
            with open(draft, "xb", opener=_PRIVATE if private else _PLAIN) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(draft, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if os.path.lexists(path):
                    return False
                draft.replace(path)  # race: another process may have created the file since the check
        finally:
            with suppress(OSError):
                draft.unlink()
        sync_folder(path.parent)
    except OSError as error:
        raise NotWritten(path, error) from error
    return True


class Lines:
    """A file to which lines are appended; each is written completely or not at all, except after a crash.

    Args:
        cut: Remove an incomplete last line that a crash has left; otherwise a newline is added after it.

    Raises:
        NotWritten: The file system refuses to write; also raised by each method.
    """

    def __init__(self, path: Path, *, cut: bool, private: bool = False) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        with self._named():
            self._file = io.FileIO(os.open(path, flags, 0o600 if private else 0o666), "r+")
            try:
                if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "it is not a regular file")
                self._end_torn_line(cut)
            except BaseException:
                self._file.close()
                raise

    @property
    def closed(self) -> bool:
        return self._file.closed

    def append(self, lines: bytes) -> None:
        """Append complete lines; if that fails, the file is unchanged."""
        with self._named():
            size = os.fstat(self._file.fileno()).st_size
            try:
                rest = memoryview(lines)
                while rest:
                    rest = rest[os.write(self._file.fileno(), rest) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file.fileno(), size)
                raise

    def sync(self) -> None:
        """Sync the lines to disk; raises if the file has been removed in the meantime."""
        with self._named():
            os.fsync(self._file.fileno())
            found = _found(self.path)
            if found is None or not os.path.samestat(found, os.fstat(self._file.fileno())):
                raise OSError(errno.ENOENT, "it was removed while it was being written")

    def close(self) -> None:
        with self._named():
            self._file.close()

    def _end_torn_line(self, cut: bool) -> None:
        descriptor = self._file.fileno()
        size = end = os.fstat(descriptor).st_size
        if not size or os.pread(descriptor, 1, size - 1) == b"\n":
            return
        if not cut:
            self.append(b"\n")
            return
        while end:
            begin = max(0, end - 2**16)
            if (at := os.pread(descriptor, end - begin, begin).rfind(b"\n")) >= 0:
                end = begin + at + 1
                break
            end = begin
        os.ftruncate(descriptor, end)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except NotWritten:
            raise
        except OSError as error:
            raise NotWritten(self.path, error) from error


def append_json_lines(path: Path, contents: Iterable[Mapping[str, Any]], *, private: bool = False) -> None:
    """Append lines to a JSON-lines file and sync it; an incomplete last line is first ended by a newline."""
    lines = Lines(path, cut=False, private=private)
    try:
        lines.append("".join(json_text(content) + "\n" for content in contents).encode())
        lines.sync()
    finally:
        lines.close()


def json_text(content: Any, indent: int | None = None) -> str:
    """Return the content as strict JSON, which has no NaN: a number that is not finite becomes null."""
    return json.dumps(_strict(content), indent=indent, allow_nan=False)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content; a symlink is removed, but not its target."""
    if path.is_dir() and not path.is_symlink():
        import shutil  # here, because reading needs nothing of it

        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Sync a folder to disk; file systems that do not support it are ignored."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _found(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _draft(path: Path) -> Path:
    """Return a unique temporary name in the same folder; shortened, as names have at most 255 bytes."""
    return path.with_name(f".{path.name[:40]}.{os.urandom(8).hex()}.partial")


def _opener(mode: int, path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode)


_PLAIN, _PRIVATE = partial(_opener, 0o666), partial(_opener, 0o600)


@contextmanager
def _as_it_is(path: Path) -> Iterator[BinaryIO]:
    """Open a device or a pipe for writing; a FIFO without a reader is refused instead of blocking."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb") as file:
        yield file


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, Path) else value
