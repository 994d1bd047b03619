"""Short runs of several set-ups in alternation, so that other load on the cluster affects all of them alike.

All set-ups are trained side by side in one process group, each with a model of its own. In a round, each of
them takes a block of steps, in an order that is random and the same on all ranks. A block begins after a
barrier, and its time is that of the slowest rank. Ratios of two set-ups are taken within a round.
"""

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sage.comm.wire import Wire

WARM_UP = 3
"""Steps of each set-up before the first round: buffers are allocated and controllers begin to converge."""

BLOCK_SECONDS = 0.3
"""About the duration of a block of steps."""

MOST_STEPS = 20
"""Most steps of a block."""

LEAST_ROUNDS, MOST_ROUNDS = 6, 40
"""Rounds are added until the time is over; six pairs support a statement at the 5 % level."""

Block = Callable[[int], None]
"""Takes a number of steps of one set-up, and returns when the last one is complete."""


@dataclass(frozen=True)
class Trial:
    """The seconds of a step of one set-up, by round."""

    steps: int
    """Steps of a block."""
    seconds: tuple[float, ...]


def measure(blocks: Sequence[Block], wire: Wire, seconds: float) -> list[Trial]:
    """Train the set-ups in turns for about `seconds`, at least six rounds; all ranks return the same.

    Raises:
        WireError: a collective failed.
    """
    steps = [_num_steps(block, wire) for block in blocks]
    taken: list[list[float]] = [[] for _ in blocks]
    order, end = random.Random(0), time.perf_counter() + seconds
    for finished in range(MOST_ROUNDS):
        if finished >= LEAST_ROUNDS and _first(wire, time.perf_counter() > end):
            break
        for i in order.sample(range(len(blocks)), len(blocks)):
            taken[i].append(_slowest(blocks[i], steps[i], wire) / steps[i])
    return [Trial(count, tuple(seconds)) for count, seconds in zip(steps, taken, strict=True)]


def _num_steps(block: Block, wire: Wire) -> int:
    """Take the first steps, and return the number of steps of a block."""
    _slowest(block, WARM_UP - 1, wire)
    return max(1, min(MOST_STEPS, math.ceil(BLOCK_SECONDS / _slowest(block, 1, wire))))


def _slowest(block: Block, steps: int, wire: Wire) -> float:
    """Take some steps; returns the seconds of the slowest rank."""
    wire.texts("")  # a barrier
    start = time.perf_counter()
    block(steps)
    taken = time.perf_counter() - start
    return max(json.loads(text) for text in wire.texts(json.dumps(taken)))


def _first(wire: Wire, decision: bool) -> bool:
    """Return rank 0's decision, on every rank."""
    return bool(json.loads(wire.texts(json.dumps(decision))[0]))
