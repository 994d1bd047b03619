"""Ranks as processes of this machine, joined by gloo: what the tests run beside the thread twin's `simulate`.

Each rank is a fork, so `work` may be any closure; what it returns comes back through a pipe.
"""

import ctypes
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch

from sage.rendezvous import Place, local_places
from sage.wire import ProcessWire, Wire

T = TypeVar("T")


class Died(RuntimeError):
    """A rank's process ended without a word, or had to be ended."""


def processes(
    world_size: int, work: Callable[[Wire], T], *, timeout: float = 30.0, guard: bool = False
) -> list[T]:
    """Run `work(wire)` on W gloo processes; their results, by rank. The counterpart of `sage.threads.simulate`.

    Args:
        timeout: Seconds after which a collective fails.

    Raises:
        The first error that a rank raised, its traceback in a note, or `Died` naming the rank; all ranks have ended.
    """
    with Group(world_size, work, timeout=timeout, guard=guard) as group:
        outcomes = group.outcomes(until_error=True)
    for outcome in outcomes.values():
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcomes[rank] for rank in range(world_size)]


class Group(Generic[T]):
    """W processes running `work(wire)`, from the start of the `with` block to its end at the latest."""

    def __init__(
        self, world_size: int, work: Callable[[Wire], T], *, timeout: float = 30.0, guard: bool = False
    ) -> None:
        context = get_context("fork")
        self._ranks: dict[connection.Connection, tuple[int, BaseProcess]] = {}
        self.pids: list[int] = []
        for place in local_places(world_size):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(place, work, timeout, guard, theirs), daemon=True)
            with warnings.catch_warnings():
                # Python 3.12 warns of fork where there are threads. Those of torch sleep: see `_rank`.
                warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
                process.start()
            theirs.close()
            assert process.pid
            self.pids.append(process.pid)
            self._ranks[ours] = (place.rank, process)

    def __enter__(self) -> "Group[T]":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe, (_, process) in self._ranks.items():
            process.kill()
            process.join()
            pipe.close()

    def outcomes(self, *, until_error: bool = False, seconds: float = 120.0) -> dict[int, T | BaseException]:
        """What each rank returned or raised, in the order in which they ended.

        Args:
            until_error: Wait for no more ranks once one has failed.
            seconds: How long to wait; who has not ended by then is `Died`.
        """
        outcomes: dict[int, T | BaseException] = {}
        waiting = dict(self._ranks)
        end = time.monotonic() + seconds
        while waiting:
            ready = connection.wait(list(waiting), max(0.0, end - time.monotonic()))
            for pipe in ready or list(waiting):
                assert isinstance(pipe, connection.Connection)
                rank, process = waiting.pop(pipe)
                outcomes[rank] = _outcome(pipe, process, rank) if ready else Died(f"rank {rank} has not ended in {seconds:g} s")
                if until_error and isinstance(outcomes[rank], BaseException):
                    return outcomes
        return outcomes


def _outcome(pipe: connection.Connection, process: BaseProcess, rank: int) -> Any:
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit status {code}"
        return Died(f"rank {rank} {how}")


def _rank(
    place: Place, work: Callable[[Wire], object], timeout: float, guard: bool, pipe: connection.Connection
) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no rank outlives the tests
    torch.set_num_threads(1)  # a fork has none of its parent's threads, and must not wait for them
    outcome: object
    try:
        wire = ProcessWire(place, device=torch.device("cpu"), timeout=timeout, guard=guard)
        outcome = work(wire)
        wire.close()
    except BaseException as error:
        error.add_note(f"on rank {place.rank}, process {os.getpid()}:\n{traceback.format_exc()}")
        outcome = error
    # Not `pipe.send`: torch teaches it to share a tensor's memory, which ends with this process.
    pipe.send_bytes(pickle.dumps(outcome))
