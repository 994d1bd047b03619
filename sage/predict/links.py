"""The time of a collective on a cluster, from fits of measurements or from given bandwidths and latencies."""
# D = draws, X = bandwidths

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy
from numpy.typing import NDArray

from sage.predict.calibration import Calibration, Samples
from sage.predict.calibration_schema import Collective
from sage.predict.collectives import (
    LAYOUTS,
    Algorithm,
    Cost,
    Layout,
)
from sage.predict.fit import Fit, fit

Array = NDArray[numpy.float64]


@dataclass(frozen=True)
class Link:
    """What is given of a cluster's links; what is None is as measured."""

    bytes_per_second: tuple[float, ...] | None = None
    """Bandwidths between nodes; several are predicted at once."""
    burst: float = 0.0
    """Bytes that pass at once; only where a bandwidth is given."""
    latency: float | None = None
    intra_bytes_per_second: float | None = None
    intra_latency: float | None = None
    layout: Layout = "flat"


@dataclass(frozen=True)
class Drawn:
    """Latency and time per byte of one collective, for each draw and bandwidth."""

    latency_D1: Array
    seconds_per_byte_DX: Array
    excess: float
    """Time per byte beyond that of the fastest collective, as measured."""
    correction: Fit | None
    """The fit whose residuals correct the time of a message; None where a bandwidth was given."""
    burst: float = 0.0
    """Bytes that pass at once: as measured, or as given with a bandwidth."""


@dataclass
class Links:
    """The links of a cluster, ready for the times of collectives."""

    inter: Mapping[Collective, Drawn]
    intra: Mapping[Collective, Drawn]
    layout: Layout
    bytes_per_second: float
    """The bandwidth of the fastest collective between nodes: the first that is given, or as measured."""
    most_ranks: int
    """The largest number of ranks that was measured; above it the faster of ring and tree is taken."""
    is_local: bool = False
    """Whether no links between nodes were measured, so that those within a node take their place."""
    stand_ins: frozenset[Collective] = frozenset()
    """Collectives that were not measured, whose times between nodes are those of another one."""
    limited: frozenset[Collective] = frozenset()
    """Collectives that are no faster than within a node, at some bandwidth."""
    notes: set[str] = field(default_factory=set)
    """Assumptions behind the times that `seconds` has returned since the set was last emptied."""

    @property
    def burst(self) -> float:
        """Bytes that a link between nodes passes at once, before its bandwidth limits the others."""
        return max((drawn.burst for drawn in self.inter.values()), default=0.0)

    def passed(self, seconds: Array) -> Array:
        """Return the bytes that a link between nodes passes in a time, for draws and bandwidths."""
        per_byte_DX = next(iter(self.inter.values())).seconds_per_byte_DX
        return seconds / numpy.maximum(per_byte_DX, 1e-30)

    def bytes_between(
        self, collective: Collective, size: Array, ranks: int, ranks_per_node: int, count: float = 1.0
    ) -> Array:
        """Return the bytes of `count` collectives, as rings, through a link between nodes."""
        if ranks == 1:
            return numpy.zeros((1, 1))
        terms = LAYOUTS[self.layout](collective, ranks, min(ranks_per_node, ranks), "ring").inter
        return count * (terms.share * size + terms.fixed_bytes)

    def seconds(
        self,
        collective: Collective,
        size: Array,
        ranks: int,
        ranks_per_node: int,
        count: float = 1.0,
        spent: Array | float = 0.0,
    ) -> Array:
        """Return the seconds of `count` collectives, for draws and bandwidths.

        Args:
            collective: which.
            size: bytes that each rank contributes, of shape (D, 1) or (1, 1).
            ranks: number of ranks; one rank takes no time.
            ranks_per_node: of them.
            count: how many collectives, one after the other.
            spent: bytes of the burst between nodes that earlier messages have used up.
        """
        if ranks == 1 or count == 0:
            return numpy.zeros((1, 1))
        g = min(ranks_per_node, ranks)
        self._note(collective, ranks, g)
        seconds = self._with("ring", collective, size, ranks, g, count, spent)
        if ranks > self.most_ranks:
            of_tree = self._with("tree", collective, size, ranks, g, count, spent)
            if bool((of_tree < seconds).any()):
                self.notes.add(f"the faster of ring and tree above {self.most_ranks} ranks, here a tree")
                seconds = numpy.minimum(seconds, of_tree)
        return seconds

    def terms(
        self, collective: Collective, size: float, ranks: int, ranks_per_node: int
    ) -> tuple[float, float]:
        """Return seconds that do not depend on the bandwidth between nodes, and bytes that do.

        They are those of the ring; above the measured number of ranks, of the algorithm that is faster at
        this bandwidth. What a byte takes beyond the fastest collective is as measured, also on faster links.
        """
        if ranks == 1:
            return 0.0, 0.0
        algorithms: tuple[Algorithm, ...] = ("ring", "tree") if ranks > self.most_ranks else ("ring",)
        g = min(ranks_per_node, ranks)
        costs = [self._terms(algorithm, collective, size, ranks, g) for algorithm in algorithms]
        return min(costs, key=lambda cost: cost[0] + cost[1] / self.bytes_per_second)

    def _terms(
        self, algorithm: Algorithm, collective: Collective, size: float, p: int, g: int
    ) -> tuple[float, float]:
        cost = LAYOUTS[self.layout](collective, p, g, algorithm)
        inter = self.inter[collective]
        intra = self.intra.get(collective, inter)
        fixed = cost.inter.steps * inter.latency_D1[0, 0] + cost.intra.steps * intra.latency_D1[0, 0]
        within = (cost.intra.share * size + cost.intra.fixed_bytes) * intra.seconds_per_byte_DX[0, 0]
        if not cost.together or not _crosses(cost):
            fixed += within
        moved = cost.inter.share * size + cost.inter.fixed_bytes
        return float(fixed + moved * inter.excess), moved

    def _note(self, collective: Collective, ranks: int, ranks_per_node: int) -> None:
        if self.is_local and ranks > ranks_per_node:
            self.notes.add(
                "links between nodes were not measured: those within a node are used where no value is given"
            )
        if collective in self.stand_ins:
            self.notes.add(f"{collective} was not measured: its times are those of another collective's link")
        if collective in self.limited:
            self.notes.add("no link is faster than those within a node, as measured")
        if ranks_per_node > 1 and collective not in self.intra:
            self.notes.add("links within a node were not measured: they are those between nodes")

    def _with(
        self,
        algorithm: Algorithm,
        collective: Collective,
        size: Array,
        p: int,
        g: int,
        count: float,
        spent: Array | float,
    ) -> Array:
        cost = LAYOUTS[self.layout](collective, p, g, algorithm)
        inter = self.inter[collective]
        # Where nothing was measured within nodes, each step counts as one over the network.
        intra = self.intra.get(collective, inter)
        seconds = count * (cost.inter.steps * inter.latency_D1 + cost.intra.steps * intra.latency_D1)
        left = numpy.maximum(inter.burst - spent, 0.0)
        moved = [
            numpy.maximum(count * (terms.share * size + terms.fixed_bytes) - burst, 0.0)
            * drawn.seconds_per_byte_DX
            for terms, drawn, burst in ((cost.inter, inter, left), (cost.intra, intra, intra.burst))
        ]
        seconds = seconds + (numpy.maximum(*moved) if cost.together else moved[0] + moved[1])
        drawn = inter if _crosses(cost) else intra
        return seconds * (
            drawn.correction.correction(float(size[0, 0])) if drawn.correction is not None else 1.0
        )


def _crosses(cost: Cost) -> bool:
    return cost.inter.steps > 0


Grouped = dict[Collective, list[Samples]]
Fits = Mapping[Collective, Fit]


def fits(calibration: Calibration) -> tuple[Fits, Fits]:
    """Fit every measured collective, between nodes and within them."""
    grouped: dict[str, Grouped] = {"inter": {}, "intra": {}}
    for sample in calibration.links:
        grouped[sample.scope].setdefault(sample.collective, []).append(sample)
    g = calibration.ranks_per_node
    intra: Fits = {name: fit(samples, g) for name, samples in grouped["intra"].items()}
    inter: Fits = {name: fit(samples, g, intra.get(name)) for name, samples in grouped["inter"].items()}
    return inter, intra


def links(inter: Fits, intra: Fits, link: Link, generator: numpy.random.Generator, num_draws: int) -> Links:
    """Return the links of a cluster: as fitted, except for what `link` gives.

    A given bandwidth is that of the fastest collective. What a byte takes longer in the others is as measured
    on slower links, and in proportion to 1/B on faster ones. None is faster than was measured within a node.
    A measured burst belongs to the measured links: with a given bandwidth, the burst is the given one.
    If no links between nodes were measured, those within a node take their place.

    Raises:
        ValueError: if neither a measurement nor `link` has the bandwidth or the latency between nodes.
    """
    limited = set()
    within = {
        name: _drawn(
            fitted, intra, link.intra_latency, _one(link.intra_bytes_per_second), 0.0, generator, num_draws
        )
        for name in get_args(Collective)
        if (fitted := _nearest(intra, name)) is not None or link.intra_bytes_per_second is not None
    }
    is_local = not inter and bool(intra)
    inter = inter or intra
    floor = intra if link.intra_bytes_per_second is None else {}
    between = {}
    for name in get_args(Collective):
        fitted = _nearest(inter, name)
        if fitted is None and (link.bytes_per_second is None or link.latency is None):
            missing = "bandwidth" if link.bytes_per_second is None else "latency"
            raise ValueError(f"the calibration has no times of links: give their {missing} with --{missing}")
        drawn = _drawn(fitted, inter, link.latency, link.bytes_per_second, link.burst, generator, num_draws)
        if link.bytes_per_second is not None and (least := _nearest(floor, name)) is not None:
            bounded = numpy.maximum(drawn.seconds_per_byte_DX, least.seconds_per_byte)
            if bool((bounded > drawn.seconds_per_byte_DX).any()):
                limited.add(name)
            drawn = replace(drawn, seconds_per_byte_DX=bounded)
        between[name] = drawn
    stand_ins = frozenset(between) - frozenset(inter) if inter else frozenset[Collective]()
    most = max((fit.most_ranks for fit in (*inter.values(), *intra.values())), default=1)
    fastest = min((fit.seconds_per_byte for fit in inter.values()), default=0.0)
    bandwidth = (link.bytes_per_second or (1 / fastest if fastest > 0 else numpy.inf,))[0]
    return Links(
        between, within, link.layout, float(bandwidth), most, is_local, stand_ins, frozenset(limited)
    )


def _drawn(
    fitted: Fit | None,
    measured: Fits,
    latency: float | None,
    bytes_per_second: tuple[float, ...] | None,
    given_burst: float,
    generator: numpy.random.Generator,
    num_draws: int,
) -> Drawn:
    zeros_D = numpy.zeros(num_draws)
    latency_D, per_byte_D = fitted.draw(generator, num_draws) if fitted is not None else (zeros_D, zeros_D)
    if latency is not None:
        latency_D = zeros_D + latency
    fastest = min((other.seconds_per_byte for other in measured.values()), default=0.0)
    excess_D = per_byte_D - fastest
    if bytes_per_second is None:
        correction = fitted if latency is None else None
        burst = fitted.burst if fitted is not None else 0.0
        return Drawn(latency_D[:, None], per_byte_D[:, None], float(excess_D[0]), correction, burst)
    inverse_X = 1 / numpy.array(bytes_per_second)
    kept_X = numpy.minimum(1.0, inverse_X / fastest) if fastest > 0 else numpy.ones_like(inverse_X)
    per_byte_DX = numpy.maximum(inverse_X + excess_D[:, None] * kept_X, 0.0)
    return Drawn(latency_D[:, None], per_byte_DX, float(excess_D[0]), None, given_burst)


def _nearest(fits: Fits, name: Collective) -> Fit | None:
    """The fit of a collective; of the all-reduce, or else any other, if it was not measured."""
    return fits.get(name) or fits.get("all_reduce") or next(iter(fits.values()), None)


def _one(value: float | None) -> tuple[float, ...] | None:
    return None if value is None else (value,)
