"""Exit statuses of all commands, the status for each error, and the one-line reason why a run ended.

docs/reference/exit-statuses.md has the table and describes how SAGE's jobs react to each status.
"""

import errno
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

from .output.text import clean_text

FAILED = 1
"""Exit status of a run that may succeed if it is repeated: a rank was killed, a collective timed out."""
FATAL = 2
"""Exit status of a run that would fail again: an invalid setting, missing data, a run that diverges."""
INTERRUPTED = 75
"""Exit status (EX_TEMPFAIL) of a run that saved a checkpoint and stopped on request: rerun it to resume."""
KEYBOARD = 130
"""Exit status of a command that was interrupted by Ctrl-C."""
PIPE_CLOSED = 141
"""Exit status of a command whose output pipe was closed by the reader."""


_LONGEST_REASON = 400
"""Maximum length of the reason that is passed to the job, in characters; the rest is truncated."""
_LONGEST_MESSAGE = 2000
"""Maximum length of an error message, in characters; the rest is truncated."""

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
"""System errors that may be temporary; a missing file or a missing permission is permanent."""


def notify_job(status: int, text: str) -> None:
    """Write the exit status and the reason to a file for the batch script.

    This is needed because srun returns only the highest of all statuses. Only the first rank writes the file,
    which is in the job's own folder (jobs/batch.sh).
    """
    if path := os.environ.get("SAGE_OUTCOME"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(OSError):
            descriptor = os.open(path, flags, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(f"{status} {clean_text(text, _LONGEST_REASON)}\n")


def handle_sigint() -> None:
    """Make Ctrl-C raise KeyboardInterrupt, even if this process was started with SIGINT ignored.

    A shell without job control starts `sage ... &` with SIGINT ignored, and so do some CI runners. An
    existing handler is kept. Outside the main thread, where Python allows no handlers, this does nothing.
    """
    is_default = signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL)
    if is_default and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def exit_on_early_signals() -> None:
    """Install handlers that exit with `INTERRUPTED` on a signal, until training installs its own handlers.

    There is nothing to save yet. Without these handlers, a signal during the import of torch would look like
    a crash.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _leave)


def _leave(number: int, _: object) -> None:
    notify_job(INTERRUPTED, f"stopped by {signal.Signals(number).name} before it began")
    os._exit(INTERRUPTED)


def message(error: BaseException) -> str:
    """Format an error on one line; for a system error, this is the file and the reason."""
    text = _system(error) if isinstance(error, OSError) else str(error)
    return clean_text(text, _LONGEST_MESSAGE) or type(error).__name__


def status_of(error: BaseException) -> int:
    """Return the exit status for an error in the user's input or from the system.

    2 if the same command would fail again: a ValueError, a file that is missing or not permitted.
    1 if it may succeed later: a full disk, a timeout, too little memory.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return FAILED if error.errno in _PASSING or isinstance(error, ConnectionError) else FATAL
    return FATAL if isinstance(error, ValueError | RecursionError) else FAILED


def _system(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    where = " -> ".join(files)
    text = f"{where}: {reason}" if where else reason
    if error.errno not in _FULL:
        return text
    return f"{text}{_file_system(Path(files[0])) if files else ''}; free some space and run the command again"


def _file_system(path: Path) -> str:
    """Describe the file system of a path and its free space."""
    import shutil  # here, because every command imports this module

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
