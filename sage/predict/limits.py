"""At which bandwidths and world sizes a method is faster than the baselines, and what it needs of a rank."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
from numpy.typing import NDArray

from sage.predict import closed_forms
from sage.predict.break_even import Times, break_even
from sage.predict.buckets import cut
from sage.predict.calibration import MethodTimes
from sage.predict.closed_forms import Intervals
from sage.predict.grid import NO_RATIOS, mounts, names
from sage.predict.links import Links
from sage.predict.payload import GATHERS, traffic
from sage.predict.step_time import DENSE, Choice, Mount, Predictor, Setup, memory
from sage.predict.terms import baseline, compressed_of, dense_method, reference

Array = NDArray[numpy.float64]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a method at one world size; bandwidths are intervals in bits per second."""

    cluster: str
    ranks: int
    name: str
    """As in the grid."""
    reducer: str
    options: Mapping[str, Any]
    closed_form: Intervals
    """Where the method, reduced after backward, is faster than overlapped bf16 by the formulas."""
    by_roots: Intervals
    """The same by root finding."""
    by_recurrence: Mapping[Mount, Intervals]
    """Where the predicted step of each possible mount is shorter than that of overlapped bf16."""
    without_overlap: float
    """The bandwidth below which its step is faster than with an all-reduce of float32 after backward."""
    most_ranks: float | None
    """The world size from which a gather moves more than bf16's all-reduce; None for other collectives."""
    memory_bytes: float
    """For gradient, residual and messages, beyond model, optimizer and activations."""


class _AgainstDense:
    """The seconds of the reference and of choices in one setup, by bandwidth; evaluations are kept."""

    def __init__(self, predictor: Predictor, setup: Setup, dense: Choice) -> None:
        self._predictor, self._setup, self._dense = predictor, setup, dense
        self._known: dict[bytes, tuple[Links, Array]] = {}

    def of(self, choice: Choice) -> Times:
        return lambda bandwidths: self._both(choice, bandwidths)

    def _both(self, choice: Choice, bandwidths: Array) -> tuple[Array, Array]:
        key = bandwidths.tobytes()
        if key not in self._known:
            link = replace(self._setup.link, bytes_per_second=tuple(bandwidths.tolist()))
            network = self._predictor.links(link)
            self._known[key] = network, self._seconds(self._dense, network)
        network, dense = self._known[key]
        return dense, choice.steps_ratio * self._seconds(choice, network)

    def _seconds(self, choice: Choice, network: Links) -> Array:
        return self._predictor.step(choice, self._setup, network).seconds_DX[0]


def limits(
    predictor: Predictor,
    setups: Sequence[Setup],
    bucket_mb: float | None,
    steps_ratios: Mapping[str, float] = NO_RATIOS,
) -> list[Limits]:
    """Return the limits of each compressing method in each setup of more than one rank.

    `steps_ratios` has ρ by reducer. The ranks of a setup on one node are taken to have a node each, as the
    limits are bandwidths between nodes.
    """
    single = replace(predictor, num_draws=1)
    results = []
    for setup in setups:
        if setup.ranks > 1:
            if setup.ranks <= setup.ranks_per_node:
                setup = replace(setup, ranks_per_node=1)
            methods = predictor.calibration.methods
            named = [
                pair for pair in zip(methods, names(methods), strict=True) if pair[0].reducer not in DENSE
            ]
            against = _AgainstDense(single, setup, Choice(reference(predictor.calibration), "ddp", bucket_mb))
            results += [
                _of(single, setup, method, name, bucket_mb, against, steps_ratios.get(method.reducer, 1.0))
                for method, name in named
            ]
    return results


def _of(
    predictor: Predictor,
    setup: Setup,
    method: MethodTimes,
    name: str,
    bucket_mb: float | None,
    against: _AgainstDense,
    rho: float,
) -> Limits:
    calibration = predictor.calibration
    network = predictor.links(setup.link)
    is_one = len(cut(calibration.model.parameters, bucket_mb)) == 1
    base = baseline(predictor, setup, network, bucket_mb)
    fp32 = baseline(predictor, setup, network, math.inf, reducer="exact")
    compressed = compressed_of(predictor, setup, network, method, reference(calibration))
    against_fp32 = compressed_of(predictor, setup, network, method, dense_method(calibration, "exact"))
    messages = traffic(method, setup.ranks, calibration.model.numel)
    gathered = sum(
        message.count * message.size.bytes for message in messages if message.collective in GATHERS
    )
    return Limits(
        cluster=setup.name,
        ranks=setup.ranks,
        name=name,
        reducer=method.reducer,
        options=method.options,
        closed_form=_in_bits(closed_forms.break_even(base, compressed, rho)),
        by_roots=_in_bits(break_even(lambda b: (base.seconds(1 / b), rho * compressed.seconds(base, 1 / b)))),
        by_recurrence={
            mount: _in_bits(break_even(against.of(Choice(method, mount, bucket_mb, name, rho))))
            for mount in mounts(method, is_one=is_one)
        },
        without_overlap=8 * closed_forms.break_even_without_overlap(fp32, against_fp32),
        most_ranks=(
            closed_forms.most_ranks(DENSE["bf16"] * calibration.model.numel, gathered) if gathered else None
        ),
        memory_bytes=memory(method, setup.ranks, calibration.model.numel),
    )


def _in_bits(intervals: Intervals) -> Intervals:
    return tuple((8 * low, 8 * high) for low, high in intervals)
