"""A rank alone with a stopwatch: what a reducer does before it has spoken, and after it was answered.

Every collective is answered at once with what it was given, as it would be with one rank. The watch is
stamped as a call comes in and as its answer goes out, so that what a wire does with a payload (packing,
padding, sending, unpacking) is in neither of the two times.
"""
# N = elements of the flat vector, W = ranks, which is 1, S = bytes of a packed buffer

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
    """Stamps of a device's clock: on CUDA its own events, which nobody has to wait for between two stamps."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: list[float] = []
        self._events: list[torch.cuda.Event] = []
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what was begun before is not this watch's

    def stamp(self) -> None:
        """Take the time, here and now."""
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
    """The collective with stamps around it; one that is made of others is stamped as a whole."""

    @wraps(call)
    def collective(self: "Alone", *args: Any, **kwargs: Any) -> T:
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


class Alone(Wire):
    """The wire of a single rank, which books every byte as ever and hands back what it was handed.

    >>> wire = Alone(torch.device("cpu"))
    >>> wire.gather(values=torch.tensor([3.0, 4.0]))
    (tensor([[3., 4.]]),)
    >>> wire.ledger.payload
    Counter({'values': 8})
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(0, 1)
        self.watch = Stopwatch(device)
        self.inside = False

    def timed(self, work: Callable[[], T]) -> tuple[T, float, float]:
        """What `work` returns, and its seconds up to the last collective and after it.

        The time between collectives is the first's: what a rank is told there it needs to say the rest. So is
        all of it where there is no collective.
        """
        self.watch = Stopwatch(self.watch.device)
        self.watch.stamp()
        result = work()
        self.watch.stamp()
        own = self.watch.gaps()[::2]  # the gaps between are the wire's
        return result, sum(own[:-1] or own), own[-1] if own[1:] else 0.0

    def _sum(self, x_N: Tensor) -> None:
        pass

    def _gather(self, x_S: Tensor) -> Tensor:
        return x_S.unsqueeze(0)

    def _gather_ragged(self, x_S: Tensor, sizes: Sequence[int]) -> Tensor:
        return x_S

    def _broadcast(self, x_N: Tensor, root: int) -> None:
        pass

    # What came from a wire is the caller's own, and no other name of what he gave.

    def _gather_to(self, x_N: Tensor, root: int) -> Tensor:
        return x_N.unsqueeze(0).clone()

    def _reduce_scatter(self, x_WN: Tensor) -> Tensor:
        return x_WN[0].clone()

    def _all_to_all(self, x_WN: Tensor) -> Tensor:
        return x_WN.clone()

    def _all_to_all_ragged(self, x_S: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
        return x_S.clone()


ENGINE = ("begin_sum", "texts", "close")
"""Of what a wire offers, what no reducer calls."""

for _name, _call in vars(Wire).items():  # one that is added to it tomorrow is stamped too
    if callable(_call) and not _name.startswith("_") and _name not in ENGINE:
        setattr(Alone, _name, stamped(_call))
