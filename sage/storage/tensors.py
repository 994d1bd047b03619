"""Reads and writes files of tensors and plain values, in torch's format, without running code from them."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from sage.storage.errors import Damaged, NotWritten, Unreadable, refused
from sage.storage.read import open_regular, what_it_is
from sage.storage.write import writing


def read_tensors(path: Path, what: str, *, mmap: bool = False, cure: str = "") -> dict[str, Any]:
    """The dictionary of tensors and plain values in a file that `write_tensors` wrote. Runs no code from it.

    Args:
        what: What the file should be, for messages: "a checkpoint's file".
        mmap: Leave tensors on the disk until they are looked at.
        cure: What to do about a damaged one.

    Raises:
        FileNotFoundError: where there is no such file.
        Damaged, Unreadable: where it is no such file; torch's own words are left out, as they advise to
            load without checks.
    """
    import torch

    try:
        if mmap:
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):
                raise Damaged(path, f"is {what_it_is(mode)}, not {what}", cure)
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        else:
            with open_regular(path) as file:
                content = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, Unreadable):
        raise
    except OSError as error:
        raise refused(path, error) from error
    except Exception as error:  # torch says in many ways that a file is not its own
        raise Damaged(path, f"is damaged, or not {what}", cure) from error
    if not isinstance(content, dict):
        raise Damaged(path, f"is damaged: it holds a {type(content).__name__}, not {what}", cure)
    return content


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values whole or not at all, for `read_tensors`.

    Raises:
        NotWritten: where the file system refuses, as a full disk.
    """
    import torch

    with writing(path) as file:
        sink = _Sink(file)
        try:
            torch.save(dict(content), cast(IO[bytes], sink))
        except Exception:
            # torch tells of a failed write as "unexpected pos 5568 vs 5462".
            if sink.error is not None:
                raise NotWritten(path, sink.error) from sink.error
            raise


class _Sink:
    """A file that remembers why it could not be written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        if self.error is not None:
            raise self.error
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
