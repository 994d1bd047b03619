"""The exit statuses of every command, which status an error is worth, and why a run ended, in one line.

docs/reference/exit-statuses.md has the table, and what SAGE's jobs do about each.
"""

import errno
import os
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path

from .output.text import clean_text

FAILED = 1
"""Exit status of a run that may go better another time: a rank was killed, a collective took too long."""
HOPELESS = 2
"""Exit status of a run that would fail again: a wrong setting, missing data, a run that diverges."""
INTERRUPTED = 75
"""Exit status (EX_TEMPFAIL) of a run that stopped when asked and has saved itself: run it again to go on."""
KEYBOARD = 130
"""Exit status of a command that Ctrl-C has ended."""
PIPE_CLOSED = 141
"""Exit status of a command whose output nobody reads any more."""


_LONGEST_REASON = 400
"""Characters of the reason that the job is told; the rest is cut off."""
_LONGEST_MESSAGE = 2000
"""Characters of an error's message that are shown; the rest is cut off."""

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


def tell_the_job(status: int, text: str) -> None:
    """Tell the batch script the exit status and the reason: srun returns only the highest of all statuses.

    The first rank that tells is the one that counts. The file is in the job's own folder (jobs/batch.sh).
    """
    if path := os.environ.get("SAGE_OUTCOME"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(OSError):
            descriptor = os.open(path, flags, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(f"{status} {clean_text(text, _LONGEST_REASON)}\n")


def hear_sigint() -> None:
    """Have Ctrl-C raise KeyboardInterrupt, also where this process was started with SIGINT ignored.

    A shell without job control starts `sage ... &` like that, and so do some CI runners. A handler that is
    already there stays. Outside the main thread, where Python allows no handlers, nothing is done.
    """
    unheard = signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL)
    if unheard and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def stop_before_it_begins() -> None:
    """Have a signal end this process as a run that stopped, until training listens to signals itself.

    There is nothing to save yet; without this, one that comes while torch is imported would look like a
    crash.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _leave)


def _leave(number: int, _: object) -> None:
    tell_the_job(INTERRUPTED, f"stopped by {signal.Signals(number).name} before it began")
    os._exit(INTERRUPTED)


def message(error: BaseException) -> str:
    """What an error says, in one line: of the system's errors the file and the reason."""
    text = _system(error) if isinstance(error, OSError) else str(error)
    return clean_text(text, _LONGEST_MESSAGE) or type(error).__name__


def status_of(error: BaseException) -> int:
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
