"""Reads and writes tensors and plain values in torch's format, without running code from the files."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from sage.storage.errors import Damaged, NotWritten, Unreadable, refused
from sage.storage.read import open_regular, what_it_is
from sage.storage.write import writing


def read_tensors(path: Path, what: str, *, mmap: bool = False, remedy: str = "") -> dict[str, Any]:
    """Read the dictionary that `write_tensors` wrote, without running code from the file.

    Args:
        what: The expected file in messages, such as "a checkpoint's file".
        mmap: Map the tensors into memory instead of reading them.
        remedy: The remedy for a damaged file.

    Raises:
        FileNotFoundError: The file does not exist.
        Damaged, Unreadable: The file is not valid. The message of torch is omitted, because it advises to
            load without checks.
    """
    import torch

    try:
        if mmap:
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):
                raise Damaged(path, f"is {what_it_is(mode)}, not {what}", remedy)
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        else:
            with open_regular(path) as file:
                content = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, Unreadable):
        raise
    except OSError as error:
        raise refused(path, error) from error
    except Exception as error:  # torch raises many types of errors for an invalid file
        raise Damaged(path, f"is damaged, or not {what}", remedy) from error
    if not isinstance(content, dict):
        raise Damaged(path, f"is damaged: it holds a {type(content).__name__}, not {what}", remedy)
    return content


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values atomically, for `read_tensors`.

    Raises:
        NotWritten: The file system refuses to write, for example because the disk is full.
    """
    import torch

    with writing(path) as file:
        sink = _Sink(file)
        try:
            torch.save(dict(content), cast(IO[bytes], sink))
        except Exception:
            # torch reports a failed write as "unexpected pos 5568 vs 5462".
            if sink.error is not None:
                raise NotWritten(path, sink.error) from sink.error
            raise


class _Sink:
    """A file wrapper that stores the first write error."""

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
