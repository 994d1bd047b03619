"""Reads text, JSON, JSON lines and TOML from regular files, and validates JSON against its kind."""

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
"""Maximum size of a text, JSON or TOML file. SAGE writes no larger one, so a larger one counts as damaged."""

MAX_DEPTH = 64
"""Maximum nesting depth of lists and objects. SAGE writes none deeper, and Python's stack is limited."""


def is_there(path: Path) -> bool:
    """Whether a file or folder of this name exists; False for a broken symlink.

    Raises:
        Unreadable: The file system refuses access, for example inside another user's private folder.
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
    """Open a regular file for reading; other types are refused, because a FIFO or a device may hang.

    Args:
        limit: Maximum size in bytes.

    Raises:
        FileNotFoundError: The file does not exist.
        Damaged: It is not a regular file, or is too large.
        Unreadable: The file system refuses access, on opening or while the file is read.
    """
    try:
        # Non-blocking, so that opening a FIFO without a writer does not hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        # os.fdopen fails for a folder, so the type is checked first.
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
    """Read a regular file as bytes; raises the same errors as `open_regular`."""
    with open_regular(path, limit=limit) as file:
        return file.read()


def read_text(path: Path, *, limit: int | None = MAX_BYTES) -> str:
    """Read a UTF-8 file, with or without a byte-order mark; raises the same errors as `open_regular`."""
    return _as_text(path, read_bytes(path, limit=limit))


def read_json(path: Path, kind: Kind) -> dict[str, Any]:
    """Read the JSON object in a file, and validate it against its kind.

    Raises:
        FileNotFoundError: The file does not exist.
        Damaged, OtherVersion, Unreadable: See sage/storage/errors.py.
    """
    try:
        text = read_text(path)
    except Damaged as error:
        raise Damaged(path, error.reason, error.remedy or kind.remedy) from error
    return checked(path, parse_json(path, text, kind), kind)


def read_json_lines(
    path: Path, kind: Kind, *, complete_only: bool = True
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each line of a JSON-lines file as bytes and as an object, without an incomplete last line.

    Args:
        complete_only: Skip a last line that does not end with a newline.

    Raises:
        FileNotFoundError: The file does not exist.
        Damaged, OtherVersion, Unreadable: A line cannot be used; the message names the first such line.
    """
    with open_regular(path) as file:
        for number, line in enumerate(file, start=1):
            if complete_only and not line.endswith(b"\n"):
                return
            where = f"line {number}"
            yield line, checked(path, parse_json(path, line, kind, where), kind, where)


def parse_json(path: Path, text: str | bytes, kind: Kind, where: str = "") -> Any:
    """Parse a text as strict JSON; `where` is the position in the file for messages, such as "line 3".

    Raises:
        Damaged: The text is not valid JSON, or is nested deeper than `MAX_DEPTH`.
    """
    place = f", {where}" if where else ""
    if isinstance(text, bytes):
        text = _as_text(path, text, where)
    if not text.strip():
        raise Damaged(path, f"{place} is damaged: it is empty".removeprefix(" "), kind.remedy)
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
            reason = "it has an unpaired surrogate"
        raise Damaged(
            path, f"{place} is damaged, not valid JSON: {reason}".removeprefix(" "), kind.remedy
        ) from error
    return value


def checked(path: Path, content: Any, kind: Kind, where: str = "") -> dict[str, Any]:
    """Return the content if it is a valid object of its kind, in a format that this code can read.

    Raises:
        Damaged: It is not an object, or does not match its kind.
        OtherVersion: Its format is newer than this code.
    """
    place = f", {where}" if where else ""
    reason = ""
    if not isinstance(content, dict):
        reason = f"it is {type_of(content)}, not an object"
    elif type(version := content.get("format", 1)) is not int or version < 1:
        reason = "its format is not a whole number of at least 1"
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
        raise Damaged(path, f"{place} is damaged: {reason}".removeprefix(" "), kind.remedy)
    assert isinstance(content, dict)
    return content


def read_toml(path: Path, what: str = "a TOML file") -> dict[str, Any]:
    """Read a TOML file, with or without a byte-order mark.

    Raises:
        FileNotFoundError: The file does not exist.
        Unreadable: The file cannot be read, or is not valid TOML; the message names the position.
    """
    text = read_text(path)
    try:
        table = tomllib.loads(text)
        if _depth(table) > MAX_DEPTH:
            raise RecursionError
    except ValueError as error:  # not only TOMLDecodeError: a number with too many digits raises ValueError
        raise Damaged(path, f"is not valid TOML: {error}", f"expected {what}") from error
    except RecursionError as error:
        raise Damaged(path, "is not valid TOML: it is nested too deeply", f"expected {what}") from error
    return table


def what_it_is(mode: int) -> str:
    """Return the type of a non-regular file in words, such as "a FIFO"."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_SURROGATE = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]")


def _as_text(path: Path, content: bytes, where: str = "") -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is {error.object[error.start]:#04x}"
        place = f", {where} " if where else " "
        raise Damaged(path, f"{place}is damaged, not UTF-8 text: {byte}".removeprefix(" ")) from error


def _depth(value: Any) -> int:
    """Return the nesting depth of lists and objects, computed without recursion."""
    depth, level = 0, [value]
    while level := [value for value in level if isinstance(value, dict | list)]:
        depth += 1
        level = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
    return depth
