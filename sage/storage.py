"""Reads and writes every file that SAGE keeps on disk.

A file is written whole or not at all: under a temporary name, synced, then renamed. What is read is checked
against its kind before anything uses it. A file that cannot be used raises `Unreadable`, one line that names
the file, the fault and the cure:

- `Damaged`: torn, empty, no regular file, no JSON, a key missing or of the wrong type.
- `OtherVersion`: whole, and written by a newer version of SAGE.
- `Unreadable` itself: the file system refuses, as for a file of another user.

A file's version is its key `format`. A file without the key is of version 1.
"""

import json
import math
import os
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any

MAX_BYTES = 2**28
"""The largest JSON or TOML file that is read. A larger one is damaged: SAGE writes none."""


class Unreadable(ValueError):
    """A file on disk that cannot be used; the message names the file, the fault and the cure."""

    def __init__(self, path: Path, reason: str, cure: str = "") -> None:
        super().__init__(f"{path} {reason}" + (f"; {cure}" if cure else ""))
        self.path, self.reason, self.cure = path, reason, cure


class Damaged(Unreadable):
    """A file whose content is not what its kind demands."""


class OtherVersion(Unreadable):
    """A file that another version of SAGE wrote, in a format that this one does not know."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a file of one kind holds, and what to do where one is damaged."""

    name: str
    """What messages call it."""
    keys: Mapping[str, type | UnionType] = field(default_factory=dict)
    """Keys that must be there, and the types of their values. Further keys are allowed."""
    version: int = 1
    """The newest format that this code reads."""
    cure: str = ""
    """What to do about a damaged one."""


RERUN = "run it again with --fresh, or remove the run's folder"

CONFIG = Kind(name="a run's configuration", keys={"workload": str, "reducer": str}, cure=RERUN)
MANIFEST = Kind(name="a run's manifest", cure=RERUN)
RESULT = Kind(
    name="a run's result",
    keys={"metric": str, "steps": int, "final": dict},
    cure="remove it, and the same command goes on from the last checkpoint",
)
FAILURE = Kind(
    name="the reason for a run's failure", keys={"error": str}, cure="remove it, or run the run again"
)
METRICS = Kind(
    name="a run's metrics",
    keys={"kind": str},
    cure="remove the line to read the rest, or run it with --fresh",
)


# Reading.


def read_bytes(path: Path, *, limit: int | None = None) -> bytes:
    """The content of a regular file.

    Raises:
        FileNotFoundError: where there is no such file.
        Damaged: where it is no regular file, as a FIFO or a folder, or larger than `limit`.
        Unreadable: where the file system refuses.
    """
    try:
        # Not blocking, so that a FIFO without a writer does not hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise Damaged(path, f"is {_what_it_is(found.st_mode)}, not a regular file", "remove it")
            if limit is not None and found.st_size > limit:
                raise Damaged(path, f"has {found.st_size} bytes; at most {limit} are read")
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(path, f"cannot be read: {error.strerror or error}") from error


def read_text(path: Path, *, limit: int | None = MAX_BYTES) -> str:
    """The content of a UTF-8 file, with or without a byte-order mark; raises as `read_bytes` does."""
    try:
        return read_bytes(path, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Damaged(
            path, f"is no text in UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error


def read_json(path: Path, kind: Kind) -> dict[str, Any]:
    """The JSON object in a file, checked against its kind.

    Raises:
        FileNotFoundError: where there is no such file.
        Damaged, OtherVersion, Unreadable: see the module.
    """
    try:
        text = read_text(path)
    except Damaged as error:
        raise Damaged(path, error.reason, error.cure or kind.cure) from error
    return checked(path, parse_json(path, text, kind), kind)


def parse_json(path: Path, text: str | bytes, kind: Kind, where: str = "") -> Any:
    """The value that the text says in JSON; `where` is a place in the file, as "line 3"."""
    place = f", {where}," if where else ""
    if not text.strip():
        raise Damaged(path, f"is empty{place}".rstrip(","), kind.cure)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Damaged(path, f"{place} is damaged, no JSON: {reason}".lstrip(", "), kind.cure) from error


def checked(path: Path, content: Any, kind: Kind, where: str = "") -> dict[str, Any]:
    """The content, where it is an object with the keys of its kind, in a format that this code reads."""
    place = f"{where} " if where else ""
    if not isinstance(content, dict):
        raise Damaged(path, f"{place}is damaged: a JSON {_json_type(content)}, not an object", kind.cure)
    version = content.get("format", 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise Damaged(path, f"{place}is damaged: its format is {version!r}, not a whole number", kind.cure)
    if version > kind.version:
        raise OtherVersion(
            path,
            f"{place}was written by a newer version of SAGE: format {version}, where this version reads up "
            f"to {kind.version}",
            "update SAGE to read it",
        )
    for key, allowed in kind.keys.items():
        if key not in content:
            raise Damaged(path, f"{place}is damaged: {kind.name} needs the key {key!r}", kind.cure)
        value = content[key]
        if not isinstance(value, allowed) or (isinstance(value, bool) and not issubclass(bool, allowed)):
            raise Damaged(
                path,
                f"{place}is damaged: {key!r} is {_json_type(value)}, not {_type_name(allowed)}",
                kind.cure,
            )
    return content


def read_json_lines(
    path: Path, kind: Kind, *, complete_only: bool = True
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line of a JSON-lines file, as it stands and as it reads. A torn last line is left out.

    Args:
        complete_only: Leave out a last line that does not end in a newline.

    Raises:
        FileNotFoundError: where there is no such file.
        Damaged, OtherVersion, Unreadable: at the first line that cannot be used, which it names.
    """
    for number, line in enumerate(read_bytes(path).splitlines(keepends=True), start=1):
        if complete_only and not line.endswith(b"\n"):
            return
        where = f"line {number}"
        yield line, checked(path, parse_json(path, line, kind, where), kind, where)


def read_toml(path: Path, what: str = "a TOML file") -> dict[str, Any]:
    """The table in a TOML file, with or without a byte-order mark.

    Raises:
        FileNotFoundError: where there is no such file.
        Unreadable: where it cannot be read, or is no TOML; one line with the place of the fault.
    """
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise Damaged(path, f"is no TOML: {error}", f"expected {what}") from error
    except RecursionError as error:
        raise Damaged(path, "is no TOML that can be read: nested too deeply", f"expected {what}") from error


def read_tensors(path: Path, what: str, *, mmap: bool = False, cure: str = "") -> dict[str, Any]:
    """The dictionary of tensors and plain values in a file that `write_tensors` wrote. Runs no code from it.

    Raises:
        FileNotFoundError: where there is no such file.
        Damaged, Unreadable: where it is no such file; torch's own words are left out, as they advise to
            load without checks.
    """
    import torch

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Damaged(path, f"is {_what_it_is(os.stat(path).st_mode)}, not {what}", cure)
        content = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except (FileNotFoundError, Unreadable):
        raise
    except OSError as error:
        raise Unreadable(path, f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch says in many ways that a file is not its own
        raise Damaged(path, f"is damaged, or not {what}", cure) from error
    if not isinstance(content, dict):
        raise Damaged(path, f"is damaged: it holds a {type(content).__name__}, not {what}", cure)
    return content


# Writing.


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file whole or not at all; the content and the name are on disk before this returns.

    Args:
        private: Only the owner may read and write it, whatever the umask.

    Raises:
        OSError: where the file system refuses, as a full disk; the old file is then as it was.
    """
    # Of this process alone, so that two writers do not spoil each other's draft.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600 if private else 0o666
        )
        with os.fdopen(descriptor, "wb") as file:
            if private:
                os.fchmod(descriptor, 0o600)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a UTF-8 file whole or not at all; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), private=private)


def write_json(
    path: Path, content: Mapping[str, Any], kind: Kind | None = None, *, private: bool = False
) -> None:
    """Write a JSON object whole or not at all; see `write_bytes`. A non-finite number becomes null."""
    if kind is not None and kind.version > 1:
        content = {"format": kind.version, **content}
    write_text(path, json_text(content, indent=2) + "\n", private=private)


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values whole or not at all, for `read_tensors`; see `write_bytes`."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_bytes(path, buffer.getvalue())


def append_json_lines(path: Path, contents: Iterable[Mapping[str, Any]], *, private: bool = False) -> None:
    """Add lines to a JSON-lines file and sync it. A last line torn by a crash is ended first."""
    lines = "".join(json_text(content) + "\n" for content in contents).encode()
    descriptor = os.open(
        path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600 if private else 0o666
    )
    with os.fdopen(descriptor, "a+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            lines = b"\n" + lines
        try:
            file.write(lines)
            file.flush()
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise


def json_text(content: Any, indent: int | None = None) -> str:
    """The content in strict JSON, which has no NaN: a number that is not finite becomes null."""
    return json.dumps(_strict(content), indent=indent, allow_nan=False)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to disk; file systems that cannot are left alone."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _what_it_is(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return names.get(type(value), "null")


def _type_name(allowed: type | UnionType) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a whole number"}
    return names.get(allowed, str(allowed)) if isinstance(allowed, type) else str(allowed)
