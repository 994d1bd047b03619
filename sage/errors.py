"""What an error is in one line, and whether the same command could go better another time."""

import errno
import os
import shutil
from pathlib import Path

from .outcome import FAILED, HOPELESS
from .text import clean_text

LONGEST = 2000
"""Letters of a message that are shown."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PASSING = (
    *_FULL,
    errno.EIO,
    errno.EAGAIN,
    errno.EINTR,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
)
"""Errors of the system that may be gone another time; a missing file or a lacking permission stays."""


def told(error: BaseException) -> str:
    """What an error says, in one line: of the system's errors the file and the reason."""
    text = _system(error) if isinstance(error, OSError) else str(error)
    return clean_text(text, LONGEST) or type(error).__name__


def status(error: BaseException) -> int:
    """The exit status that an error of the user's input, or of the system, is worth.

    2 where the same command would fail again: a ValueError, a file that is missing or may not be used.
    1 where it may not: a full disk, a time-out, too little memory.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return FAILED if error.errno in _PASSING or isinstance(error, ConnectionError) else HOPELESS
    return HOPELESS if isinstance(error, ValueError | RecursionError) else FAILED


def _system(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    where = " -> ".join(files)
    said = f"{where}: {reason}" if where else reason
    if error.errno not in _FULL:
        return said
    return f"{said}{_file_system(Path(files[0])) if files else ''}; free some space and run the command again"


def _file_system(path: Path) -> str:
    """Which file system a path is on, and what is free there."""
    try:
        path = path.absolute()
        while not path.exists():
            path = path.parent
        total, _, free = shutil.disk_usage(path)
        while not path.is_mount():
            path = path.parent
    except OSError:
        return ""
    return f" on the file system at {path} ({free} of {total} bytes are free)"
