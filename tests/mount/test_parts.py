"""Tests of how a flat vector is cut into the parts of a node's ranks."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sage import registry
from sage.mount.parts import cut, needs_whole_tensors, origins_of, shapes_of
from sage.reduction.layout import Layout, Origin

SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=7)


def layout_of(sizes: list[int]) -> Layout:
    return Layout.of([(f"p{number}", (size,)) for number, size in enumerate(sizes)])


def largest_by_trial(sizes: list[int], num_parts: int) -> int:
    """The least possible size of the largest of so many consecutive parts, by trying all."""
    inner = range(len(sizes) + 1)
    cuts = ((0, *places, len(sizes)) for places in combinations(list(inner) * num_parts, num_parts - 1))
    return min(
        max(sum(sizes[a:b]) for a, b in pairwise(places)) for places in cuts if list(places) == sorted(places)
    )


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 4), st.booleans())
def test_the_parts_have_every_element_once_and_are_balanced(
    sizes: list[int], num_parts: int, whole_tensors: bool
) -> None:
    layout = layout_of(sizes)
    lengths = cut(layout, num_parts, whole_tensors=whole_tensors)
    assert len(lengths) == num_parts
    assert sum(lengths) == layout.numel
    if whole_tensors:
        assert max(lengths) == largest_by_trial(sizes, min(num_parts, 3)) or num_parts > 3
    else:
        assert max(lengths) == -(-layout.numel // num_parts)
    found: dict[str, int] = {}
    start = 0
    for length in lengths:
        tensors = shapes_of(layout, start, start + length)
        assert sum(shape.numel() for _, shape, _ in tensors) == length
        for name, shape, offset in tensors:
            assert offset == found.get(name, 0)  # the pieces of a tensor follow one another
            found[name] = offset + shape.numel()
            is_whole = shape == torch.Size(next(span.shape for span in layout.spans if span.name == name))
            assert is_whole or not whole_tensors
        start += length
    assert {name: size for name, size in found.items() if size} == {
        span.name: span.numel for span in layout.spans if span.numel
    }


def test_a_piece_of_a_tensor_is_a_vector_at_its_place_in_the_whole_model() -> None:
    layout = Layout.of([("a", (2, 3)), ("b", (4,))])
    tensors = shapes_of(layout, 5, 10)
    assert tensors == [("a", torch.Size([1]), 5), ("b", torch.Size([4]), 0)]
    assert origins_of(layout, tensors) == {"a": Origin(5, 0), "b": Origin(6, 1)}


@pytest.mark.parametrize(
    ("name", "grouping", "whole"),
    [
        ("exact", None, False),
        ("sage", None, False),
        ("sage", "layer", True),
        ("threshold", "layer", True),
        ("topk", None, True),
        ("powersgd", None, True),
        ("powersgd", "model", True),
        ("int8", None, False),
        ("int8", "bucket:1", True),
    ],
)
def test_methods_that_decide_by_tensor_get_whole_tensors(
    name: str, grouping: str | None, whole: bool
) -> None:
    assert needs_whole_tensors(registry.load("reducers", name)(), grouping) is whole
