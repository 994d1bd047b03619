"""The slow-down γ of backward by communication that runs at the same time."""

import math
import statistics
from collections.abc import Sequence

import torch

from sage.bench.calibrate.collectives import KIND, slowest
from sage.data.dataset import Batch
from sage.predict.calibration import Samples
from sage.train.loop import Training
from sage.train.mounted_whole import whole_of

REPEATS = 5
"""Number of pairs of a backward alone and one during communication."""

COVER = 1.25
"""Duration of the communication as a multiple of backward's, so that it does not end before."""

MOST_CALLS = 200
"""Most all-reduces during one backward."""


def measure(training: Training, links: Sequence[Samples]) -> list[float]:
    """Return this rank's ratios of backward during all-reduces to backward alone.

    All ranks do the same at the same time. The all-reduces have one size, and their number is such that they
    take a little longer than backward.

    Args:
        training: With `--profile`, after some steps.
        links: Times of the collectives, the same on all ranks.
    """
    batches = training.endless_batches()
    alone = slowest(training.wire, _backward(training, next(batches)), training.device)
    size, calls = load(links, most_bytes=whole_of(training.mount).whole.grad_N.nbytes, backward=alone)
    ratios = []
    for _ in range(REPEATS):
        seconds = _backward(training, next(batches))
        ratios.append(_backward(training, next(batches), size=size, calls=calls) / seconds)
    return ratios


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


def _backward(training: Training, batches: list[Batch], *, size: int = 0, calls: int = 0) -> float:
    """Return the seconds of backward while `calls` all-reduces of `size` bytes run."""
    training.wire.texts("")  # a barrier
    x_N = torch.zeros(size // 4, device=training.device)  # sums of zeros: all calls may share their memory
    pending = [training.wire.begin_sum(x_N, KIND) for _ in range(calls)]
    with training.phases.running():
        whole_of(training.mount).backward(batches)
    seconds = training.phases.take()["backward"]
    for reduction in pending:
        reduction.wait()
    return seconds
