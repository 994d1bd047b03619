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
from sage.exit_status import FAILED, HOPELESS, INTERRUPTED, KEYBOARD
from sage.output import streams

GRACE = 10.0
"""Seconds that the other ranks have, after one rank failed, to detect the failure and exit."""


@dataclass(frozen=True)
class Voice:
    """Shared memory of the ranks of one machine: which ranks have printed an error, and the first error."""

    has_spoken: Any
    """A shared array of W bytes; 1 for each rank that has reported why it exits."""
    first: Any
    """A shared array of bytes: the first message, without its rank prefix."""

    def say(self, rank: int, text: str) -> bool:
        """Mark that a rank reports why it exits; return False if another rank has reported the same text."""
        said = text.removeprefix(f"rank {rank}: ").encode(errors="replace")[:SHARED_BYTES]
        self.has_spoken[rank] = 1
        with self.first.get_lock():
            if self.first.value == said:
                return False
            if not self.first.value:
                self.first.value = said
            return True


SHARED_BYTES = 4096
"""Number of bytes of the first message that are compared."""

_voice: Voice | None = None
"""In a spawned rank: the memory that it shares with the others."""


def is_news(rank: int, text: str) -> bool:
    """Record that a rank reports why it exits; return False if another spawned rank reported the same."""
    return _voice is None or _voice.say(rank, text)


def spawn(rank: Callable[[Place], int], world_size: int, *, method: Literal["fork", "spawn"]) -> int:
    """Run `rank(place)` in W processes, and return their combined exit status.

    The status is 2 if one rank's is 2, else 130 if one rank's is 130. Otherwise it is 0 if all are 0, 75 if
    all are 0 or 75, and 1 in all other cases. A rank that exits before `rank` returns, for example by
    os._exit, counts as failed with any status, and a message names it. SIGTERM, SIGUSR1 and SIGUSR2 are
    forwarded to the ranks. The first SIGINT is forwarded as SIGTERM, since a terminal sends SIGINT to the
    ranks too; a second SIGINT kills all ranks. If this process dies, the ranks are killed.
    """
    context: Any = multiprocessing.get_context(method)
    shared = Voice(context.Array("b", world_size), context.Array("c", SHARED_BYTES + 1))
    ranks = [
        context.Process(target=_child, args=(rank, place, os.getpid(), shared), name=f"rank {place.rank}")
        for place in local_places(world_size)
    ]
    for process in ranks:
        process.start()
    with _signals_handed_on(ranks) as interrupts:
        _await(ranks)
    if len(interrupts) > 1:
        return KEYBOARD
    silent = [process for process, spoken in zip(ranks, shared.has_spoken, strict=True) if not spoken]
    for process in silent:
        how = (
            f"was ended by {signal.Signals(-process.exitcode).name}"
            if process.exitcode < 0
            else f"left with exit status {process.exitcode} before its end: something called os._exit"
        )
        if process.exitcode != KEYBOARD:
            print(f"sage: {process.name} {how}", file=sys.stderr)
    codes = {process.exitcode for process in ranks}
    for status in (HOPELESS, KEYBOARD):
        if status in codes:
            return status
    return FAILED if silent or codes - {0, INTERRUPTED} else max(codes)


@contextmanager
def _signals_handed_on(ranks: Sequence[BaseProcess]) -> Iterator[list[int]]:
    """Forward signals to the ranks; yield a list with one element per received SIGINT."""
    interrupts: list[int] = []

    def hand_on(number: int, _: object) -> None:
        if number == signal.SIGINT:
            interrupts.append(number)
            number = signal.SIGTERM if len(interrupts) == 1 else signal.SIGKILL
        for process in ranks:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    before = {
        number: signal.signal(number, hand_on)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    }
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _await(ranks: Sequence[BaseProcess]) -> None:
    failed_at = None
    while alive := [process for process in ranks if process.is_alive()]:
        multiprocessing.connection.wait([process.sentinel for process in alive], timeout=1.0)
        if failed_at is None and any(process.exitcode not in (None, 0, INTERRUPTED) for process in ranks):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > GRACE:
            for process in ranks:
                process.kill()


def _child(rank: Callable[[Place], int], place: Place, parent: int, shared: Voice) -> None:
    global _voice
    _voice = shared
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: killed when its parent dies
        if os.getppid() != parent:
            os._exit(FAILED)
    streams.protect()
    status = rank(place)
    shared.has_spoken[place.rank] = 1
    sys.exit(status)
