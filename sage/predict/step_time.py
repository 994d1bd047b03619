"""The time of a training step: computation as measured, communication as modelled, and their overlap."""
# D = draws, X = bandwidths, K = buckets, W = ranks

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy
from numpy.typing import NDArray

from sage.predict.buckets import cut
from sage.predict.calibration import Calibration, MethodTimes
from sage.predict.communication import Communication
from sage.predict.decode_fit import fitted
from sage.predict.links import Link, Links, fits, links
from sage.predict.payload import GATHERS, Traffic, traffic
from sage.predict.recurrence import overlap
from sage.predict.stragglers import slowest
from sage.predict.two_levels import NOTE, Hierarchy, Level

Array = NDArray[numpy.float64]
Mount = Literal["whole", "ddp"]

DRAWS = 100
"""Draws of times, latencies, bandwidths and payloads for a band; the first of them is the estimate itself."""

FAR = 4
"""A prediction beyond this multiple of the largest measured world size is labelled `model`."""


@dataclass(frozen=True)
class Setup:
    """A cluster to predict."""

    ranks: int
    ranks_per_node: int = 1
    link: Link = Link()
    speedup: float = 1.0
    """How much faster its ranks compute than those that were measured."""
    name: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """A reducer, and when it reduces."""

    method: MethodTimes
    mount: Mount
    bucket_mb: float | None = None
    """Of the mount `ddp`; None: DDP's default."""
    name: str = ""
    """The reducer, with the options that distinguish it from the others."""
    steps_ratio: float = 1.0
    """ρ: steps to the target over those of the dense methods; infinite if the method misses it."""
    hierarchy: Hierarchy = "flat"
    """Whether it reduces between all ranks, or within nodes and then between them."""

    @property
    def label(self) -> str:
        """The name, the mount, and the hierarchy unless it is flat."""
        return labelled(self.name or self.method.reducer, self.mount, self.hierarchy)


def labelled(name: str, mount: Mount, hierarchy: Hierarchy) -> str:
    """Name a method under a mount.

    >>> labelled("topk", "whole", "node"), labelled("bf16", "ddp", "flat")
    ('topk × whole × node', 'bf16 × ddp')
    """
    return f"{name} × {mount}" + (" × node" if hierarchy == "node" else "")


@dataclass(frozen=True)
class Step:
    """A predicted step, for each draw and bandwidth."""

    seconds_DX: Array
    communication_DX: Array
    """Seconds of all collectives."""
    exposed_DX: Array
    """Seconds in which computation waits for them."""
    coding_D1: Array
    """Seconds of encoding and decoding."""
    notes: tuple[str, ...]
    """Assumptions behind the communication."""


@dataclass
class Predictor:
    """Predicts steps from a calibration. The draws of all predictions are the same, so that they pair."""

    calibration: Calibration
    num_draws: int = DRAWS
    seed: int = 0
    _resampled: dict[tuple[Callable[..., Any], tuple[float, ...]], Array] = field(default_factory=dict)
    _decoded: dict[int, tuple[Array, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inter, self.intra = fits(self.calibration)

    @property
    def most_ranks(self) -> int:
        """The largest world size at which a collective was measured."""
        return max([self.calibration.world_size, *(samples.ranks for samples in self.calibration.links)])

    def links(self, link: Link) -> Links:
        """Return the links of a cluster; raises a ValueError if their bandwidth or latency is not known."""
        return links(self.inter, self.intra, link, self._generator(1), self.num_draws)

    def step(self, choice: Choice, setup: Setup, network: Links) -> Step:
        """Predict a step of one method under one mount."""
        model, method, ranks = self.calibration.model, choice.method, setup.ranks
        level = Level.of(choice.hierarchy, ranks, setup.ranks_per_node)
        slow = self.slowness(ranks) / setup.speedup
        forward = slow * self._mean(model.forward_seconds)
        backward = slow * self._mean(model.backward_seconds)
        update = self._mean(model.optimizer_seconds) / setup.speedup
        encode = self._mean(method.encode_seconds) / (setup.speedup * level.parts)
        decode = self.decode(method, level.ranks) / (setup.speedup * level.parts)
        messages = traffic(method, level.ranks, model.numel)
        network.notes.clear()
        communication = self._communication(messages, level, network)
        if choice.mount == "whole":
            within = level.within(network, model.numel)
            idle = forward + backward + within + encode + decode + update
            seconds, _ = communication.seconds(spent=communication.spent(idle))
            seconds = within + seconds
            total = forward + backward + encode + seconds + decode + update
            return Step(total, seconds, seconds, encode + decode, _notes(method, level, messages, network))
        gamma = numpy.maximum(self._median(model.gamma), 1.0) if ranks > 1 else 1.0
        buckets = cut(model.parameters, choice.bucket_mb)
        share_K = [bucket.numel / model.numel for bucket in buckets]
        # The last gradient is ready when backward ends; the hooks' clock and backward's may differ a little.
        scale = 1 / max(bucket.ready_seconds for bucket in buckets)
        ready_K = [backward * min(1.0, bucket.ready_seconds * scale) for bucket in buckets]
        idle = forward + ready_K[0] + encode * share_K[0] + decode * share_K[-1] + update
        comm_K = [
            level.within(network, model.numel, share) + seconds
            for share, seconds in zip(share_K, communication.of_buckets(share_K, ready_K, idle), strict=True)
        ]
        overlapped = overlap(
            ready_K,
            comm_K,
            backward,
            [encode * share for share in share_K],
            [decode * share for share in share_K],
            gamma,
        )
        total = forward + overlapped.seconds + update
        return Step(
            total,
            sum(comm_K, start=numpy.zeros((1, 1))),
            overlapped.exposed,
            encode + decode,
            _notes(method, level, messages, network),
        )

    def slowness(self, ranks: int) -> float:
        """Return the expected time of the slowest rank's forward and backward over the mean.

        The spread of the measured steps is taken as the spread between ranks.
        """
        model = self.calibration.model
        both = [f + b for f, b in zip(model.forward_seconds, model.backward_seconds, strict=False)]
        middle = sum(both) / len(both)
        return slowest(both, ranks) / middle if middle > 0 else 1.0

    def decode(self, method: MethodTimes, ranks: int) -> Array:
        """Return t_d0 + W·t_d1 for each draw, fitted to the measured world sizes.

        Without a gather the ranks' payloads are summed on the way, so that the time does not depend on W: it
        is that of the world size that is nearest to the calibration's.
        """
        if not any(
            message.collective in GATHERS for messages in method.messages.values() for message in messages
        ):
            at = self.calibration.world_size
            return self._mean(method.decode_seconds[min(method.decode_seconds, key=lambda w: abs(w - at))])
        if id(method) not in self._decoded:
            means = {w: self._mean(seconds)[:, 0] for w, seconds in method.decode_seconds.items()}
            lines = [fitted({w: float(mean[i]) for w, mean in means.items()}) for i in range(self.num_draws)]
            first_D, each_D = numpy.array(lines).T
            self._decoded[id(method)] = first_D[:, None], each_D[:, None]
        first_D1, each_D1 = self._decoded[id(method)]
        return first_D1 + ranks * each_D1

    def _communication(self, messages: Sequence[Traffic], level: Level, network: Links) -> Communication:
        sizes = [
            message.size.draw(self._generator(2 + i), self.num_draws)[:, None]
            for i, message in enumerate(messages)
        ]
        return Communication(messages, sizes, network, level.ranks, level.ranks_per_node)

    def _mean(self, samples: tuple[float, ...]) -> Array:
        """The mean of the samples, then means of resamples with replacement, as a column."""
        return self._resample(samples, numpy.mean)

    def _median(self, samples: tuple[float, ...]) -> Array:
        """The median, in the same form: of ratios of two times, whose mean single times would dominate."""
        return self._resample(samples, numpy.median)

    def _resample(self, samples: tuple[float, ...], average: Callable[..., Any]) -> Array:
        if (average, samples) not in self._resampled:
            values = numpy.asarray(samples, dtype=numpy.float64)
            generator = self._generator(zlib.crc32(values.tobytes()))
            chosen = generator.integers(len(values), size=(self.num_draws, len(values)))
            averages_D = average(values[chosen], axis=1)
            averages_D[0] = average(values)
            self._resampled[average, samples] = averages_D[:, None]
        return self._resampled[average, samples]

    def _generator(self, use: int) -> numpy.random.Generator:
        return numpy.random.default_rng((self.seed, use))


SAME_DENSITY = "methods have the same density at a world size that was not measured"


def _notes(method: MethodTimes, level: Level, messages: Sequence[Traffic], network: Links) -> tuple[str, ...]:
    ranks = level.ranks
    bases = dict.fromkeys(
        message.size.basis for message in messages if message.size.basis not in ("measured", "constant")
    )
    is_assumed = method.density is not None and ranks > 1 and ranks not in method.messages
    return (
        *sorted(network.notes),
        *([NOTE] if level.parts > 1 else []),
        *([SAME_DENSITY] if is_assumed else []),
        *(f"payload {law}" for law in bases),
    )


def find(methods: Sequence[MethodTimes], reducer: str) -> MethodTimes | None:
    """Return the first method of a reducer."""
    return next((method for method in methods if method.reducer == reducer), None)


def memory(method: MethodTimes, ranks: int, numel: int) -> float:
    """Return the bytes that a rank needs for the reduction, beyond model, optimizer and activations.

    These are the flat gradient and the residual in float32, and the messages that are sent and received: of a
    gather those of all ranks. A dense method has no residual.
    """
    received = 0.0
    for message in traffic(method, ranks, numel):
        copies = ranks if message.collective in GATHERS else 1
        received += message.count * message.size.bytes * (1 + copies)
    residual = 0 if method.reducer in DENSE else 4 * numel
    return 4 * numel + residual + received


DENSE: Mapping[str, int] = {"exact": 4, "bf16": 2}
"""The dense reducers, and their bytes for each element."""


def is_far(predictor: Predictor, ranks: int) -> bool:
    """Whether a world size is beyond what the measurements support."""
    return ranks > FAR * predictor.most_ranks


def interval(values_D: Array) -> tuple[float, float]:
    """Return the 95 % interval of the draws; both ends are the value if there is one draw."""
    low, high = numpy.quantile(values_D[1:] if len(values_D) > 1 else values_D, (0.025, 0.975))
    return float(min(low, values_D[0])), float(max(high, values_D[0]))
