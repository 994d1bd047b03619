"""Types of the fields of a run's configuration, and the marks of its fields."""

from collections.abc import Hashable
from dataclasses import MISSING, Field
from functools import cache
from typing import Annotated, Any, cast, get_type_hints

from .. import registry
from ..validate import Range, marks

NOT_HASHED = "aside"
"""Marks a field that cannot change the result of a run and is therefore excluded from its hash."""

PARTS: dict[str, registry.PartKind] = {
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


def annotations_of(kind: type) -> dict[str, Any]:
    """Return the fields of a dataclass with their annotations, in the order of the class."""
    return _annotations(cast(Hashable, kind))


@cache
def _annotations(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def marked(kind: type, mark: str) -> set[str]:
    """Return the names of the fields with a mark such as NOT_HASHED or LATER."""
    return {name for name, annotation in annotations_of(kind).items() if mark in marks(annotation)}


def default_of(each: Field[Any]) -> Any:
    """Return the default of a field, or MISSING if it has none."""
    return each.default if each.default_factory is MISSING else each.default_factory()
