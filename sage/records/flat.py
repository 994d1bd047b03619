"""Flattens nested tables, as of a configuration, for tools that take one level of names."""

from collections.abc import Mapping
from typing import Any

Plain = bool | int | float | str


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Plain]:
    """Return all values with dotted names; what is neither boolean, number nor text becomes text.

    >>> flat({"lr": 0.1, "options": {"density": 0.01, "norms": None}})
    {'lr': 0.1, 'options.density': 0.01, 'options.norms': 'None'}
    """
    found: dict[str, Plain] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, Plain) else str(value)
    return found
