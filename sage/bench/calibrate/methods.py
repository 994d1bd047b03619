"""Times, density and messages of one reducer on this model's gradients."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sage.bench.calibrate.gradients import Gradients, reducer_of
from sage.bench.calibrate.messages import Sequenced, of_ranks, typical
from sage.bench.calibrate.reductions import (
    LEAST,
    SETTLE,
    Reductions,
    messages_on_threads,
    reductions,
)
from sage.bench.loopback_wire import LoopbackWire
from sage.comm.transport import WireError
from sage.comm.wire import Wire
from sage.config import Config
from sage.output.text import clean_text
from sage.predict.calibration import Message, MethodTimes
from sage.train.mount_limits import needs_one_bucket

PAYLOADS = (1, 2, 4)
"""Numbers of payloads W that are decoded without a network, in addition to those of the ranks in use."""

WORLD_SIZES = (2, 4, 8)
"""Numbers of ranks at which the messages are determined."""

THREAD_BYTES = 2**30
"""Most memory for simulated ranks: each has about three vectors of the gradient's size."""

LEAST_ON_THREADS = 8
"""Least number of reductions of each simulated rank."""


class Failed(Exception):
    """A reducer failed on this model; the message says on which rank and how."""


@dataclass(frozen=True)
class Time:
    """How long one reducer is measured: the number of reductions that count, and the most seconds."""

    steps: int
    seconds: float


def measure(config: Config, gradients: Gradients, wire: Wire, time: Time) -> MethodTimes:
    """Measure the reducer of a configuration; the ranks except 0 return no messages of other world sizes.

    First each rank reduces without a network: a reducer that fails there is not run between ranks, where the
    others would wait for it. A quarter of the time is for this, half of it is for reductions between the
    ranks, and a quarter is for simulated ranks.

    Args:
        config: The reducer, its options and its error feedback.
        gradients: This rank's gradients.
        wire: The communicator of all ranks.
        time: How long to measure.

    Raises:
        Failed: on every rank, if the reducer fails on one of them without a network, or on simulated ranks.
        WireError: a collective failed.
        ValueError: the reducer fails on this rank between ranks.
    """
    is_cuda = gradients.steps[0].is_cuda
    payloads = sorted({*PAYLOADS, wire.world_size} if is_cuda else {*PAYLOADS} - {wire.world_size})
    without_network = _without_network(config, gradients, wire, payloads, time)
    ours = _between_ranks(config, gradients, wire, time)
    content = {
        "ours": asdict(ours),
        **{str(world_size): asdict(times) for world_size, times in without_network.items()},
    }
    ranks = [json.loads(text) for text in wire.texts(json.dumps(content))]
    at_hand = str(wire.world_size) if is_cuda else "ours"
    decode = {num_payloads: _pooled(ranks, str(num_payloads), "decode") for num_payloads in payloads}
    decode[wire.world_size] = _pooled(ranks, at_hand, "decode")
    messages = {wire.world_size: _typical_messages(ranks)}
    error = ""
    if wire.rank == 0:
        try:
            for world_size in {*WORLD_SIZES} - {wire.world_size}:
                messages[world_size] = _simulated(world_size, config, gradients, without_network, time)
        except Exception as failure:
            error = _text(failure)
    # The others wait, so that they do not compute while the simulated ranks do.
    if error := wire.texts(error)[0]:
        raise Failed(f"between simulated ranks: {error}")
    return MethodTimes(
        reducer=config.reducer,
        options=config.to_dict()["reducer_options"],
        encode_seconds=_pooled(ranks, at_hand, "encode"),
        decode_seconds=dict(sorted(decode.items())),
        density=_density(config, ours.density),
        messages=dict(sorted(messages.items())),
        needs_one_bucket=needs_one_bucket(config, reducer_of(config)),
    )


def _without_network(
    config: Config, gradients: Gradients, wire: Wire, payloads: Sequence[int], time: Time
) -> dict[int, Reductions]:
    """Reduce on each rank without a network, for each number of payloads."""
    by_world_size: dict[int, Reductions] = {}
    error = ""
    try:
        for world_size in payloads:
            loopback = LoopbackWire(gradients.steps[0].device, world_size)
            share = time.seconds / 4 / len(payloads)
            by_world_size[world_size] = reductions(
                loopback, config, gradients, steps=time.steps, seconds=share
            )
    except Exception as failure:  # a third-party reducer may raise anything
        error = _text(failure)
    for rank, text in enumerate(wire.texts(error)):
        if text:
            raise Failed(f"rank {rank}: {text}")
    return by_world_size


def _between_ranks(config: Config, gradients: Gradients, wire: Wire, time: Time) -> Reductions:
    """Reduce between the ranks."""
    try:
        return reductions(wire, config, gradients, steps=time.steps, seconds=time.seconds / 2)
    except WireError:
        raise
    except Exception as error:
        raise ValueError(
            f"the reducer {config.reducer} failed between the ranks, though not on one: {_text(error)}"
        ) from error


def _simulated(
    world_size: int,
    config: Config,
    gradients: Gradients,
    without_network: Mapping[int, Reductions],
    time: Time,
) -> Sequenced:
    """Return the messages at a number of ranks: between threads, or from one rank's where those take long.

    One rank's messages, with its own payload in place of those of all ranks, differ from those between ranks
    if ranks send unions of their selections, or pad to the longest of them.
    """
    taken = max(
        sum(map(statistics.median, (times.encode, times.decode))) for times in without_network.values()
    )
    memory = world_size * 3 * gradients.steps[0].nbytes
    # The other ranks wait for these simulations in a collective, which must not time out.
    share = min(time.seconds / 4, config.timeout / 2) / len(WORLD_SIZES)
    steps = int(min(SETTLE, share / (world_size * taken))) if taken else SETTLE
    if memory <= THREAD_BYTES and steps >= LEAST_ON_THREADS:
        return messages_on_threads(world_size, config, gradients, steps=steps)
    if world_size not in without_network:
        loopback = LoopbackWire(gradients.steps[0].device, world_size)
        return typical(reductions(loopback, config, gradients, steps=LEAST, seconds=share).messages)
    return typical(without_network[world_size].messages)


def _typical_messages(ranks: Sequence[Mapping[str, Any]]) -> Sequenced:
    """Return the messages of a typical step between the ranks."""
    by_rank = ([_messages(step) for step in rank["ours"]["messages"]] for rank in ranks)
    return typical([of_ranks(step) for step in zip(*by_rank, strict=True)])


def _messages(step: Sequence[Mapping[str, Any]]) -> Sequenced:
    return tuple(Message(**message) for message in step)


def _pooled(ranks: Sequence[Mapping[str, Any]], wire: str, name: str) -> tuple[float, ...]:
    return tuple(seconds for rank in ranks for seconds in rank[wire][name])


def _density(config: Config, densities: Sequence[float]) -> float | None:
    """Return the mean density; None for a reducer that has no density and sends every element."""
    mean = statistics.fmean(densities)
    return None if mean == 1 and "density" not in config.reducer_options else mean


def _text(error: Exception) -> str:
    return clean_text(f"{type(error).__name__}: {error}", 300)
