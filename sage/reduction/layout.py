"""Layout of the parameters' gradients in the flat vector.

Groups are the units over which a method decides (selects, scales, factorises). The whole vector is always
sent in one exchange, so grouping by layer costs no extra messages.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from sage.ops import Positions

MAX_ELEMENTS = 2**31 - 1
"""Largest number of elements of a vector; indices are int32."""


class Origin(NamedTuple):
    """Where a parameter is in the vector of the whole model, on which its random numbers depend."""

    position: int
    """Position of its first element."""
    number: int
    """Number of parameters before it."""


@dataclass(frozen=True)
class Span:
    """Position of one parameter: elements `[start, stop)` of the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Number of elements of the parameter."""
        return self.stop - self.start


@dataclass(frozen=True)
class Layout:
    """Names, shapes and positions of the parameters, and the groups over which a reducer decides."""

    spans: tuple[Span, ...]
    groups: tuple[tuple[int, int], ...]
    """(start, stop) of each group; the groups cover `[0, numel)` in order."""
    origins: tuple[Origin, ...]
    """Where each of the spans is in the vector of the whole model."""

    @property
    def numel(self) -> int:
        """Number of elements of the flat vector."""
        return self.spans[-1].stop if self.spans else 0

    def group_of_span(self) -> list[int]:
        """Index of the group that contains each span.

        An empty span between two groups may be in either; if each span is a group, it is in its own.

        >>> Layout.of([("empty", (0, 2)), ("w", (2,)), ("also empty", (0,))], "layer").group_of_span()
        [0, 1, 2]
        """
        if len(self.groups) == len(self.spans):
            return list(range(len(self.spans)))
        groups, group = [], 0
        for span in self.spans:
            while self.groups[group][1] < span.stop:
                group += 1
            groups.append(group)
        return groups

    @cached_property
    def positions(self) -> Positions:
        """Position of each element in the vector of the whole model.

        >>> shapes, places = [("a", (2,)), ("b", (3,)), ("c", (4,))], {"a": 0, "b": 2, "c": 9}
        >>> origins = {name: Origin(place, number) for number, (name, place) in enumerate(places.items())}
        >>> Layout.of(shapes, origins=origins).positions
        Positions(starts=(0, 5), firsts=(0, 9))
        """
        after = self.origins[0].position if self.origins else 0
        starts, firsts = [0], [after]
        for span, origin in zip(self.spans, self.origins, strict=True):
            if origin.position != after:
                starts.append(span.start)
                firsts.append(origin.position)
            after = origin.position + span.numel
        return Positions(tuple(starts), tuple(firsts))

    @cached_property
    def group_numbers(self) -> list[int]:
        """Number of each group in the vector of the whole model.

        It is the parameter's number if each group is one; otherwise groups are counted from the number of the
        vector's first parameter.
        """
        numbers = [origin.number for origin in self.origins]
        if len(self.groups) == len(self.spans):
            return numbers
        return [min(numbers) + group for group in range(len(self.groups))]

    def within(self, start: int, stop: int) -> "Layout":
        """Return the layout of the elements `[start, stop)`, with all spans and groups; others are empty.

        >>> layout = Layout.of([("a", (2,)), ("b", (3,)), ("c", (4,))], "layer")
        >>> layout.within(3, 7).groups, layout.within(3, 7).positions
        (((0, 0), (0, 2), (2, 4)), Positions(starts=(0,), firsts=(3,)))
        """
        spans, places, after = [], [], None
        for span, origin in zip(self.spans, self.origins, strict=True):
            first, last = (min(max(at, start), stop) for at in (span.start, span.stop))
            shape = span.shape if last - first == span.numel else (last - first,)
            spans.append(Span(span.name, shape, first - start, last - start))
            places.append(Origin(origin.position + first - span.start, origin.number))
            if after is None and first < last:
                after = places[-1].position
        # An empty span has no place of its own: it is where the next element is.
        for number in range(len(spans)):
            if spans[number].numel == 0:
                places[number] = Origin(after or 0, places[number].number)
            after = places[number].position + spans[number].numel
        groups = tuple(
            (min(max(a, start), stop) - start, min(max(b, start), stop) - start) for a, b in self.groups
        )
        return Layout(tuple(spans), groups, tuple(places))

    @staticmethod
    def of(
        shapes: Iterable[tuple[str, Sequence[int]]],
        grouping: str = "model",
        *,
        origins: Mapping[str, Origin] | None = None,
    ) -> "Layout":
        """Place tensors one after another in a flat vector.

        Args:
            shapes: Name and shape of each tensor, in the same order on every rank.
            grouping: `model` (one group), `layer` (one group per tensor) or `bucket:<MB>` (whole tensors up
                to that many MB of float32, at least one per bucket).
            origins: Where each tensor is in the vector of the whole model, by name; None: this vector is it.

        Raises:
            ValueError: if the grouping is unknown, or there are 2^31 elements or more.
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
        if origins is None:
            places = [Origin(span.start, number) for number, span in enumerate(spans)]
        else:
            places = [origins[span.name] for span in spans]
        return Layout(tuple(spans), tuple(_groups(spans, grouping)), tuple(places))


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
    """Number of elements in one bucket of `bucket:<MB>` (MB = 10^6 bytes of float32).

    Raises:
        ValueError: if the grouping does not have this form.
    """
    kind, _, size = grouping.partition(":")
    try:
        megabytes = float(size)
    except ValueError:
        megabytes = 0.0
    if kind != "bucket" or not 0 < megabytes < math.inf:
        raise ValueError(f"grouping {grouping!r}: expected model, layer, or bucket:<MB> such as bucket:25")
    return max(1, int(megabytes * 1e6 / 4))
