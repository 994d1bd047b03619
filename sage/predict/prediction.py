"""A whole prediction: the grid of steps, the limits of each method, and the data of both pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy

from sage.predict.calibration import Calibration
from sage.predict.calibration_schema import Collective, Scope
from sage.predict.fit import Fit
from sage.predict.grid import NO_RATIOS, Row, choices, is_reference, predict
from sage.predict.limits import Limits, limits
from sage.predict.step_time import DENSE, Choice, Predictor, Setup, interval
from sage.predict.win_map import Map, win_map

CURVE_BITS = (1e7, 1e11)
"""The bandwidths of the pictures, in bits per second, unless the setups have lower or higher ones."""

CURVE_POINTS, MAP_POINTS, MAP_RANKS = 41, 49, 24

MAP_DRAWS = 40


@dataclass(frozen=True)
class Curve:
    """Step time against bandwidth, with its 95 % band."""

    label: str
    is_dense: bool
    seconds: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Pictures:
    """The data of the pictures, for the links and ranks per node of one setup."""

    title: str
    bits_per_second: tuple[float, ...]
    curves: tuple[Curve, ...]
    """The reference first; of every other method, the mount that is faster at most bandwidths."""
    map: Map


@dataclass(frozen=True)
class MeasuredLink:
    """The fit of one collective."""

    collective: Collective
    scope: Scope
    latency_seconds: float
    latency_error: float
    """Standard error in seconds."""
    bits_per_second: float
    bandwidth_error: float
    """Standard error as a fraction."""
    residuals: Mapping[int, float]
    """Measured over fitted time, less 1, by the bytes that a rank contributes."""
    burst_bytes: float = 0.0
    """Bytes that pass at once, before the bandwidth limits the others."""


@dataclass(frozen=True)
class Prediction:
    """What `sage predict` prints and writes."""

    calibration: Calibration
    rows: list[Row]
    limits: list[Limits]
    links: list[MeasuredLink]

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction for JSON; infinite values become null."""
        model = self.calibration.model
        return {
            "workload": model.workload,
            "batch_size": model.batch_size,
            "parameters": model.numel,
            "calibrated": {
                "machine": self.calibration.machine,
                "time": self.calibration.time,
                "world_size": self.calibration.world_size,
                "ranks_per_node": self.calibration.ranks_per_node,
            },
            "links": [asdict(link) for link in self.links],
            "reference": "bf16 × ddp",
            "rows": [asdict(row) for row in self.rows],
            "limits": [asdict(limit) for limit in self.limits],
        }


def make(
    calibration: Calibration,
    setups: Sequence[Setup],
    bucket_mb: float | None,
    steps_ratios: Mapping[str, float] = NO_RATIOS,
) -> Prediction:
    """Predict all measured methods under both mounts in each setup, where it has nodes on two levels too.

    Raises:
        ValueError: if the bandwidth or the latency of a setup is not known.
    """
    predictor = Predictor(calibration)
    rows = predict(predictor, setups, choices(calibration, bucket_mb, steps_ratios), hierarchies=True)
    links = [_link(name, "inter", found) for name, found in predictor.inter.items()]
    links += [_link(name, "intra", found) for name, found in predictor.intra.items()]
    return Prediction(calibration, rows, limits(predictor, setups, bucket_mb, steps_ratios), links)


def _link(collective: Collective, scope: Scope, fit: Fit) -> MeasuredLink:
    per_byte = fit.seconds_per_byte
    return MeasuredLink(
        collective,
        scope,
        latency_seconds=fit.latency,
        latency_error=fit.covariance[0][0] ** 0.5,
        bits_per_second=8 / per_byte if per_byte > 0 else math.inf,
        bandwidth_error=fit.covariance[1][1] ** 0.5 / per_byte if per_byte > 0 else math.inf,
        residuals=fit.residuals,
        burst_bytes=fit.burst,
    )


def pictures(
    calibration: Calibration,
    setups: Sequence[Setup],
    bucket_mb: float | None,
    steps_ratios: Mapping[str, float] = NO_RATIOS,
) -> Pictures:
    """Return the data of the pictures: curves of the first setup of more than one rank, and the map."""
    setup = next((candidate for candidate in setups if candidate.ranks > 1), setups[0])
    compared = choices(calibration, bucket_mb, steps_ratios)
    given = [8 * bandwidth for one in setups for bandwidth in one.link.bytes_per_second or ()]
    low, high = min([CURVE_BITS[0], *given]), max([CURVE_BITS[1], *given])
    bits = numpy.geomspace(low, high, CURVE_POINTS)
    most = max([256, *(other.ranks for other in setups)])
    steps = max(2, min(MAP_RANKS, math.ceil(2 * math.log2(most))))
    ranks = sorted({round(value) for value in numpy.geomspace(2, most, steps)})
    base = replace(setup, link=_with_bits(setup, numpy.geomspace(low, high, MAP_POINTS)))
    winners = win_map(
        Predictor(calibration, num_draws=MAP_DRAWS),
        [replace(base, ranks=num_ranks) for num_ranks in ranks],
        compared,
    )
    name = f"{setup.name}, " if setup.name else ""
    return Pictures(
        title=f"{calibration.model.workload}, {name}{setup.ranks} ranks",
        bits_per_second=tuple(bits.tolist()),
        curves=tuple(_curves(calibration, replace(setup, link=_with_bits(setup, bits)), compared)),
        map=winners,
    )


def _with_bits(setup: Setup, bits: Any) -> Any:
    return replace(setup.link, bytes_per_second=tuple((bits / 8).tolist()))


def _curves(calibration: Calibration, setup: Setup, compared: Sequence[Choice]) -> list[Curve]:
    predictor = Predictor(calibration)
    network = predictor.links(setup.link)
    columns = len(setup.link.bytes_per_second or ())
    seconds = [
        numpy.broadcast_to(found := predictor.step(choice, setup, network).seconds_DX, (len(found), columns))
        for choice in compared
    ]
    drawn: dict[str, Curve] = {}
    faster: dict[str, Any] = {}
    order = sorted(range(len(compared)), key=lambda i: not is_reference(compared[i]))
    for i in order:
        method, name = compared[i].method, compared[i].name
        middle = seconds[i][0]
        if name in faster and (middle < faster[name]).sum() <= columns / 2 or _is_other_mount(compared[i]):
            continue
        bands = [interval(seconds[i][:, x]) for x in range(columns)]
        faster[name] = middle
        drawn[name] = Curve(
            compared[i].label,
            method.reducer in DENSE,
            tuple(middle.tolist()),
            tuple(low for low, _ in bands),
            tuple(high for _, high in bands),
        )
    return list(drawn.values())


def _is_other_mount(choice: Choice) -> bool:
    """Whether a dense method has the mount that is not drawn: bf16 is drawn with overlap, exact without."""
    shown = {"bf16": "ddp", "exact": "whole"}
    return choice.mount != shown.get(choice.method.reducer, choice.mount)
