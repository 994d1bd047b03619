"""The exit statuses of every command, and the line that tells the job why a run ended.

docs/exit-statuses.md has the table, and what SAGE's jobs do about each.
"""

import os
import signal
from contextlib import suppress

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


def tell_the_job(status: int, text: str) -> None:
    """Tell the batch script, which learns from srun no more than the highest exit status (jobs/batch.sh).

    The first rank to say something is the one that is heard.
    """
    if path := os.environ.get("SAGE_OUTCOME"):
        with suppress(OSError), open(path, "x") as file:
            file.write(f"{status} {' '.join(text.split())}\n")


def stop_before_it_begins() -> None:
    """Have a signal end this process as a run that stopped, until training listens to signals itself.

    There is nothing to save yet; without this, one that comes while torch is imported would look like a
    crash.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _leave)


def _leave(number: int, _: object) -> None:
    tell_the_job(INTERRUPTED, f"stopped by {signal.Signals(number).name} before it began")
    os._exit(INTERRUPTED)
