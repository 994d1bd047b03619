"""Refuses names of groupings that do not exist."""

import re

_GROUPING = re.compile(r"model|layer|bucket:(?=[\d.]*[1-9])(\d+(\.\d+)?|\.\d+)")


def check_grouping(grouping: str | None) -> None:
    """Refuse a grouping that `sage.reduction.layout` does not have; None is the reducer's own.

    Raises:
        ValueError: There is no such grouping.
    """
    if grouping is not None and not _GROUPING.fullmatch(grouping):
        allowed = "model, layer, or bucket:<MB> with MB above 0, as bucket:25"
        raise ValueError(f"grouping is {grouping!r}; allowed is {allowed}")
