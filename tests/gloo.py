"""Runs ranks as gloo processes on this machine; the counterpart of `simulate`, which runs them as threads.

Each rank is a fork, so `work` may be any closure. Its return value is sent through a pipe.
"""

import ctypes
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch

from sage.comm.process import ProcessWire
from sage.comm.rendezvous import Place, local_places
from sage.comm.wire import Wire

T = TypeVar("T")


class RankEnded(RuntimeError):
    """A rank's process ended without a result, or was killed after a timeout."""


def processes(
    world_size: int, work: Callable[[Wire], T], *, timeout: float = 30.0, guard: bool = False
) -> list[T]:
    """Run `work(wire)` on W gloo processes and return the results by rank, as `simulate` does.

    Args:
        timeout: Seconds after which a collective fails.

    Raises:
        The first error that a rank raised, with its traceback in a note, or `RankEnded` with the rank. All
        ranks have ended when the error is raised.
    """
    results: dict[int, T] = {}
    with Group(local_places(world_size), work, timeout=timeout, guard=guard) as group:
        for rank, outcome in group.outcomes():
            if isinstance(outcome, BaseException):
                raise outcome
            results[rank] = outcome
    return [results[rank] for rank in range(world_size)]


class Group(Generic[T]):
    """Processes at the given places that run `work(wire)`; they end with the `with` block at the latest."""

    def __init__(
        self,
        places: Sequence[Place],
        work: Callable[[Wire], T],
        *,
        timeout: float = 30.0,
        guard: bool = False,
    ) -> None:
        context = get_context("fork")
        self._ranks: dict[connection.Connection, tuple[int, BaseProcess]] = {}
        for place in places:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(place, work, timeout, guard, theirs), daemon=True)
            with warnings.catch_warnings():
                # Python 3.12 warns about forks in a process with threads. torch's are idle: see `_rank`.
                warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
                process.start()
            theirs.close()
            self._ranks[ours] = (place.rank, process)

    def __enter__(self) -> "Group[T]":
        return self

    def __exit__(self, *error: object) -> None:
        for pipe, (_, process) in self._ranks.items():
            process.kill()
            process.join()
            pipe.close()

    def outcomes(self, seconds: float = 300.0) -> Iterator[tuple[int, T | BaseException]]:
        """Yield each rank's result or error as it ends; `RankEnded` for a rank slower than `seconds`."""
        waiting = dict(self._ranks)
        end = time.monotonic() + seconds
        while waiting:
            ended = connection.wait(list(waiting), max(0.0, end - time.monotonic()))
            for pipe in ended or list(waiting):
                assert isinstance(pipe, connection.Connection)
                rank, process = waiting.pop(pipe)
                yield (
                    rank,
                    _outcome(pipe, process, rank)
                    if ended
                    else RankEnded(f"rank {rank} has not ended in {seconds:g} s"),
                )


def _outcome(pipe: connection.Connection, process: BaseProcess, rank: int) -> Any:
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        return RankEnded(f"rank {rank} {how}")


def _rank(
    place: Place, work: Callable[[Wire], object], timeout: float, guard: bool, pipe: connection.Connection
) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: ranks end with the tests
    torch.set_num_threads(1)  # a fork has no threads of its parent, so it must not wait for them
    outcome: object
    try:
        wire = ProcessWire(place, device=torch.device("cpu"), timeout=timeout, guard=guard)
        outcome = work(wire)
        wire.close()
    except BaseException as error:
        error.add_note(f"on rank {place.rank}, process {os.getpid()}:\n{traceback.format_exc()}")
        outcome = error
    # Not `pipe.send`: torch makes it share a tensor's memory, which is freed when this process ends.
    pipe.send_bytes(pickle.dumps(outcome))
