"""Short runs of several set-ups that take turns, so that whatever else happens on the cluster meets them all.

All set-ups are trained side by side in one process group, each with a model of its own. In a round, each of
them takes a block of steps, in an order that is random and the same on all ranks. A block begins after a
barrier, and its time is that of the slowest rank. Ratios of two set-ups are taken within a round.
"""

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from sage.comm.wire import Wire
from sage.data.dataset import Batch
from sage.train.loop import Training

WARM_UP = 3
"""Steps of each set-up before the first round: buffers are allocated and controllers begin to converge."""

BLOCK_SECONDS = 0.3
"""About the duration of a block of steps."""

MOST_STEPS = 20
"""Most steps of a block."""

LEAST_ROUNDS, MOST_ROUNDS = 6, 40
"""Rounds are added until the time is over; six pairs support a statement at the 5 % level."""


@dataclass(frozen=True)
class Trial:
    """The seconds of a step of one set-up, by round."""

    steps: int
    """Steps of a block."""
    seconds: tuple[float, ...]


def measure(trainings: Sequence[Training], wire: Wire, seconds: float) -> list[Trial]:
    """Train the set-ups in turns for about `seconds`, at least six rounds; all ranks return the same.

    Raises:
        WireError: a collective failed.
        Diverged: a gradient is not finite.
    """
    batches = [_endless(training) for training in trainings]
    steps = [_warm_up(*pair, wire) for pair in zip(trainings, batches, strict=True)]
    taken: list[list[float]] = [[] for _ in trainings]
    order, end = random.Random(0), time.perf_counter() + seconds
    for finished in range(MOST_ROUNDS):
        if finished >= LEAST_ROUNDS and _first(wire, time.perf_counter() > end):
            break
        for i in order.sample(range(len(trainings)), len(trainings)):
            block = _block(trainings[i], batches[i], wire, steps[i])
            taken[i].append(block / steps[i])
    return [Trial(count, tuple(each)) for count, each in zip(steps, taken, strict=True)]


def _warm_up(training: Training, batches: Iterator[list[Batch]], wire: Wire) -> int:
    """Take the first steps, and return the number of steps of a block."""
    _block(training, batches, wire, WARM_UP - 1)
    each = _block(training, batches, wire, 1)
    return max(1, min(MOST_STEPS, math.ceil(BLOCK_SECONDS / each)))


def _block(training: Training, batches: Iterator[list[Batch]], wire: Wire, steps: int) -> float:
    """Take some steps; returns the seconds of the slowest rank."""
    wire.texts("")  # a barrier
    start = time.perf_counter()
    for _ in range(steps):
        training.take_step(next(batches))
    training.settle()
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
    taken = time.perf_counter() - start
    return max(json.loads(text) for text in wire.texts(json.dumps(taken)))


def _endless(training: Training) -> Iterator[list[Batch]]:
    while True:
        yield from training.rest_of_epoch()


def _first(wire: Wire, decision: bool) -> bool:
    """Return rank 0's decision, on every rank."""
    return bool(json.loads(wire.texts(json.dumps(decision))[0]))
