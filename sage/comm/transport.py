"""How one collective is executed: compared between the ranks if demanded, timed, and counted in the ledger.

`Wire` (sage/comm/wire.py) defines the collectives in terms of it. Its two subclasses move the bytes:
`ProcessWire` through torch.distributed, `ThreadWire` between the threads of one process.
"""
# W = world size, N = elements of a vector, S = bytes of a packed buffer

import time
import zlib
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from sage.comm.ledger import Ledger, ring_all_gather
from sage.comm.scratch import Scratch
from sage.timing import phase

T = TypeVar("T")

GUARD_BYTES = 128
"""Bytes of a call's description that the schedule guard sends; a longer description ends in a hash."""


class WireError(RuntimeError):
    """A collective failed or timed out; the message gives rank, op and, if known, the rank that caused it."""


class ScheduleError(WireError):
    """Ranks called different collectives, or the same one with different shapes or dtypes."""


class Pending(Protocol):
    """An asynchronous collective."""

    def wait(self) -> Tensor: ...


class Transport:
    """Base class: W ranks that execute collectives, each of which is recorded in `ledger`.

    Args:
        guard: Compare op, shape and dtype between the ranks before every collective, and raise
            `ScheduleError` on all ranks if they differ, instead of a hang or a wrong result. Costs one small
            message per collective.
    """

    def __init__(self, rank: int, world_size: int, *, guard: bool = False) -> None:
        self.rank = rank
        self.world_size = world_size
        self.stream = rank
        """Number of this rank's random numbers: no other rank that encodes the same gradient has it."""
        self.guard = guard
        self.ledger = Ledger()
        self.scratch = Scratch()
        self.is_in_node = False
        """Whether all ranks are on one node, and the ledger counts their bytes as such."""
        self.last_end = 0.0
        """When the last collective ended (`time.perf_counter`)."""

    def _collective(
        self, call: str, payload: dict[str, int], traffic: tuple[int, int], run: Callable[[], T]
    ) -> T:
        if self.guard:
            self._compare(call)
        start = time.perf_counter()
        with phase("communicate", call):
            result = self._attempt(call, run)
        self.last_end = time.perf_counter()
        seconds = self.last_end - start
        self.ledger.add(call.partition("(")[0], payload, traffic, seconds, in_node=self.is_in_node)
        return result

    def _compare(self, call: str) -> None:
        """Compare the call with those of all other ranks before it is made (the schedule guard)."""
        encoded = call.encode()
        if len(encoded) > GUARD_BYTES:  # a difference in the removed part must be detected
            digest = b"... #%08x" % zlib.crc32(encoded)
            encoded = encoded[: GUARD_BYTES - len(digest)] + digest
        own_S = torch.frombuffer(bytearray(encoded.ljust(GUARD_BYTES, b"\0")), dtype=torch.uint8)
        all_WS = self._attempt(f"guard of {call}", lambda: self._gather_on_host(own_S))
        traffic = ring_all_gather(GUARD_BYTES, self.world_size)
        self.ledger.add("guard", {"guard": GUARD_BYTES}, traffic, in_node=self.is_in_node)
        calls = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in all_WS.tolist()]
        if len(set(calls)) > 1:
            calls_by_rank = "; ".join(f"rank {rank} calls {call}" for rank, call in enumerate(calls))
            raise ScheduleError(f"the ranks' collectives differ: {calls_by_rank}")

    # Methods that each subclass implements.

    def _attempt(self, call: str, run: Callable[[], T]) -> T:
        return run()

    def _sum(self, x_N: Tensor) -> None:
        raise NotImplementedError

    def _sum_halves(self, x_N: Tensor) -> None:
        raise NotImplementedError

    def _begin_sum(self, call: str, x_N: Tensor) -> Pending:
        raise NotImplementedError

    def _gather(self, x_S: Tensor) -> Tensor:
        raise NotImplementedError

    def _gather_in_place(self, all_rows: Sequence[Tensor]) -> None:
        """Gather several parts, each of which has one row per rank; this rank's row is its input."""
        raise NotImplementedError

    def _gather_on_host(self, x_S: Tensor) -> Tensor:
        raise NotImplementedError

    def _gather_ragged(self, x_S: Tensor, sizes: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def _fill(self, pieces: Sequence[Tensor]) -> None:
        """Give every rank piece r from rank r, in place."""
        raise NotImplementedError

    def _broadcast(self, x_N: Tensor, root: int) -> None:
        raise NotImplementedError

    def _gather_to(self, x_N: Tensor, root: int) -> Tensor:
        raise NotImplementedError

    def _reduce_scatter(self, x_WN: Tensor) -> Tensor:
        raise NotImplementedError

    def _all_to_all(self, x_WN: Tensor) -> Tensor:
        raise NotImplementedError

    def _all_to_all_ragged(self, x_S: Tensor, sizes: Sequence[Sequence[int]], out_S: Tensor) -> Tensor:
        """Send `sizes[a][b]` bytes from rank a to rank b; what this rank receives is written to `out_S`."""
        raise NotImplementedError
