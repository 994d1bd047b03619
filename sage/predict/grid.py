"""Predicts every method under every mount on every cluster, against overlapped bf16."""
# D = draws, X = bandwidths

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy

from sage.predict import two_levels
from sage.predict.buckets import cut
from sage.predict.calibration import Calibration, MethodTimes
from sage.predict.closed_forms import coding_budget, compression_needed
from sage.predict.links import Links
from sage.predict.step_time import (
    DENSE,
    Choice,
    Mount,
    Predictor,
    Setup,
    Step,
    find,
    interval,
    is_far,
    labelled,
)
from sage.predict.terms import REFERENCE, baseline, coding_of, compressed_of, reference
from sage.predict.two_levels import Hierarchy

Verdict = Literal["pays", "does not pay", "undecided", "dense"]

NO_RATIOS: Mapping[str, float] = {}
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
    """The reducer, with its density and the options that distinguish it from the others."""
    reducer: str
    options: Mapping[str, Any]
    mount: Mount
    hierarchy: Hierarchy = "flat"
    bucket_mb: float | None
    seconds: float
    seconds_low: float
    seconds_high: float
    communication_seconds: float
    exposed_seconds: float
    coding_seconds: float
    """Of encoding and decoding."""
    coding_budget_seconds: float | None
    """The time of encoding and decoding below which the method, reduced after backward, is faster than
    overlapped bf16, by the closed form; below 0 if it never is. None for one rank, for dense methods and on
    two levels."""
    compression_needed: float | None
    """The compression, free of cost, that hides all communication of overlapped bf16 but the last bucket's,
    by the closed form; None for one rank."""
    reference_seconds: float
    """Of bf16 under the mount `ddp`."""
    steps_ratio: float
    """Steps to the target over those of the reference."""
    speedup: float
    """Over the reference: of a step, divided by the ratio of the steps."""
    speedup_low: float
    speedup_high: float
    verdict: Verdict
    """`pays` if the step is shorter than that of every dense method in 97.5 % of the draws, `does not pay` if
    it is longer than the shortest of them in 97.5 %."""
    is_model: bool
    """Whether the world size is beyond four times the largest that was measured."""
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The name, the mount, and the hierarchy unless it is flat."""
        return labelled(self.name, self.mount, self.hierarchy)


def names(methods: Sequence[MethodTimes]) -> list[str]:
    """Return a name for each method: the reducer with its density, and the options in which methods of the
    same reducer differ.
    """
    result = []
    for method in methods:
        same = [other.options for other in methods if other.reducer == method.reducer]
        named_options = [
            f"{key}={value}"
            for key, value in method.options.items()
            if key == "density" or any(options.get(key) != value for options in same)
        ]
        result.append(f"{method.reducer}({', '.join(named_options)})" if named_options else method.reducer)
    return result


def choices(
    calibration: Calibration, bucket_mb: float | None, steps_ratios: Mapping[str, float] = NO_RATIOS
) -> list[Choice]:
    """Return every measured method under both mounts, and the reference.

    A method that needs one bucket has the mount `ddp` only if there is one. `steps_ratios` has ρ by reducer.
    """
    is_one = len(cut(calibration.model.parameters, bucket_mb)) == 1
    methods = list(calibration.methods)
    if find(methods, REFERENCE) is None:
        methods.append(reference(calibration))
    return [
        Choice(
            method, mount, bucket_mb if mount == "ddp" else None, name, steps_ratios.get(method.reducer, 1.0)
        )
        for method, name in zip(methods, names(methods), strict=True)
        for mount in mounts(method, is_one=is_one)
    ]


def mounts(method: MethodTimes, *, is_one: bool) -> tuple[Mount, ...]:
    """Return the mounts that a method can have, given whether there is one bucket."""
    return MOUNTS if is_one or not method.needs_one_bucket else ("whole",)


def is_reference(choice: Choice) -> bool:
    """Whether this is the reference of all comparisons."""
    return choice.method.reducer == REFERENCE and choice.mount == "ddp" and choice.hierarchy == "flat"


def on_two_levels(compared: Sequence[Choice], setup: Setup) -> list[Choice]:
    """Return the choices on two levels; none unless the setup has several nodes of several ranks."""
    if not two_levels.fits(setup.ranks, setup.ranks_per_node):
        return []
    return [
        replace(choice, hierarchy="node")
        for choice in compared
        if choice.method.reducer not in two_levels.WITHOUT
    ]


def predict(
    predictor: Predictor, setups: Sequence[Setup], flat: Sequence[Choice], *, hierarchies: bool = False
) -> list[Row]:
    """Predict each choice in each setup, at each of its bandwidths.

    Args:
        predictor: Predicts a step.
        setups: The clusters.
        flat: The choices.
        hierarchies: Whether to predict each choice on two levels too, where the cluster allows them.

    Raises:
        ValueError: if the bandwidth or the latency of a setup is not known.
    """
    rows: list[Row] = []
    for setup in setups:
        network = predictor.links(setup.link)
        compared = [*flat, *(on_two_levels(flat, setup) if hierarchies else [])]
        steps = [predictor.step(choice, setup, network) for choice in compared]
        base = next(step for choice, step in zip(compared, steps, strict=True) if is_reference(choice))
        dense = [step for choice, step in zip(compared, steps, strict=True) if choice.method.reducer in DENSE]
        shortest_DX = numpy.minimum.reduce([step.seconds_DX for step in dense])
        given = setup.link.bytes_per_second
        for x, bandwidth in enumerate(given or (network.bytes_per_second,)):
            forms = _Forms(predictor, setup, network, 1 / bandwidth, compared)
            bits = None if given is None else 8 * bandwidth
            for choice, step in zip(compared, steps, strict=True):
                rows.append(_row(predictor, setup, bits, choice, step, base, shortest_DX, x, forms))
    return rows


class _Forms:
    """The results of the closed forms at one bandwidth."""

    def __init__(
        self, predictor: Predictor, setup: Setup, network: Links, x: float, compared: Sequence[Choice]
    ) -> None:
        self._is_alone = setup.ranks == 1
        self._known = predictor, setup, network, reference(predictor.calibration)
        bucket_mb = next(choice.bucket_mb for choice in compared if is_reference(choice))
        self._x, self._baseline = x, baseline(predictor, setup, network, bucket_mb)

    def budget(self, choice: Choice) -> float | None:
        """Return the time within which a method may encode and decode, including what bf16 needs for this."""
        method = choice.method
        if self._is_alone or method.reducer in DENSE or choice.hierarchy != "flat":
            return None
        predictor, setup, network, dense = self._known
        compressed = compressed_of(predictor, setup, network, method, dense)
        own = coding_of(predictor, setup, dense)
        return coding_budget(self._baseline, compressed, self._x, choice.steps_ratio) + own

    @property
    def compression(self) -> float | None:
        """The compression that bf16 needs."""
        return None if self._is_alone else compression_needed(self._baseline, self._x)


def _row(
    predictor: Predictor,
    setup: Setup,
    bits: float | None,
    choice: Choice,
    step: Step,
    base: Step,
    shortest_DX: Any,
    x: int,
    forms: _Forms,
) -> Row:
    seconds_D, base_D = (at(predicted.seconds_DX, x) for predicted in (step, base))
    low, high = interval(seconds_D)
    rho = choice.steps_ratio
    speedup_D = base_D / (rho * seconds_D)
    speedup_low, speedup_high = interval(speedup_D)
    if choice.method.reducer in DENSE:
        verdict: Verdict = "dense"
    else:
        gain_low, gain_high = interval(at(shortest_DX, x) / (rho * seconds_D))
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
        hierarchy=choice.hierarchy,
        bucket_mb=choice.bucket_mb,
        seconds=float(seconds_D[0]),
        seconds_low=low,
        seconds_high=high,
        communication_seconds=float(at(step.communication_DX, x)[0]),
        exposed_seconds=float(at(step.exposed_DX, x)[0]),
        coding_seconds=float(step.coding_D1[0, 0]),
        coding_budget_seconds=forms.budget(choice),
        compression_needed=forms.compression,
        reference_seconds=float(base_D[0]),
        steps_ratio=choice.steps_ratio,
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
