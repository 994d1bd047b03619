"""Selects the setups from which `predict_error.py` predicts each other setup, and computes the errors."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}

PAYLOAD = 1448 / 1514
"""Share of TCP's payload in what tc counts: Ethernet frames, with IP packets of 1,500 bytes."""


@dataclass(frozen=True)
class Setup:
    """A number of ranks and the speed of each rank's link, in tc's notation."""

    ranks: int
    rate: str

    @property
    def bits_per_second(self) -> float:
        """The speed at which payload passes.

        >>> round(Setup(2, "100mbit").bits_per_second / 1e6, 1)
        95.6
        """
        return PAYLOAD * float(self.rate[:-4]) * UNITS[self.rate[-4:]]


@dataclass(frozen=True)
class Source:
    """The sources of a prediction; neither is the predicted setup."""

    links: Setup
    computation: Setup


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prediction and the corresponding measurement."""

    workload: str
    setup: Setup
    source: Source
    reducer: str
    options: Mapping[str, Any]
    mount: str
    predicted_seconds: float
    band: tuple[float, float]
    measured_seconds: float
    measured_quartiles: tuple[float, float]

    @property
    def error(self) -> float:
        """The ratio of predicted to measured time, minus one."""
        return self.predicted_seconds / self.measured_seconds - 1


def sources(setup: Setup, measured: Sequence[Setup]) -> Iterator[Source]:
    """Yield the sources of a prediction: each other setup, with the computation of the same number of ranks.

    >>> two, four = [Setup(2, "10mbit"), Setup(2, "1gbit")], [Setup(4, "10mbit"), Setup(4, "1gbit")]
    >>> for source in sources(two[0], [*two, *four]):
    ...     print(source.links.ranks, source.links.rate, source.computation.ranks, source.computation.rate)
    2 1gbit 2 1gbit
    4 10mbit 2 1gbit
    4 1gbit 2 1gbit
    """
    others = [candidate for candidate in measured if candidate != setup]
    alike = [candidate for candidate in others if candidate.ranks == setup.ranks]
    for links in others:
        if links.ranks == setup.ranks:
            yield Source(links, links)
        elif alike:
            yield Source(links, alike[0])


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the number of predictions, and the median and ninth decile of the absolute errors.

    Args:
        rows: One or more predictions.
    """
    errors = sorted(abs(row.error) for row in rows)
    ninth = errors[min(len(errors) - 1, int(0.9 * len(errors)))]
    within = sum(row.band[0] <= row.measured_seconds <= row.band[1] for row in rows)
    return {
        "predictions": len(rows),
        "median": round(statistics.median(errors), 4),
        "ninth_decile": round(ninth, 4),
        "largest": round(errors[-1], 4),
        "measured_within_the_band": within,
    }
