"""The slow-down γ of backward by communication that runs at the same time."""

import json
import math
import statistics
from collections.abc import Callable, Sequence

import torch

from sage.bench.calibrate.collectives import KIND, slowest
from sage.comm.transport import Pending
from sage.comm.wire import Wire
from sage.predict.calibration import Samples
from sage.timing import Phases
from sage.train.loop import Training
from sage.train.mounted_whole import whole_of

Backward = Callable[[Callable[[], None]], float]
"""Runs forward, calls the given function, runs backward, and returns the seconds of backward."""

REPEATS = 5
"""Number of pairs of a backward alone and one during communication."""

COVER = 1.25
"""Duration of the communication as a multiple of backward's, so that it does not end before."""

MOST_CALLS = 200
"""Most all-reduces during one backward."""


def measure(
    backward: Backward, links: Sequence[Samples], wire: Wire, *, most_bytes: int, device: torch.device
) -> list[float]:
    """Return the ratios of backward during all-reduces to backward alone, of all ranks.

    All ranks do the same at the same time. The all-reduces begin between forward and backward, have one size,
    and their number is such that they take a little longer than backward.

    Args:
        backward: Runs a step of this rank, after some that were not timed.
        links: Times of the collectives, the same on all ranks.
        wire: The communicator.
        most_bytes: Largest size of an all-reduce: the bytes of the gradient.
        device: The device of the gradient.
    """
    alone = slowest(wire, backward(lambda: None), device)
    size, calls = load(links, most_bytes=most_bytes, backward=alone)
    x_N = torch.zeros(size // 4, device=device)  # sums of zeros: all calls may share their memory
    ratios: list[float] = []
    for _ in range(REPEATS):
        wire.texts("")  # a barrier
        seconds = backward(lambda: None)
        wire.texts("")
        ratios.append(_during(backward, wire, x_N, calls) / seconds)
    return [ratio for text in wire.texts(json.dumps(ratios)) for ratio in json.loads(text)]


def _during(backward: Backward, wire: Wire, x_N: torch.Tensor, calls: int) -> float:
    """Return the seconds of backward while `calls` all-reduces of a vector run."""
    pending: list[Pending] = []
    seconds = backward(lambda: pending.extend(wire.begin_sum(x_N, KIND) for _ in range(calls)))
    for reduction in pending:
        reduction.wait()
    return seconds


def load(links: Sequence[Samples], *, most_bytes: int, backward: float) -> tuple[int, int]:
    """Return the size in bytes and the number of the all-reduces that run during a backward.

    The size is the largest measured one that is not above `most_bytes` and takes at most half of backward,
    which takes `backward` seconds.

    >>> links = [Samples("all_reduce", "inter", 2, 1024 * 4**i, (0.01 * 4**i,)) for i in range(4)]
    >>> load(links, most_bytes=10**6, backward=0.2)
    (4096, 7)
    """
    reduces = [samples for samples in links if samples.collective == "all_reduce"]
    between = [samples for samples in reduces if samples.scope == "inter"] or reduces
    times = {samples.bytes: statistics.median(samples.seconds) for samples in between}
    fitting = [size for size, seconds in times.items() if size <= most_bytes and seconds <= backward / 2]
    size = max(fitting, default=min(times))
    return size, min(MOST_CALLS, math.ceil(COVER * backward / times[size]))


class _WithCommunication(Phases):
    """Phases that call a function when the first backward begins."""

    def __init__(self, device: torch.device, begin: Callable[[], None]) -> None:
        super().__init__(device)
        self._begin = begin
        self._has_begun = False

    def enter(self, name: str) -> None:
        if name == "backward" and not self._has_begun:
            self._has_begun = True
            self._begin()
        super().enter(name)


def of_training(training: Training) -> Backward:
    """Return a training's forward and backward, without a reduction."""
    batches = training.endless_batches()

    def backward(begin: Callable[[], None]) -> float:
        phases = _WithCommunication(training.device, begin)
        with phases.running():
            whole_of(training.mount).backward(next(batches))
        return phases.take()["backward"]

    return backward
