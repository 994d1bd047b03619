"""The time of each collective by the number of bytes that each rank contributes."""
# W = world size, S = bytes

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from sage.bench.calibrate.collectives import CALLS, GATHERING, fitted_size, slowest, timed
from sage.bench.calibrate.scopes import Scoped
from sage.output.units import duration, size
from sage.predict.calibration import Samples
from sage.predict.calibration_schema import Collective

SIZES = (*(1024 * 4**power for power in range(8)), 32 * 2**20)
"""Bytes that each rank contributes: 1 KiB to 16 MiB in powers of 4, and 32 MiB."""

MOST_GATHERED = 2**30
"""Bytes of all ranks together, beyond which no gather is measured: each rank holds them all."""

SHORT, SHORT_REPEATS = 64 * 1024, 15
"""Sizes in bytes up to which the time varies most, by a scheduler's time slice, and their repetitions."""

REPEATS, LEAST_REPEATS = 7, 3
"""Number of repetitions of a larger size, and of one that takes long."""

MOST_REST = 0.05
"""Most seconds of rest before a repetition: a link's token bucket is full again after them."""

NEAR = 1.3
"""Ratio of two sizes below which only one of them is measured."""


@dataclass
class Links:
    """Times of the collectives between the ranks of one scope."""

    samples: list[Samples] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """What was not measured and why, one sentence for each collective."""


def measure(
    scoped: Scoped,
    device: torch.device,
    *,
    seconds: float,
    messages: Mapping[Collective, Iterable[int]],
    grid: Sequence[int] = SIZES,
    rest: float = 0.0,
) -> Links:
    """Measure every collective between the ranks of a scope; each of them makes the same decisions.

    Each repetition begins after a rest and a barrier, and its time is that of the slowest rank. In a run the
    links rest while the ranks compute; a link that is limited by a token bucket then passes a burst at full
    speed. The size is raised until the next one would exceed the collective's share of the time.

    Args:
        scoped: The wire of these ranks, and the scope's name.
        device: Device of the vectors.
        seconds: The time for all collectives together.
        messages: Further sizes of each collective in bytes, as the reducers' messages have them.
        grid: The sizes of every collective in bytes, ascending.
        rest: Seconds before each repetition, the same on all ranks; at most `MOST_REST` of them.
    """
    links = Links()
    for collective in CALLS:
        sizes = sizes_of(messages.get(collective, ()), scoped.wire.world_size, grid)
        _measure(scoped, collective, sizes, device, seconds / len(CALLS), min(rest, MOST_REST), links)
    return links


def sizes_of(messages: Iterable[int], world_size: int, grid: Sequence[int] = SIZES) -> list[int]:
    """Return the sizes to measure, ascending: the grid's, and those of messages that are near no other.

    >>> sizes_of([100, 3000, 3001, 4000], 2)[:4]
    [104, 1024, 3000, 4096]
    """
    chosen = [fitted_size(num_bytes, world_size) for num_bytes in grid]
    further = (fitted_size(num_bytes, world_size) for num_bytes in messages if num_bytes <= max(grid))
    for num_bytes in sorted(further):
        if all(not 1 / NEAR < num_bytes / other < NEAR for other in chosen):
            chosen.append(num_bytes)
    return sorted(chosen)


def _measure(
    scoped: Scoped,
    collective: Collective,
    sizes: Sequence[int],
    device: torch.device,
    budget: float,
    rest: float,
    links: Links,
) -> None:
    wire, spent = scoped.wire, 0.0
    medians: dict[int, float] = {}
    for bytes_each in sizes:
        expected = extrapolated(medians, bytes_each)
        if reason := _reason_to_end(scoped, collective, bytes_each, expected, budget - spent):
            text = f"measured up to {size(max(medians, default=0))} per rank; {reason}"
            links.left_out.append(f"{collective} between {scoped.name}: {text}")
            return
        x_S = torch.zeros(bytes_each, dtype=torch.uint8, device=device)
        if not medians:
            slowest(wire, timed(wire, collective, x_S), device)  # the first call opens connections
        samples: list[float] = []
        most = SHORT_REPEATS if bytes_each <= SHORT else REPEATS
        while len(samples) < LEAST_REPEATS or (len(samples) < most and spent < budget / 2):
            time.sleep(rest)
            slowest(wire, 0.0, device)  # a barrier
            samples.append(slowest(wire, timed(wire, collective, x_S), device))
            spent += samples[-1] + rest
        medians[bytes_each] = statistics.median(samples)
        links.samples.append(Samples(collective, scoped.scope, wire.world_size, bytes_each, tuple(samples)))


def extrapolated(seconds: Mapping[int, float], bytes_each: int) -> float:
    """Return the time to expect of a larger size, on the line through the last two sizes; 0 if none is known.

    >>> extrapolated({}, 100), extrapolated({10: 2.0}, 100), extrapolated({10: 2.0, 20: 3.0}, 100)
    (0.0, 2.0, 11.0)
    """
    if not seconds:
        return 0.0
    (*_, (last, latest)) = seconds.items()
    if len(seconds) == 1:
        return latest
    (before, earlier) = list(seconds.items())[-2]
    return latest + max(0.0, latest - earlier) / (last - before) * (bytes_each - last)


def _reason_to_end(
    scoped: Scoped, collective: Collective, bytes_each: int, expected: float, left: float
) -> str:
    """Return why a size is not measured; "" if it is."""
    together = bytes_each * scoped.wire.world_size
    if collective in GATHERING and together > MOST_GATHERED:
        return f"{size(together)} of all ranks are more than {size(MOST_GATHERED)} of memory"
    if LEAST_REPEATS * expected > left:
        return (
            f"one of {size(bytes_each)} takes about {duration(expected)}; {duration(max(0.0, left))} are left"
        )
    return ""
