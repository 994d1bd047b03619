"""Reductions of recorded gradients by one reducer: between the ranks, without a network, and on threads."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from sage.bench.calibrate.collectives import slowest
from sage.bench.calibrate.gradients import Gradients, fill, flat_of
from sage.bench.calibrate.messages import Sequenced, of_entries, of_ranks, typical
from sage.bench.loopback_wire import LoopbackWire
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import Config
from sage.mount.flat import Flat
from sage.mount.reduction_seconds import ReductionSeconds

SETTLE = 30
"""Most reductions before those that count: error feedback and thresholds have to settle."""

LEAST = 2
"""Least number of reductions that count, however long they take."""


@dataclass
class Reductions:
    """One rank's reductions: their times in seconds, their densities and their messages."""

    encode: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    density: list[float] = field(default_factory=list)
    messages: list[Sequenced] = field(default_factory=list)


def reductions(wire: Wire, config: Config, gradients: Gradients, *, steps: int, seconds: float) -> Reductions:
    """Reduce between the ranks of a wire, all at the same time; timed as in the records of a run.

    All ranks make the same number of reductions: up to `SETTLE`, and then up to `steps` that count; fewer if
    they take longer than `seconds` on the slowest rank.

    Args:
        wire: The communicator; with a `LoopbackWire`, this rank's payload replaces those of all ranks.
        config: The reducer, its options and its error feedback.
        gradients: What is reduced.
        steps: Number of reductions that count.
        seconds: The time for all of them.
    """
    flat, found, step = _mounted(config, gradients, wire), Reductions(), 0

    def reduce(kept: Reductions) -> float:
        nonlocal step
        taken = _reduce(flat, gradients.views(step), wire, config, kept)
        step += 1
        return slowest(wire, taken, flat.grad_N.device)

    spent = reduce(Reductions())
    while step < SETTLE and spent < seconds / 2:
        spent += reduce(Reductions())
    while len(found.density) < LEAST or (len(found.density) < steps and spent < seconds):
        spent += reduce(found)
    return found


def messages_on_threads(world_size: int, config: Config, gradients: Gradients, *, steps: int) -> Sequenced:
    """Return the messages between simulated ranks, each of which reduces another step's gradient at a time.

    They are those of a typical step of the last quarter.
    """

    def work(wire: Wire) -> list[Sequenced]:
        flat, kept = _mounted(config, gradients, wire), Reductions()
        for step in range(steps):
            _reduce(flat, gradients.views(step + wire.rank), wire, config, kept)
        return kept.messages[3 * steps // 4 :]

    ranks = simulate(world_size, work)
    return typical([of_ranks(step) for step in zip(*ranks, strict=True)])


def _mounted(config: Config, gradients: Gradients, wire: Wire) -> Flat:
    flat = flat_of(config, gradients)
    if flat.feedback.reducer.needs_squares:
        raise ValueError("it needs the squares of the samples' gradients, which are not recorded")
    flat.feedback.reducer.begin_epoch(0, config.lr, wire)
    return flat


def _reduce(flat: Flat, views: Mapping[str, Tensor], wire: Wire, config: Config, kept: Reductions) -> float:
    """Reduce one gradient, and keep its times, its density and its messages; return the seconds it took."""
    fill(flat, views)
    spent: ReductionSeconds | None
    start = time.perf_counter()
    with wire.ledger.recording() as entries:
        if isinstance(wire, LoopbackWire) and flat.grad_N.is_cuda:
            # A GPU's work is timed by events, which only this wire takes.
            reduced, encode, decode = wire.timed(lambda: flat.feedback(flat.grad_C, wire))
            spent = ReductionSeconds(encode, decode)
            if flat.dense.numel():
                wire.mean(flat.dense)
        else:
            reduced = flat(wire, config.lr)
            spent = flat.seconds
    taken = time.perf_counter() - start
    if spent is not None:
        kept.encode.append(spent.encode)
        kept.decode.append(spent.decode)
    kept.density.append(reduced.density)
    kept.messages.append(of_entries(entries))
    return taken
