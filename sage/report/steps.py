"""The steps that a run recorded, as columns: far smaller than one dictionary a step."""
# S = recorded steps of a run

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

Column = NDArray[numpy.float64]

FIELDS = (
    "step",
    "loss",
    "density_asked",
    "density_had",
    "seconds",
    "wire_sent",
    "wire_received",
)


@dataclass(frozen=True)
class Steps:
    """Columns of numbers, one for each field of `FIELDS`; NaN where a step has null, or lacks the field."""

    columns: Mapping[str, Column]
    payload: Mapping[str, float]
    """Mean bytes a step, by kind."""
    phases: Mapping[str, float]
    """Mean seconds a step in each phase, over those steps that have phases; empty without `--profile`."""

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> "Steps":
        """The columns of the records of steps, which were checked against their kind."""
        payload = _means([record.get("bytes") or {} for record in records])
        phases = _means([record["phases"] for record in records if record.get("phases")])
        return cls({name: _column(records, name) for name in FIELDS}, payload, phases)

    def __len__(self) -> int:
        return len(self.columns["step"])

    def __getitem__(self, name: str) -> Column:
        """A field of all steps (S)."""
        return self.columns[name]

    @property
    def wire(self) -> Column:
        """Bytes on rank 0's link, both ways, in each step (S)."""
        return self["wire_sent"] + self["wire_received"]

    def mean(self, name: str) -> float | None:
        """The mean of a field over the steps that have it."""
        return mean(self[name])


def mean(values_S: Column) -> float | None:
    """The mean of the finite values; None where there are none."""
    finite_S = values_S[numpy.isfinite(values_S)]
    return float(finite_S.mean()) if len(finite_S) else None


def _column(records: Sequence[Mapping[str, Any]], name: str) -> Column:
    return numpy.array([record.get(name) for record in records], dtype=numpy.float64)


def _means(groups: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """The mean of each name's number over all groups; a group that lacks the name counts as 0."""
    sums: dict[str, float] = {}
    for group in groups:
        for name, value in group.items():
            sums[name] = sums.get(name, 0.0) + (value or 0.0)
    return {name: total / len(groups) for name, total in sums.items()}
