"""Output streams that do not raise: a closed terminal, a full disk or an ASCII encoding does not end a run.

`protect()` replaces `sys.stdout` and `sys.stderr` by `Stream` objects. All output goes through them: `print`,
rich's consoles, argparse, logging and warnings. Each process of SAGE calls it once, before it prints. A
command whose purpose is its output checks `failure()` at its end, or prints in `strict()`.
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
"""ASCII replacements for characters in SAGE's output that the stream's encoding lacks."""


class Stream:
    """A text stream whose `write` and `flush` do not raise; the first error is stored in `error`.

    All other attributes are those of the wrapped stream: `isatty`, `encoding`, `fileno`, `buffer`.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.error: OSError | None = None
        self.strict = False
        """Whether errors are raised, for a loop whose only purpose is to print."""
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
        except ValueError:  # closed, or of an encoding without error replacement
            if self.strict:
                raise


class _Closed(io.TextIOWrapper):
    """The replacement of a stream that was closed when Python started; its output is discarded."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "it is closed")


def protect() -> None:
    """Replace `sys.stdout` and `sys.stderr` by safe streams; a second call changes nothing.

    If one of the descriptors 0 to 2 is closed, it is opened on the null device. Otherwise the next file that
    is opened would get its number, and the output of C code would go to that file.
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
    """Return the first error of stdout; None if all output was written."""
    stream = sys.stdout
    if not isinstance(stream, Stream):
        return None
    stream.flush()
    return stream.error


@contextmanager
def strict() -> Iterator[None]:
    """Raise errors of stdout within the context, so that a loop that only prints ends when stdout fails."""
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
    """Replace characters that the encoding lacks by those of `ASCII`, or else by backslash escapes."""
    if not isinstance(error, UnicodeEncodeError):
        return codecs.backslashreplace_errors(error)
    start, end = error.start, error.end
    encoded = ""
    for character in error.object[start:end]:
        escaped = character.encode("ascii", "backslashreplace").decode("ascii")
        encoded += ASCII.get(character, escaped)
    return encoded, end


codecs.register_error("sage.replace", _replace)
