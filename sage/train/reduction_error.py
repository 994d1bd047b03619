"""`--vnmse-every`: the error of what a reduction returned, relative to the exact mean over ranks.

    vNMSE = ‖ĝ − ḡ‖² / ‖ḡ‖²

ḡ is the mean over ranks of the vectors that they passed to the reduction, and ĝ is what it returned to all of
them: the metric of DynamiQ (2026, https://arxiv.org/abs/2602.08923; seen as an abstract). With error feedback
ĝ also contains what earlier steps did not send, so that the figure is not the error of the compressor alone,
and may exceed 1 although nothing is lost.
"""
# N = elements of a flat gradient

import time

import torch
from torch import Tensor

from sage.comm.wire import Wire
from sage.config import Config
from sage.mount.flat import Flat
from sage.reduction.reducer import Reduced


class ReductionError:
    """Measures the error of the reductions of some steps.

    A measurement takes a copy of the gradient and one dense all-reduce. Its bytes are not in the ledger, and
    its time is in `seconds`, for the step to subtract.

    Args:
        config: `vnmse_every` is read from it, and `local_steps`: with local updates, the first exchange from
            each such step on is measured.
    """

    def __init__(self, config: Config) -> None:
        self._every, self._round = config.vnmse_every, config.local_steps or 1
        self._is_due = False
        self._squares: list[tuple[float, float]] = []
        """Of each measured reduction of the step: ‖ĝ − ḡ‖² and ‖ḡ‖²."""
        self.seconds = 0.0
        """Time of this step's measurements."""

    def begin_step(self, step: int) -> None:
        """Receive the number of the step that begins."""
        self._is_due = self._every is not None and step % self._every < self._round
        self._squares, self.seconds = [], 0.0

    def reduce(self, flat: Flat, wire: Wire, lr: float) -> Reduced:
        """Reduce a flat gradient, and measure the error if it is due; a collective call."""
        if not self._is_due:
            return flat(wire, lr)
        start = _now(flat.grad_N)
        exact_N = flat.grad_N.clone()
        self.seconds += _now(exact_N) - start
        reduced: Reduced = flat(wire, lr)
        start = _now(exact_N)
        wire.mean_uncounted(exact_N)
        square = _square(exact_N)
        self._squares.append((_square(exact_N.sub_(flat.grad_N)), square))
        self.seconds += _now(exact_N) - start
        return reduced

    def fields(self) -> dict[str, float | None]:
        """The field of the step's record, if it was measured; None where the exact mean is 0."""
        if not self._squares:
            return {}
        square = sum(square for _, square in self._squares)
        return {"vnmse": sum(error for error, _ in self._squares) / square if square else None}


def _square(x_N: Tensor) -> float:
    return float(torch.linalg.vector_norm(x_N, dtype=torch.float64)) ** 2


def _now(x_N: Tensor) -> float:
    """The time, once the device of x_N has done its work."""
    if x_N.is_cuda:
        torch.cuda.synchronize(x_N.device)
    return time.perf_counter()
