"""Annotations, marks and defaults of the fields of a run's configuration."""

from collections.abc import Hashable
from dataclasses import MISSING, Field
from functools import cache
from typing import Any, cast, get_type_hints

from ..validate import marks


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
