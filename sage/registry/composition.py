"""Names of composed reducers: sparsifier+quantiser, and +server after any reducer."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from ..validate import shown

SERVER = "server"
"""Last part of the name of a reducer whose mean is encoded too: topk+server (`sage.reduction.served`)."""


def reducers_in(name: str) -> list[str]:
    """Split the name of a composed reducer into those of its parts, without `+server`.

    >>> reducers_in("topk+terngrad+server"), reducers_in("topk")
    (['topk', 'terngrad'], ['topk'])
    """
    return name.removesuffix(f"+{SERVER}").split("+")


def compose(name: str, parts: Sequence[Any]) -> Callable[..., Any]:
    """Return the reducer of a composed name.

    Args:
        name: The name.
        parts: The reducers in it.

    Raises:
        ValueError: if there are more than two, or they do not go together.
    """
    if len(parts) > 2:
        raise ValueError(
            f"the reducer {shown(name)}: expected two parts, as in topk+terngrad, and +server at the end if "
            "servers encode the mean"
        )
    # Imported by name, because the reduction package imports this one.
    made: Any = parts[0]
    if len(parts) == 2:
        made = importlib.import_module("sage.reduction.hybrid").hybrid(*parts)
    if name.endswith(f"+{SERVER}"):
        made = importlib.import_module("sage.reduction.served").served(made)
    composed: Callable[..., Any] = made
    return composed
