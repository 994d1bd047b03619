"""Reads text, JSON, JSON lines and TOML from regular files, and checks JSON against its kind."""

import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from sage.storage.errors import Damaged, OtherVersion, refused
from sage.storage.schema import Kind, type_of

MAX_BYTES = 2**28
"""The largest text, JSON or TOML file that is read whole. A larger one is damaged: SAGE writes none."""

MAX_DEPTH = 64
"""How deeply lists and objects may be nested; SAGE writes no deeper, and Python's own stack has an end."""


def is_there(path: Path) -> bool:
    """Whether there is a file or folder of this name; a link that leads nowhere is none.

    Raises:
        Unreadable: where the file system does not tell, as inside another user's closed folder.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise refused(path, error) from error
    return True


@contextmanager
def open_regular(path: Path, *, limit: int | None = None) -> Iterator[BufferedReader]:
    """Open a regular file to read; nothing else is opened, as a FIFO or a device might hang.

    Args:
        limit: The largest size in bytes that is allowed.

    Raises:
        FileNotFoundError: where there is no such file.
        Damaged: where it is no regular file, or too large.
        Unreadable: where the file system refuses, now or while it is read.
    """
    try:
        # Not blocking, so that a FIFO without a writer does not hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        # A folder cannot become a file object, so it is told apart before.
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise Damaged(path, f"is {what_it_is(found.st_mode)}, not a regular file")
            if limit is not None and found.st_size > limit:
                raise Damaged(path, f"has {found.st_size} bytes; at most {limit} are read")
        except BaseException:
            os.close(descriptor)
            raise
        with os.fdopen(descriptor, "rb") as file:
            yield file
    except FileNotFoundError:
        raise
    except OSError as error:
        raise refused(path, error) from error


def read_bytes(path: Path, *, limit: int | None = None) -> bytes:
    """The content of a regular file; raises as `open_regular` does."""
    with open_regular(path, limit=limit) as file:
        return file.read()


def read_text(path: Path, *, limit: int | None = MAX_BYTES) -> str:
    """The content of a UTF-8 file, with or without a byte-order mark; raises as `open_regular` does."""
    return _as_text(path, read_bytes(path, limit=limit))


def read_json(path: Path, kind: Kind) -> dict[str, Any]:
    """The JSON object in a file, checked against its kind.

    Raises:
        FileNotFoundError: where there is no such file.
        Damaged, OtherVersion, Unreadable: see `sage.storage`.
    """
    try:
        text = read_text(path)
    except Damaged as error:
        raise Damaged(path, error.reason, error.cure or kind.cure) from error
    return checked(path, parse_json(path, text, kind), kind)


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
    with open_regular(path) as file:
        for number, line in enumerate(file, start=1):
            if complete_only and not line.endswith(b"\n"):
                return
            where = f"line {number}"
            yield line, checked(path, parse_json(path, line, kind, where), kind, where)


def parse_json(path: Path, text: str | bytes, kind: Kind, where: str = "") -> Any:
    """The value that the text says in strict JSON; `where` is a place in the file, as "line 3".

    Raises:
        Damaged: where it says none, or one that nests deeper than `MAX_DEPTH`.
    """
    place = f", {where}" if where else ""
    if isinstance(text, bytes):
        text = _as_text(path, text, where)
    if not text.strip():
        raise Damaged(path, f"{place} is damaged: it is empty".removeprefix(" "), kind.cure)
    try:
        value = _DECODER.decode(text)
        if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
            raise RecursionError
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, RecursionError):
            reason = "it is nested too deeply"
        if "integer string conversion" in reason:
            reason = "it has a number with too many digits"
        if isinstance(error, UnicodeEncodeError):
            reason = "it has half of a surrogate pair"
        raise Damaged(path, f"{place} is damaged, no JSON: {reason}".removeprefix(" "), kind.cure) from error
    return value


def checked(path: Path, content: Any, kind: Kind, where: str = "") -> dict[str, Any]:
    """The content, where it is an object with the keys of its kind, in a format that this code reads.

    Raises:
        Damaged, OtherVersion: where it is not.
    """
    place = f", {where}" if where else ""
    reason = ""
    if not isinstance(content, dict):
        reason = f"it is {type_of(content)}, not an object"
    elif type(version := content.get("format", 1)) is not int or version < 1:
        reason = "its format is not a whole number from 1 on"
    elif version > kind.version:
        raise OtherVersion(
            path,
            f"{place} was written by a newer version of SAGE: its format is {version}, and this version "
            f"reads up to {kind.version}".removeprefix(" "),
            "update SAGE to read it",
        )
    else:
        reason = kind.fault(content)
    if reason:
        raise Damaged(path, f"{place} is damaged: {reason}".removeprefix(" "), kind.cure)
    assert isinstance(content, dict)
    return content


def read_toml(path: Path, what: str = "a TOML file") -> dict[str, Any]:
    """The table in a TOML file, with or without a byte-order mark.

    Raises:
        FileNotFoundError: where there is no such file.
        Unreadable: where it cannot be read, or is no TOML; one line with the place of the fault.
    """
    text = read_text(path)
    try:
        table = tomllib.loads(text)
        if _depth(table) > MAX_DEPTH:
            raise RecursionError
    except ValueError as error:  # a number of too many digits is no TOMLDecodeError
        raise Damaged(path, f"is no TOML: {error}", f"expected {what}") from error
    except RecursionError as error:
        raise Damaged(path, "is no TOML that can be read: nested too deeply", f"expected {what}") from error
    return table


def what_it_is(mode: int) -> str:
    """The type of what is no regular file, as "a FIFO"."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_SURROGATE = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]")


def _as_text(path: Path, content: bytes, where: str = "") -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is {error.object[error.start]:#04x}"
        place = f", {where} " if where else " "
        raise Damaged(path, f"{place}is damaged, no text in UTF-8: {byte}".removeprefix(" ")) from error


def _depth(value: Any) -> int:
    """How deeply lists and objects nest, counted without recursion."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [item for each in level for item in (each.values() if isinstance(each, dict) else each)]
    return depth
