"""Communicator for ranks that are threads of one process: for tests in milliseconds and simulated workers.

The ranks run in turn: each runs until its next collective, and then the next rank runs. Each rank has its own
torch random state. Therefore a run is bitwise reproducible for any number of ranks. If a rank ends or fails
while others wait for it, an error is raised immediately and the run does not hang.
"""
# W = world size, N = elements of a vector, S = bytes of a packed buffer

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from sage.comm.packing import add, add_halves
from sage.comm.transport import Pending, ScheduleError, WireError
from sage.comm.wire import Wire

T = TypeVar("T")
Ranks = tuple[int, ...]
"""The ranks between which a wire communicates."""


def simulate(world_size: int, work: Callable[[Wire], T], *, guard: bool = False) -> list[T]:
    """Run `work(wire)` on W simulated ranks; their results, by rank.

    Raises:
        The first error raised by a rank, after all ranks have ended.

    >>> import torch
    >>> simulate(3, lambda wire: wire.mean(torch.tensor([float(wire.rank)])).item())
    [1.0, 1.0, 1.0]
    """
    table = _Table(world_size)
    results: dict[int, T] = {}

    def run(rank: int) -> None:
        try:
            table.wait_for_turn(rank)
            results[rank] = work(ThreadWire(table, rank, guard=guard))
            table.leave(rank, None)
        except BaseException as error:
            table.leave(rank, error)

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank-{rank}") for rank in range(world_size)]
    outer = torch.get_rng_state()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_rng_state(outer)
    if table.errors:
        # The error that caused the failure has priority over the errors that follow from it on other ranks.
        raise min(table.errors, key=lambda error: isinstance(error, _Abandoned))
    return [results[rank] for rank in range(world_size)]


class ThreadWire(Wire):
    """The wire of one simulated rank; created by `simulate`.

    Args:
        table: The state of all ranks.
        rank: This rank, among all.
        among: The ranks between which it communicates, ascending; None: all.
    """

    def __init__(
        self, table: "_Table", rank: int, among: Sequence[int] | None = None, *, guard: bool = False
    ) -> None:
        self._among = tuple(range(table.world_size)) if among is None else tuple(among)
        super().__init__(self._among.index(rank), len(self._among), guard=guard)
        self._table, self._place = table, rank
        self._call = ""

    def between(self, ranks: Sequence[int]) -> "ThreadWire":
        """Create a wire between some of the ranks, of which this is one; the others may not wait for it."""
        return ThreadWire(self._table, self._place, [self._among[rank] for rank in ranks], guard=self.guard)

    def _attempt(self, call: str, run: Callable[[], T]) -> T:
        self._call = call.removeprefix("guard of ")
        return run()

    def _exchange(self, x: Tensor, combine: Callable[[list[Tensor]], Tensor]) -> Tensor:
        return self._table.exchange(self._place, self._among, self._call, x, combine)

    def _sum(self, x_N: Tensor) -> None:
        x_N.copy_(self._exchange(x_N, add))

    def _sum_halves(self, x_N: Tensor) -> None:
        x_N.copy_(self._exchange(x_N, add_halves))

    def _begin_sum(self, call: str, x_N: Tensor) -> Pending:
        self._attempt(call, lambda: self._sum(x_N))
        return _Done(x_N)

    def _gather(self, x_S: Tensor) -> Tensor:
        return self._exchange(x_S, torch.stack)

    def _gather_in_place(self, all_rows: Sequence[Tensor]) -> None:
        for rows_WK in all_rows:
            rows_WK.copy_(self._exchange(rows_WK[self.rank], torch.stack))

    def _gather_on_host(self, x_S: Tensor) -> Tensor:
        return self._gather(x_S)

    def _gather_ragged(self, x_S: Tensor, sizes: Sequence[int]) -> Tensor:
        return self._exchange(x_S, torch.cat)

    def _fill(self, pieces: Sequence[Tensor]) -> None:
        filled_N = self._exchange(pieces[self.rank], torch.cat)
        for piece, filled in zip(pieces, filled_N.split([piece.numel() for piece in pieces]), strict=True):
            piece.copy_(filled)

    def _broadcast(self, x_N: Tensor, root: int) -> None:
        x_N.copy_(self._exchange(x_N, lambda all_W: all_W[root].clone()))

    def _gather_to(self, x_N: Tensor, root: int) -> Tensor:
        all_WN = self._exchange(x_N, torch.stack)
        return all_WN if self.rank == root else all_WN[:0].clone()

    def _reduce_scatter(self, x_WN: Tensor) -> Tensor:
        return self._exchange(x_WN, add)[self.rank].clone()

    def _all_to_all(self, x_WN: Tensor) -> Tensor:
        return self._exchange(x_WN, torch.stack)[:, self.rank].clone()

    def _all_to_all_ragged(self, x_S: Tensor, sizes: Sequence[Sequence[int]], out_S: Tensor) -> Tensor:
        pieces = self._exchange(x_S, torch.cat).split([size for row in sizes for size in row])
        return torch.cat(pieces[self.rank :: self.world_size], out=out_S)


class _Done:
    def __init__(self, result: Tensor) -> None:
        self._result = result

    def wait(self) -> Tensor:
        return self._result


class _Abandoned(WireError):
    """A rank waits for a rank that has already ended."""


@dataclass
class _Round:
    """One collective: the call and input of each rank, and the result."""

    inputs: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    result: Tensor | None = None


class _Table:
    """State shared by the simulated ranks: their collectives, and which rank runs."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.errors: list[BaseException] = []
        # One semaphore per rank: a single condition would wake all ranks at every switch.
        self._turns = [threading.Semaphore(int(rank == 0)) for rank in range(world_size)]
        self._rounds: defaultdict[tuple[Ranks, int], _Round] = defaultdict(_Round)
        self._next: Counter[tuple[Ranks, int]] = Counter()
        self._num_inputs = 0
        self._left: dict[int, str] = {}
        self._random = [torch.get_rng_state() for _ in range(world_size)]

    def wait_for_turn(self, rank: int) -> None:
        self._turns[rank].acquire()
        torch.set_rng_state(self._random[rank])

    def exchange(
        self, rank: int, among: Ranks, call: str, x: Tensor, combine: Callable[[list[Tensor]], Tensor]
    ) -> Tensor:
        """Provide x, wait for the input of every other rank of `among`, and return the combined result."""
        number = self._next[among, rank]
        self._next[among, rank] += 1
        self._rounds.pop((among, number - 2), None)  # no longer needed: all ranks have entered the next round
        table = self._rounds[among, number]
        table.inputs[rank] = (call, x)
        self._num_inputs += 1
        while True:
            before = self._num_inputs
            self._pass_turn(rank)
            self.wait_for_turn(rank)
            if len(table.inputs) == len(among):
                break
            # Every other rank has run since. If none has provided an input, none will.
            if self._num_inputs == before:
                ends = "; ".join(f"rank {other} {end}" for other, end in sorted(self._left.items()))
                why = f"that have ended: {ends}" if ends else "that wait in other collectives"
                raise _Abandoned(f"rank {rank} waits in {call} for ranks {why}")
        calls = {other: made for other, (made, _) in sorted(table.inputs.items())}
        if len(set(calls.values())) > 1:
            calls_by_rank = "; ".join(f"rank {other} calls {made}" for other, made in calls.items())
            raise ScheduleError(f"the ranks' collectives differ: {calls_by_rank}")
        if table.result is None:
            table.result = combine([table.inputs[other][1] for other in calls])
        return table.result

    def leave(self, rank: int, error: BaseException | None) -> None:
        """Record that this rank has ended, and let the next rank run, so that waiting ranks detect it."""
        if error is not None:
            self.errors.append(error)
        self._left[rank] = f"has failed ({type(error).__name__}: {error})" if error else "has ended"
        self._pass_turn(rank)

    def _pass_turn(self, rank: int) -> None:
        self._random[rank] = torch.get_rng_state()
        others = [(rank + step) % self.world_size for step in range(1, self.world_size + 1)]
        following = next((other for other in others if other not in self._left), None)
        if following is not None:
            self._turns[following].release()
