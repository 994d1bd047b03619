"""The collectives whose times are measured: what each one exchanges for a number of bytes from every rank."""
# W = world size, N = elements, S = bytes

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sage.comm.wire import Wire
from sage.predict.calibration_schema import Collective

KIND = "probe"
"""The kind of these bytes in the ledger."""


def _all_reduce(wire: Wire, x_S: Tensor) -> None:
    wire.sum(_floats(x_S), KIND)


def _all_gather(wire: Wire, x_S: Tensor) -> None:
    wire.gather(**{KIND: x_S})


def _ragged_gather(wire: Wire, x_S: Tensor) -> None:
    wire.gather_ragged(**{KIND: x_S})


def _broadcast(wire: Wire, x_S: Tensor) -> None:
    wire.broadcast(x_S, kind=KIND)


def _all_to_all(wire: Wire, x_S: Tensor) -> None:
    wire.all_to_all(x_S.view(wire.world_size, -1), KIND)


def _reduce_scatter(wire: Wire, x_S: Tensor) -> None:
    wire.reduce_scatter(_floats(x_S).view(wire.world_size, -1), KIND)


def _floats(x_S: Tensor) -> Tensor:
    return x_S.view(torch.float32)


CALLS: Mapping[Collective, Callable[[Wire, Tensor], None]] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "ragged_gather": _ragged_gather,
    "broadcast": _broadcast,
    "all_to_all": _all_to_all,
    "reduce_scatter": _reduce_scatter,
}
"""Calls of a wire with a vector of S bytes, by collective."""

GATHERING: tuple[Collective, ...] = ("all_gather", "ragged_gather")
"""Collectives after which each rank has the vectors of all ranks."""


def fitted_size(size: int, world_size: int) -> int:
    """Return the least number of bytes from `size` on that every collective can exchange.

    It is a multiple of 4·W, since `all_to_all` and `reduce_scatter` cut a vector of float32 into W pieces.

    >>> fitted_size(1024, 2), fitted_size(1024, 3), fitted_size(1, 2)
    (1024, 1032, 8)
    """
    step = 4 * world_size
    return max(step, -(-size // step) * step)


def timed(wire: Wire, collective: Collective, x_S: Tensor) -> float:
    """Return the seconds of one collective with a vector of S bytes on this rank.

    On a CPU, what the wire does before and after it is not part of the time: packing, copying, and the
    exchange of the lengths before a gather of vectors of unequal length.
    """
    if not x_S.is_cuda:
        with wire.ledger.recording() as entries:
            CALLS[collective](wire, x_S)
        return entries[-1].seconds
    torch.cuda.synchronize(x_S.device)  # NCCL's calls return before they have ended
    start = time.perf_counter()
    CALLS[collective](wire, x_S)
    torch.cuda.synchronize(x_S.device)
    return time.perf_counter() - start


def slowest(wire: Wire, seconds: float, device: torch.device) -> float:
    """Return the largest of the ranks' times; the exchange is also a barrier."""
    own = torch.tensor(seconds, dtype=torch.float64, device=device)
    (seconds_W,) = wire.gather(**{KIND: own})
    return float(seconds_W.max())
