"""Where each parameter's gradient lies in the flat vector.

Groups are the units over which a method decides (selects, scales, factors); what crosses the wire is
always the whole vector in one exchange, so grouping by layer costs no extra messages.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

MAX_ELEMENTS = 2**31 - 1
"""Indices travel as int32."""


@dataclass(frozen=True)
class Span:
    """One parameter's place: elements `[start, stop)` of the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Elements of the parameter."""
        return self.stop - self.start


@dataclass(frozen=True)
class Layout:
    """Names, shapes and places of the parameters, and the groups that a reducer decides over."""

    spans: tuple[Span, ...]
    groups: tuple[tuple[int, int], ...]
    """(start, stop) of each group; together they cover `[0, numel)` in order."""

    @property
    def numel(self) -> int:
        """Elements of the flat vector."""
        return self.spans[-1].stop if self.spans else 0

    def group_of_span(self) -> list[int]:
        """Of each span the number of the group that it lies in.

        An empty span between two groups lies in either, but where each span is a group, in its own.

        >>> Layout.of([("empty", (0, 2)), ("w", (2,)), ("also empty", (0,))], "layer").group_of_span()
        [0, 1, 2]
        """
        if len(self.groups) == len(self.spans):
            return list(range(len(self.spans)))
        found, group = [], 0
        for span in self.spans:
            while self.groups[group][1] < span.stop:
                group += 1
            found.append(group)
        return found

    @staticmethod
    def of(shapes: Iterable[tuple[str, Sequence[int]]], grouping: str = "model") -> "Layout":
        """Lay tensors out one after another.

        Args:
            shapes: Name and shape of each tensor, in the same order on every rank.
            grouping: `model` (one group), `layer` (one a tensor) or `bucket:<MB>` (whole tensors up to that
                many MB of float32, at least one a bucket).

        Raises:
            ValueError: for another grouping, or 2^31 elements or more.
        """
        spans, start = [], 0
        for name, shape in shapes:
            stop = start + torch.Size(shape).numel()
            spans.append(Span(name, tuple(shape), start, stop))
            start = stop
        if start > MAX_ELEMENTS:
            raise ValueError(
                f"{start:,} elements in one vector; at most {MAX_ELEMENTS:,} can be indexed by int32: "
                "reduce the model in several parts, or shard it (FSDP)"
            )
        return Layout(tuple(spans), tuple(_groups(spans, grouping)))


def _groups(spans: Sequence[Span], grouping: str) -> list[tuple[int, int]]:
    if not spans:
        return []
    if grouping == "model":
        return [(0, spans[-1].stop)]
    if grouping == "layer":
        return [(span.start, span.stop) for span in spans]
    limit = bucket_elements(grouping)
    groups: list[tuple[int, int]] = []
    start = 0
    for span in spans:
        if span.stop - start > limit and span.start > start:
            groups.append((start, span.start))
            start = span.start
    groups.append((start, spans[-1].stop))
    return groups


def bucket_elements(grouping: str) -> int:
    """Elements in one bucket of `bucket:<MB>` (MB = 10^6 bytes of float32)."""
    kind, _, size = grouping.partition(":")
    try:
        megabytes = float(size)
    except ValueError:
        megabytes = 0.0
    if kind != "bucket" or not 0 < megabytes < math.inf:
        raise ValueError(f"grouping {grouping!r}: expected model, layer, or bucket:<MB> such as bucket:25")
    return max(1, int(megabytes * 1e6 / 4))
