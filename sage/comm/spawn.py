"""Starts all ranks of a run on this machine, as processes, and ends them all when one fails."""

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from sage import output
from sage.comm.rendezvous import Place, local_places
from sage.outcome import FAILED, HOPELESS, INTERRUPTED

GRACE = 10.0
"""Seconds that the other ranks get, after one has failed, to notice it by themselves."""


def spawn(rank: Callable[[Place], int], world_size: int, *, method: Literal["fork", "spawn"]) -> int:
    """Run `rank(place)` in W processes, and return the exit status of all together.

    That is 0 where all are 0, 75 where the others are 75, 2 where one is 2, and else 1. SIGTERM, SIGUSR1
    and SIGUSR2 are handed on to the ranks; SIGINT is not, as a terminal sends it to them too. If this
    process dies, so do the ranks.
    """
    context: Any = multiprocessing.get_context(method)
    ranks = [
        context.Process(target=_child, args=(rank, place, os.getpid()), name=f"rank {place.rank}")
        for place in local_places(world_size)
    ]
    for process in ranks:
        process.start()
    with _signals_handed_on(ranks):
        _await(ranks)
    for process in ranks:
        if process.exitcode < 0:
            print(
                f"sage: {process.name} was ended by {signal.Signals(-process.exitcode).name}", file=sys.stderr
            )
    codes = {process.exitcode for process in ranks}
    if HOPELESS in codes:
        return HOPELESS
    return FAILED if codes - {0, INTERRUPTED} else max(codes)


@contextmanager
def _signals_handed_on(ranks: Sequence[BaseProcess]) -> Iterator[None]:
    def hand_on(number: int, _: object) -> None:
        for process in ranks:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    before = {
        number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    }
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
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


def _child(rank: Callable[[Place], int], place: Place, parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: the kernel kills it with its parent
        if os.getppid() != parent:
            os._exit(FAILED)
    output.protect()
    sys.exit(rank(place))
