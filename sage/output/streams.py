"""Keeps printing from ending a run: a closed terminal, a full disk or an ASCII encoding loses text alone.

`protect()` puts a `Stream` in place of `sys.stdout` and of `sys.stderr`. Everything that prints goes through
them: `print`, rich's consoles, argparse, logging and warnings. Each process of SAGE calls it once, before it
prints. A verb whose output is its purpose asks `failure()` at its end, or prints in `strict()`.
"""

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

ASCII = {"–": "-", "—": "-", "·": "-", "…": "...", "→": "->", "×": "x", "≤": "<=", "≥": ">=", "λ": "lambda"}
"""What is printed for a character of ours that the stream's encoding does not have."""


class Stream:
    """A text stream whose `write` and `flush` do not raise; the first error is kept in `error`.

    Everything else is the stream's own: `isatty`, `encoding`, `fileno`, `buffer`.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.error: OSError | None = None
        self.strict = False
        """Whether errors are raised all the same, for a loop that has no other purpose than to print."""
        if callable(reconfigure := getattr(stream, "reconfigure", None)):
            with suppress(OSError, ValueError):
                reconfigure(errors="sage.replace")

    def write(self, text: str) -> int:
        self._attempt(lambda: self.stream.write(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _attempt(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as error:
            self.error = self.error or error
            if self.strict:
                raise
        except ValueError:  # closed, or of an encoding that cannot be replaced in
            if self.strict:
                raise


class _Closed(io.TextIOWrapper):
    """A stream in place of one that was closed when Python started; what is printed to it is lost."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "it is closed")


def protect() -> None:
    """Put safe streams in place of `sys.stdout` and `sys.stderr`; a second call changes nothing.

    A descriptor of 0 to 2 that is closed is opened on the null device. The next file to be opened would get
    its number, and with it whatever C code prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _open_null(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Stream):
            if stream is None:  # it was closed when Python started
                null = io.BufferedWriter(io.FileIO(os.devnull, "w"))
                stream = _Closed(null, encoding="utf-8")
            setattr(sys, name, cast(TextIO, Stream(stream)))


def failure() -> OSError | None:
    """Why not all that was printed to stdout got there; None where it did."""
    stream = sys.stdout
    if not isinstance(stream, Stream):
        return None
    stream.flush()
    return stream.error


@contextmanager
def strict() -> Iterator[None]:
    """Raise what goes wrong with stdout, within; for a loop that would print in vain for ever."""
    stream = sys.stdout
    if not isinstance(stream, Stream):
        yield
        return
    stream.strict = True
    try:
        yield
        stream.flush()
    finally:
        stream.strict = False


def _open_null(number: int) -> None:
    with suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write ASCII for what the encoding lacks: ours for a few characters, a backslash escape for the rest."""
    if not isinstance(error, UnicodeEncodeError):
        return codecs.backslashreplace_errors(error)
    start, end = error.start, error.end
    told = ""
    for character in error.object[start:end]:
        escaped = character.encode("ascii", "backslashreplace").decode("ascii")
        told += ASCII.get(character, escaped)
    return told, end


codecs.register_error("sage.replace", _replace)
