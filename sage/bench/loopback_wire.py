"""A wire without a network: times a reducer until its last collective (compress) and after it (decompress).

Every collective returns at once, as if all W ranks had passed this rank's input: a gather returns it W
times. The time is taken at the beginning and at the end of each call, so the wire's own work on a payload
(packing, padding, sending, copying, unpacking) is in neither of the times.
"""
# N = elements of the flat vector, W = ranks, S = bytes of a packed buffer

import time
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from sage.comm.wire import Wire

T = TypeVar("T")


class Stopwatch:
    """Time stamps of a device; on CUDA by events, which need no synchronisation between two stamps."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: list[float] = []
        self._events: list[torch.cuda.Event] = []
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # earlier work must not be part of the first gap

    def stamp(self) -> None:
        """Take the time."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self._events.append(event)
        else:
            self._seconds.append(time.perf_counter())

    def gaps(self) -> list[float]:
        """Seconds from each stamp to the next."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [start.elapsed_time(stop) / 1e3 for start, stop in pairwise(self._events)]
        return [stop - start for start, stop in pairwise(self._seconds)]


def stamped(call: Callable[..., T]) -> Callable[..., T]:
    """The collective with a stamp before and after it; nested collectives are not stamped."""

    @wraps(call)
    def collective(self: "LoopbackWire", *args: Any, **kwargs: Any) -> T:
        if self.inside:
            return call(self, *args, **kwargs)
        self.inside = True
        self.watch.stamp()
        try:
            return call(self, *args, **kwargs)
        finally:
            self.watch.stamp()
            self.inside = False

    return collective


class LoopbackWire(Wire):
    """The wire of rank 0 of W equal ranks: counts every byte, and returns this rank's input for each of them.

    Args:
        device: Where the vectors are.
        world_size: W, the number of payloads that a reducer decodes.

    >>> wire = LoopbackWire(torch.device("cpu"), world_size=2)
    >>> wire.gather(values=torch.tensor([3.0, 4.0]))
    (tensor([[3., 4.],
            [3., 4.]]),)
    >>> wire.ledger.payload
    Counter({'values': 8})
    """

    def __init__(self, device: torch.device, world_size: int = 1) -> None:
        super().__init__(0, world_size)
        self.watch = Stopwatch(device)
        self.inside = False
        self._last: dict[tuple[torch.Size, torch.dtype], Tensor] = {}

    def timed(self, work: Callable[[], T]) -> tuple[T, float, float]:
        """The result of `work`, and its seconds before the last collective and after it.

        The time between collectives belongs to the first number, because the rank needs their results to
        compress the rest. Without collectives, all of the time belongs to the first number.
        """
        self.watch = Stopwatch(self.watch.device)
        self.watch.stamp()
        result = work()
        self.watch.stamp()
        own = self.watch.gaps()[::2]  # the gaps between are the wire's
        return result, sum(own[:-1] or own), own[-1] if own[1:] else 0.0

    def _sum(self, x_N: Tensor) -> None:
        if self.world_size > 1:
            x_N.mul_(self.world_size)

    def _sum_halves(self, x_N: Tensor) -> None:
        if self.world_size > 1:
            x_N.copy_(x_N.float() * self.world_size)

    # A wire's result belongs to the caller and must not alias the input, except one rank's own gather.

    def _gather(self, x_S: Tensor) -> Tensor:
        return x_S.unsqueeze(0) if self.world_size == 1 else x_S.repeat(self.world_size, 1)

    def _gather_in_place(self, all_rows: Sequence[Tensor]) -> None:
        for rows_WK in all_rows:
            rows_WK[1:] = rows_WK[0]

    def _gather_ragged(self, x_S: Tensor, sizes: Sequence[int]) -> Tensor:
        return x_S if self.world_size == 1 else x_S.repeat(self.world_size)

    def _broadcast(self, x_N: Tensor, root: int) -> None:
        # Another rank's input is not known here: its broadcast is what this rank sent last in that shape.
        key = (x_N.shape, x_N.dtype)
        if root == self.rank:
            self._last[key] = x_N.clone()
        else:
            x_N.copy_(self._last[key]) if key in self._last else x_N.zero_()

    def _gather_to(self, x_N: Tensor, root: int) -> Tensor:
        return torch.stack([x_N] * self.world_size)[: self.world_size if self.rank == root else 0]

    def _reduce_scatter(self, x_WN: Tensor) -> Tensor:
        return x_WN[0] * self.world_size

    def _all_to_all(self, x_WN: Tensor) -> Tensor:
        return x_WN[:1].repeat(self.world_size, *[1] * (x_WN.dim() - 1))

    def _all_to_all_ragged(self, x_S: Tensor, sizes: Sequence[Sequence[int]], out_S: Tensor) -> Tensor:
        # Where a rank sends nothing to itself, the bytes are those that it sends to the others.
        piece_S = x_S[: sizes[0][0] or x_S.numel()]
        if not piece_S.numel():
            return out_S.zero_()
        for start in range(0, out_S.numel(), max(1, piece_S.numel())):
            part_S = out_S[start : start + piece_S.numel()]
            part_S.copy_(piece_S[: part_S.numel()])
        return out_S


ENGINE = ("begin_sum", "texts", "mean_uncounted", "close")
"""The wire's methods that reducers do not call."""

for _name, _call in vars(Wire).items():  # collectives added to Wire later are stamped too
    if callable(_call) and not _name.startswith("_") and _name not in ENGINE:
        setattr(LoopbackWire, _name, stamped(_call))
