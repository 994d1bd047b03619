"""The recorded steps of a run as columns, which need far less memory than one dictionary per step."""
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
    "encode_seconds",
    "decode_seconds",
    "exposed_seconds",
    "loader_seconds",
    "vnmse",
)


@dataclass(frozen=True)
class Steps:
    """One column of numbers for each of `FIELDS`; NaN where a step has null or lacks the field."""

    columns: Mapping[str, Column]
    payload: Mapping[str, float]
    """Mean bytes per step, by kind of payload."""
    phases: Mapping[str, float]
    """Mean seconds per step of each phase, over the steps that have phases; empty without `--profile`."""

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> "Steps":
        """Build the columns from step records, which have been checked against their schema."""
        payload = _means([record.get("bytes") or {} for record in records])
        phases = _means([record["phases"] for record in records if record.get("phases")])
        return cls({name: _column(records, name) for name in FIELDS}, payload, phases)

    def __len__(self) -> int:
        return len(self.columns["step"])

    def __getitem__(self, name: str) -> Column:
        """The field of all steps (S)."""
        return self.columns[name]

    @property
    def wire(self) -> Column:
        """Bytes sent and received on rank 0's link in each step (S)."""
        return self["wire_sent"] + self["wire_received"]

    @property
    def reduction_seconds(self) -> Column:
        """Encoding, collectives and decoding of each step (S), where none overlaps with backward."""
        return self["encode_seconds"] + self["exposed_seconds"] + self["decode_seconds"]

    def mean(self, name: str) -> float | None:
        """Mean of a field over the steps that have it; None if none has."""
        return mean(self[name])

    def median(self, name: str) -> float | None:
        """Median of a field over the steps that have it; None if none has."""
        return median(self[name])


def median(values_S: Column) -> float | None:
    """Median of the finite values; None if there are none."""
    finite_S = values_S[numpy.isfinite(values_S)]
    return float(numpy.median(finite_S)) if len(finite_S) else None


def mean(values_S: Column) -> float | None:
    """Mean of the finite values; None if there are none."""
    finite_S = values_S[numpy.isfinite(values_S)]
    return float(finite_S.mean()) if len(finite_S) else None


def _column(records: Sequence[Mapping[str, Any]], name: str) -> Column:
    return numpy.array([record.get(name) for record in records], dtype=numpy.float64)


def _means(groups: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Mean of each name's value over all groups; a group that lacks the name counts as 0."""
    sums: dict[str, float] = {}
    for group in groups:
        for name, value in group.items():
            sums[name] = sums.get(name, 0.0) + (value or 0.0)
    return {name: total / len(groups) for name, total in sums.items()}
