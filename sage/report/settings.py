"""A run as a row of a report, and the runs that differ only in the seed as one setting."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sage.report.runs import Run
from sage.report.seeds import Ratio, Spread, ratio, spread

Values = dict[str, Any]
"""A run's line in report.csv: None where a run has no value, NaN where a value was not finite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A run and its label within its group."""

    run: Run
    label: str
    """The reducer, and the settings that distinguish this run from others with the same reducer."""
    series: str
    """The label without the seed. Runs of a series share one line style."""
    values: Values

    @property
    def has_figures(self) -> bool:
        """Whether the run has a result or at least one recorded step."""
        return self.run.is_finished or len(self.run.steps) > 0


@dataclass(kw_only=True, eq=False)
class Setting:
    """The runs of a group that differ only in the seed, aggregated into one line."""

    label: str
    rows: list[Row]
    reference: "Setting | None" = None
    """The dense runs of the same work that speed-ups are relative to; the setting itself if it is these runs;
    None if there are none."""
    unoverlapped: "Setting | None" = None
    """The runs of exact that communicate after backward, on the same work; None if there are none."""

    @cached_property
    def counted(self) -> list[Row]:
        """The runs that figures are computed from: the finished ones, or all if none is finished."""
        return [row for row in self.rows if row.run.is_finished] or self.rows

    def spread(self, name: str) -> Spread | None:
        """Mean and standard deviation of a value over the counted runs."""
        return spread(row.values.get(name) for row in self.counted)

    def mean(self, name: str) -> float | None:
        """Mean of a value over the counted runs; NaN if it is finite in none of them."""
        spread = self.spread(name)
        return None if spread is None else spread.mean

    @cached_property
    def speed_up(self) -> Ratio | None:
        """Ratio of steps per second to the reference's; None for the reference itself."""
        return None if self.reference is self else self._speed_over(self.reference)

    @cached_property
    def speed_up_unoverlapped(self) -> Ratio | None:
        """Ratio of steps per second to those of exact without overlap."""
        return self._speed_over(self.unoverlapped)

    def _speed_over(self, other: "Setting | None") -> Ratio | None:
        if other is None:
            return None
        ours, theirs = (
            [(row.run.config["seed"], row.values["steps_per_second"]) for row in setting.counted]
            for setting in (self, other)
        )
        return ratio(ours, theirs)

    @property
    def num_sharing(self) -> int:
        """Number of counted runs that shared a machine with another run."""
        return sum(bool(row.values["shared_with"]) for row in self.counted)

    @property
    def status(self) -> str:
        """The statuses of the runs, with the number of runs for each."""
        counts = Counter(row.run.status for row in self.rows)
        if len(counts) == 1:
            (status,) = counts
            return status if len(self.rows) == 1 else f"{len(self.rows)} {status}"
        words = [f"{count} {status}" for status, count in counts.most_common(3)]
        left = len(self.rows) - sum(count for _, count in counts.most_common(3))
        return "; ".join([*words, f"{left} others"] if left else words)
