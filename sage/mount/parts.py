"""Cuts a flat vector into one part for each rank of a node, for reductions on two levels.

The parts are consecutive. If a method decides by element, or over the whole vector whatever its tensors are,
they are cut at any element: into ⌈N/R⌉ elements each, of which the last parts may have fewer. A method that
decides by tensor, or factors matrices, needs whole tensors: the vector is then cut between tensors, such that
the largest part is as small as possible.
"""
# N = elements of the flat vector, R = ranks of a node

from collections.abc import Sequence

import torch

from sage.comm.packing import divide
from sage.reduction.layout import Layout, Origin
from sage.reduction.reducer import Reducer


def needs_whole_tensors(reducer: Reducer, grouping: str | None) -> bool:
    """Whether the parts for a reducer must be cut between tensors.

    Args:
        reducer: The method.
        grouping: Unit of its decisions; None: its own.
    """
    is_by_model = reducer.grouping == "model" and grouping in (None, "model")
    return reducer.decides_by != "element" and not is_by_model


def cut(layout: Layout, num_parts: int, *, whole_tensors: bool) -> list[int]:
    """Return the number of elements of each part; parts may be empty.

    Args:
        layout: Layout of the vector.
        num_parts: Number of parts.
        whole_tensors: Whether to cut between tensors only.

    >>> layout = Layout.of([("a", (5,)), ("b", (3,)), ("c", (2,)), ("d", (4,))])
    >>> cut(layout, 2, whole_tensors=False), cut(layout, 2, whole_tensors=True)
    ([7, 7], [8, 6])
    """
    if not whole_tensors:
        return divide(layout.numel, num_parts)
    sizes = [span.numel for span in layout.spans]
    low, high = max([0, *sizes, -(-layout.numel // num_parts)]), layout.numel
    while low < high:  # the least capacity for which the tensors fit into the parts, one after another
        middle = (low + high) // 2
        if len(_filled(sizes, middle)) <= num_parts:
            high = middle
        else:
            low = middle + 1
    parts = _filled(sizes, low)
    return parts + [0] * (num_parts - len(parts))


def _filled(sizes: Sequence[int], capacity: int) -> list[int]:
    """Fill parts of this capacity with tensors, one part after another."""
    parts = [0]
    for size in sizes:
        if parts[-1] + size > capacity:
            parts.append(0)
        parts[-1] += size
    return parts


def shapes_of(layout: Layout, start: int, stop: int) -> list[tuple[str, torch.Size, int]]:
    """Return name and shape of the tensors in a part, with the position of its first element in the tensor.

    A tensor that is not whole is a vector there. An empty tensor is in the part that begins at its place, or
    else in the last part.

    Args:
        layout: Layout of the whole vector.
        start, stop: The elements of the part.
    """
    found = []
    for span in layout.spans:
        if span.numel == 0:
            if start <= span.start < stop or (span.start == stop == layout.numel):
                found.append((span.name, torch.Size(span.shape), 0))
            continue
        first, last = max(start, span.start), min(stop, span.stop)
        if first < last:
            is_whole = last - first == span.numel
            shape = torch.Size(span.shape) if is_whole else torch.Size([last - first])
            found.append((span.name, shape, first - span.start))
    return found


def origins_of(compressed: Layout, tensors: Sequence[tuple[str, torch.Size, int]]) -> dict[str, Origin]:
    """Return where the compressed tensors of a part are in the vector of the whole model, by name.

    Args:
        compressed: Layout of the compressed tensors of the whole vector.
        tensors: What `shapes_of` returned.
    """
    places = {span.name: place for span, place in zip(compressed.spans, compressed.origins, strict=True)}
    return {
        name: Origin(places[name].position + offset, places[name].number)
        for name, _, offset in tensors
        if name in places
    }
