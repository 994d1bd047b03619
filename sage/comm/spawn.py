"""Starts all ranks of a run as processes on this machine, and ends them all if one fails."""

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from sage.comm.rendezvous import Place, local_places
from sage.exit_status import FAILED, FATAL, INTERRUPTED, KEYBOARD
from sage.output import streams

GRACE = 10.0
"""Seconds that the other ranks have, after one rank failed, to detect the failure and exit."""


@dataclass(frozen=True)
class SharedErrors:
    """Shared memory of the ranks of one machine: which ranks have reported an error, and the first error."""

    has_reported: Any
    """A shared array of W bytes; 1 for each rank that has reported why it exits."""
    first: Any
    """A shared array of bytes: the first message, without its rank prefix."""
    has_refused: Any
    """A shared boolean: whether a rank has refused the settings of the run."""

    def report(self, rank: int, text: str, *, is_refusal: bool, is_consequence: bool) -> bool:
        """Mark that a rank reports why it exits; return False if its text would add nothing for the user."""
        message = text.removeprefix(f"rank {rank}: ").encode(errors="replace")[:SHARED_BYTES]
        self.has_reported[rank] = 1
        with self.first.get_lock():
            # A rank that is late finds its collective broken by the ranks that have refused and exited.
            if self.first.value == message or (is_consequence and self.has_refused.value):
                return False
            if is_refusal:
                self.has_refused.value = 1
            if not self.first.value:
                self.first.value = message
            return True


SHARED_BYTES = 4096
"""Number of bytes of the first message that are compared."""

_shared_errors: SharedErrors | None = None
"""In a spawned rank: the memory that it shares with the others."""


def is_new_error(rank: int, text: str, *, is_refusal: bool = False, is_consequence: bool = False) -> bool:
    """Record that a rank reports why it exits, and return whether to print it.

    Args:
        rank: The rank.
        text: The message.
        is_refusal: Whether the settings are wrong, so that every rank would fail in the same way.
        is_consequence: Whether the error was caused by the exit of another rank.

    Returns:
        False if another spawned rank has reported the same text, or if another one has refused the settings
        and this error is a consequence.
    """
    return _shared_errors is None or _shared_errors.report(
        rank, text, is_refusal=is_refusal, is_consequence=is_consequence
    )


@dataclass(frozen=True)
class Ended:
    """How the ranks have ended."""

    status: int
    """Their combined exit status, as `spawn` returns it."""
    lost: tuple[int, ...] = ()
    """The ranks that ended without reporting why, if no rank ended for another reason than their loss."""


def spawn(rank: Callable[[Place], int], world_size: int, *, method: Literal["fork", "spawn"]) -> int:
    """Run `rank(place)` in W processes as `spawn_ranks`, and return their combined exit status."""
    return spawn_ranks(rank, world_size, method=method).status


def spawn_ranks(rank: Callable[[Place], int], world_size: int, *, method: Literal["fork", "spawn"]) -> Ended:
    """Run `rank(place)` in W processes, and return how they have ended.

    The status is 2 if one rank's is 2, else 130 if one rank's is 130. Otherwise it is 0 if all are 0, 75 if
    all are 0 or 75, and 1 in all other cases. A rank that exits before `rank` returns, for example by
    os._exit, counts as failed with any status, and a message names it. SIGTERM, SIGUSR1 and SIGUSR2 are
    forwarded to the ranks. The first SIGINT is forwarded as SIGTERM, since a terminal sends SIGINT to the
    ranks too; a second SIGINT kills all ranks. If this process dies, the ranks are killed.
    """
    context: Any = multiprocessing.get_context(method)
    shared = SharedErrors(
        context.Array("b", world_size), context.Array("c", SHARED_BYTES + 1), context.Value("b", 0)
    )
    ranks = [
        context.Process(target=_child, args=(rank, place, os.getpid(), shared), name=f"rank {place.rank}")
        for place in local_places(world_size)
    ]
    for process in ranks:
        process.start()
    with _signals_forwarded(ranks) as interrupts:
        killed = _await(ranks)
    if len(interrupts) > 1:
        return Ended(KEYBOARD)
    unreported = [process for process, spoken in zip(ranks, shared.has_reported, strict=True) if not spoken]
    for process in unreported:
        how = (
            f"was terminated by {signal.Signals(-process.exitcode).name}"
            if process.exitcode < 0
            else f"exited with status {process.exitcode} before it had finished: it called os._exit"
        )
        if process.exitcode != KEYBOARD:
            print(f"sage: {process.name} {how}", file=sys.stderr)
    codes = {process.exitcode for process in ranks}
    for status in (FATAL, KEYBOARD):
        if status in codes:
            return Ended(status)
    if not unreported:
        return Ended(FAILED if codes - {0, INTERRUPTED} else max(codes))
    others = {process.exitcode for process in ranks if process not in (*unreported, *killed)}
    is_their_loss = not interrupts and others <= {FAILED}
    lost = [number for number, process in enumerate(ranks) if process in unreported and process not in killed]
    return Ended(FAILED, tuple(lost) if is_their_loss else ())


@contextmanager
def _signals_forwarded(ranks: Sequence[BaseProcess]) -> Iterator[list[int]]:
    """Forward signals to the ranks; yield a list with one element per received SIGINT."""
    interrupts: list[int] = []

    def forward(number: int, _: object) -> None:
        if number == signal.SIGINT:
            interrupts.append(number)
            number = signal.SIGTERM if len(interrupts) == 1 else signal.SIGKILL
        for process in ranks:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    before = {
        number: signal.signal(number, forward)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    }
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _await(ranks: Sequence[BaseProcess]) -> list[BaseProcess]:
    """Wait until all ranks have ended; return those that had to be killed after another one had failed."""
    failed_at = None
    killed: list[BaseProcess] = []
    while alive := [process for process in ranks if process.is_alive()]:
        multiprocessing.connection.wait([process.sentinel for process in alive], timeout=1.0)
        if failed_at is None and any(process.exitcode not in (None, 0, INTERRUPTED) for process in ranks):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > GRACE:
            killed = killed or alive
            for process in ranks:
                process.kill()
    return killed


def _child(rank: Callable[[Place], int], place: Place, parent: int, shared: SharedErrors) -> None:
    global _shared_errors
    _shared_errors = shared
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: killed when its parent dies
        if os.getppid() != parent:
            os._exit(FAILED)
    streams.protect()
    status = rank(place)
    shared.has_reported[place.rank] = 1
    sys.exit(status)
