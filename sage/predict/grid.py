"""Predicts every method under every mount on every cluster, against overlapped bf16."""
# D = draws, X = bandwidths

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy

from sage.predict.buckets import cut
from sage.predict.calibration import Calibration, Message, MethodTimes
from sage.predict.step_time import DENSE, Choice, Mount, Predictor, Setup, Step, find, interval, is_far

Verdict = Literal["pays", "does not pay", "undecided", "dense"]

REFERENCE = "bf16"
MOUNTS: tuple[Mount, ...] = ("whole", "ddp")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A predicted step, with its 95 % band."""

    cluster: str
    ranks: int
    ranks_per_node: int
    bits_per_second: float | None
    """Of the links between nodes; None: as measured."""
    name: str
    """The reducer, with its density and the options that tell it from the others."""
    reducer: str
    options: Mapping[str, Any]
    mount: Mount
    bucket_mb: float | None
    seconds: float
    seconds_low: float
    seconds_high: float
    communication_seconds: float
    exposed_seconds: float
    coding_seconds: float
    reference_seconds: float
    """Of bf16 under the mount `ddp`."""
    speedup: float
    """Over the reference."""
    speedup_low: float
    speedup_high: float
    verdict: Verdict
    """`pays` if the step is shorter than that of every dense method in 97.5 % of the draws, `does not pay` if
    it is longer than the shortest of them in as many."""
    is_model: bool
    """Whether the world size is beyond four times the largest that was measured."""
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The name and the mount."""
        return f"{self.name} × {self.mount}"


def names(methods: Sequence[MethodTimes]) -> list[str]:
    """Return a name for each method: the reducer with its density, and the options in which methods of the
    same reducer differ.
    """
    found = []
    for method in methods:
        same = [each.options for each in methods if each.reducer == method.reducer]
        told = [
            f"{key}={value}"
            for key, value in method.options.items()
            if key == "density" or any(each.get(key) != value for each in same)
        ]
        found.append(f"{method.reducer}({', '.join(told)})" if told else method.reducer)
    return found


def dense_method(calibration: Calibration, reducer: str) -> MethodTimes:
    """Return a dense method as measured; made of the element count alone if it was not measured."""
    found = find(calibration.methods, reducer)
    if found is not None:
        return found
    message = Message("all_reduce", DENSE[reducer] * calibration.model.numel)
    return MethodTimes(reducer, {}, (0.0,), {1: (0.0,)}, None, {calibration.world_size: (message,)})


def reference(calibration: Calibration) -> MethodTimes:
    """Return bf16, which under the mount `ddp` is the reference of all comparisons."""
    return dense_method(calibration, REFERENCE)


def choices(calibration: Calibration, bucket_mb: float | None) -> list[Choice]:
    """Return every measured method under both mounts, and the reference.

    A method that needs one bucket has the mount `ddp` only if there is one.
    """
    is_one = len(cut(calibration.model.parameters, bucket_mb)) == 1
    methods = list(calibration.methods)
    if find(methods, REFERENCE) is None:
        methods.append(reference(calibration))
    return [
        Choice(method, mount, bucket_mb if mount == "ddp" else None, name)
        for method, name in zip(methods, names(methods), strict=True)
        for mount in mounts(method, is_one=is_one)
    ]


def mounts(method: MethodTimes, *, is_one: bool) -> tuple[Mount, ...]:
    """Return the mounts that a method can have, given whether there is one bucket."""
    return MOUNTS if is_one or not method.needs_one_bucket else ("whole",)


def is_reference(choice: Choice) -> bool:
    """Whether this is the reference of all comparisons."""
    return choice.method.reducer == REFERENCE and choice.mount == "ddp"


def predict(predictor: Predictor, setups: Sequence[Setup], every: Sequence[Choice]) -> list[Row]:
    """Predict each choice in each setup, at each of its bandwidths.

    Raises:
        ValueError: if the bandwidth or the latency of a setup is not known.
    """
    rows: list[Row] = []
    for setup in setups:
        network = predictor.links(setup.link)
        steps = [predictor.step(choice, setup, network) for choice in every]
        base = next(step for choice, step in zip(every, steps, strict=True) if is_reference(choice))
        dense = [step for choice, step in zip(every, steps, strict=True) if choice.method.reducer in DENSE]
        shortest_DX = numpy.minimum.reduce([step.seconds_DX for step in dense])
        bandwidths = setup.link.bytes_per_second
        for x, bandwidth in enumerate(bandwidths or (None,)):
            for choice, step in zip(every, steps, strict=True):
                bits = None if bandwidth is None else 8 * bandwidth
                rows.append(_row(predictor, setup, bits, choice, step, base, shortest_DX, x))
    return rows


def _row(
    predictor: Predictor,
    setup: Setup,
    bits: float | None,
    choice: Choice,
    step: Step,
    base: Step,
    shortest_DX: Any,
    x: int,
) -> Row:
    seconds_D, base_D = (at(each.seconds_DX, x) for each in (step, base))
    low, high = interval(seconds_D)
    speedup_D = base_D / seconds_D
    speedup_low, speedup_high = interval(speedup_D)
    if choice.method.reducer in DENSE:
        verdict: Verdict = "dense"
    else:
        gain_low, gain_high = interval(at(shortest_DX, x) / seconds_D)
        verdict = "pays" if gain_low > 1 else "does not pay" if gain_high <= 1 else "undecided"
    return Row(
        cluster=setup.name,
        ranks=setup.ranks,
        ranks_per_node=min(setup.ranks, setup.ranks_per_node),
        bits_per_second=bits,
        name=choice.name or choice.method.reducer,
        reducer=choice.method.reducer,
        options=choice.method.options,
        mount=choice.mount,
        bucket_mb=choice.bucket_mb,
        seconds=float(seconds_D[0]),
        seconds_low=low,
        seconds_high=high,
        communication_seconds=float(at(step.communication_DX, x)[0]),
        exposed_seconds=float(at(step.exposed_DX, x)[0]),
        coding_seconds=float(step.coding_D1[0, 0]),
        reference_seconds=float(base_D[0]),
        speedup=float(speedup_D[0]),
        speedup_low=speedup_low,
        speedup_high=speedup_high,
        verdict=verdict,
        is_model=is_far(predictor, setup.ranks),
        notes=(*setup.notes, *step.notes),
    )


def at(values_DX: Any, x: int) -> Any:
    """The draws at one bandwidth, of values that may have one column for all."""
    return values_DX[:, min(x, values_DX.shape[1] - 1)]


def clusters(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Yield the rows of each cluster, world size and bandwidth, fastest first."""
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = row.cluster, row.ranks, row.ranks_per_node, row.bits_per_second
        grouped.setdefault(key, []).append(row)
    yield from (sorted(found, key=lambda row: row.seconds) for found in grouped.values())
