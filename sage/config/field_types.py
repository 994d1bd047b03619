"""Types of the fields of a run's configuration, and the kinds of its parts."""

from typing import Annotated

from ..registry import PartKind
from ..validate import Range

NOT_HASHED = "aside"
"""Marks a field that cannot change the result of a run and is therefore excluded from its hash."""

PARTS: dict[str, PartKind] = {
    "reducer": "reducers",
    "model": "models",
    "data": "datasets",
    "task": "tasks",
}
OPTIONED = ("reducer", "model", "data")
"""The parts that take options."""

Option = bool | int | float | str | None | tuple[bool | int | float | str, ...]
Options = dict[str, Option]
Fraction = Annotated[float, Range(0, 1, open=")")]
Positive = Annotated[float, Range(0, open="(")]
NotNegative = Annotated[float, Range(0)]
Count = Annotated[int, Range(1)]
Seconds = Annotated[float, Range(0.01, 1e6)]
