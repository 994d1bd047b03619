"""The exit statuses of every command, and the line that tells the job why a run ended.

docs/exit-statuses.md has the table, and what SAGE's jobs do about each.
"""

import os
import signal
import threading
from contextlib import suppress

from .text import clean_text

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


LONGEST = 400
"""Characters of a message that are shown in a line of their own; the rest is cut off."""


def tell_the_job(status: int, text: str) -> None:
    """Tell the batch script the exit status and the reason: srun returns only the highest of all statuses.

    The first rank that tells is the one that counts. The file is in the job's own folder (jobs/batch.sh).
    """
    if path := os.environ.get("SAGE_OUTCOME"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(OSError):
            descriptor = os.open(path, flags, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(f"{status} {clean_text(text, LONGEST)}\n")


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
