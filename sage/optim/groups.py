"""Groups of elements that share one scale."""

from typing import Literal, get_args

from sage.reduction.layout import Layout

Grouping = Literal["model", "layer"]
"""Elements with one scale: the whole model, or each parameter."""


def group_sizes(layout: Layout, grouping: Grouping) -> list[int]:
    """Number of elements of each group of a flat vector.

    Raises:
        ValueError: if the grouping is unknown.
    """
    if grouping not in get_args(Grouping):
        raise ValueError(f"grouping is {grouping!r}; expected {' or '.join(get_args(Grouping))}")
    return [layout.numel] if grouping == "model" else [span.numel for span in layout.spans]
