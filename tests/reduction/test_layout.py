"""Tests of the position of each parameter in the flat vector, and of the groups."""

import pytest

from sage.reduction.layout import MAX_ELEMENTS, Layout, Span, bucket_elements

SHAPES = (("conv", (2, 3)), ("scale", ()), ("empty", (0, 4)), ("wide", (5,)))
"""6, 1, 0 and 5 elements."""

MB_OF_8 = 8 * 4 / 1e6


def test_tensors_are_contiguous_in_the_given_order() -> None:
    layout = Layout.of(SHAPES)
    assert layout.spans == (
        Span("conv", (2, 3), 0, 6),
        Span("scale", (), 6, 7),
        Span("empty", (0, 4), 7, 7),
        Span("wide", (5,), 7, 12),
    )
    assert [span.numel for span in layout.spans] == [6, 1, 0, 5]
    assert layout.numel == 12
    backwards = Layout.of(reversed(SHAPES))
    assert [span.name for span in backwards.spans] == ["wide", "empty", "scale", "conv"]
    assert backwards.spans[-1] == Span("conv", (2, 3), 6, 12)


@pytest.mark.parametrize(
    ("grouping", "groups"),
    [
        ("model", [(0, 12)]),
        ("layer", [(0, 6), (6, 7), (7, 7), (7, 12)]),
        (f"bucket:{MB_OF_8}", [(0, 7), (7, 12)]),  # wide would not fit
        ("bucket:0.000001", [(0, 6), (6, 7), (7, 12)]),  # less than any tensor: one a bucket
        ("bucket:25", [(0, 12)]),
    ],
)
def test_groups_equal_those_computed_by_hand(grouping: str, groups: list[tuple[int, int]]) -> None:
    assert list(Layout.of(SHAPES, grouping).groups) == groups


@pytest.mark.parametrize("grouping", ["model", "layer", "bucket:0.00004", "bucket:0.0001", "bucket:1"])
def test_groups_cover_the_vector_in_order_and_split_no_tensor(grouping: str) -> None:
    layout = Layout.of([(f"{n}", (n * 7 % 11, 1 + n % 3)) for n in range(20)], grouping)
    starts, stops = zip(*layout.groups, strict=True)
    assert (starts[0], stops[-1]) == (0, layout.numel)
    assert starts[1:] == stops[:-1]
    assert set(starts) <= {span.start for span in layout.spans}
    if grouping.startswith("bucket"):
        limit = bucket_elements(grouping)
        for start, stop in layout.groups:
            inside = [span for span in layout.spans if span.numel and start <= span.start < stop]
            assert stop - start <= limit or len(inside) == 1


def test_an_empty_layout_has_no_groups() -> None:
    for grouping in ("model", "layer", "bucket:1"):
        layout = Layout.of([], grouping)
        assert (layout.numel, layout.spans, layout.groups) == (0, (), ())


def test_a_bucket_is_megabytes_of_float32() -> None:
    assert bucket_elements("bucket:25") == 6_250_000
    assert bucket_elements("bucket:0.5") == 125_000
    assert bucket_elements("bucket:1e-9") == 1


@pytest.mark.parametrize(
    "grouping", ["", "layers", "bucket", "bucket:", "bucket:0", "bucket:-1", "bucket:nan", "bucket:inf", "25"]
)
def test_an_unknown_grouping_is_refused_with_the_allowed_ones(grouping: str) -> None:
    expected = rf"grouping '{grouping}': expected model, layer, or bucket:<MB> such as bucket:25"
    with pytest.raises(ValueError, match=expected):
        Layout.of(SHAPES, grouping)


def test_a_layout_has_at_most_as_many_elements_as_int32_can_index() -> None:
    assert MAX_ELEMENTS == 2**31 - 1
    assert Layout.of([("half", (2**30,)), ("rest", (2**30 - 1,))]).numel == MAX_ELEMENTS
    with pytest.raises(ValueError, match=r"2,147,483,648 elements .* at most 2,147,483,647 .*FSDP"):
        Layout.of([("half", (2**30,)), ("other", (2**15, 2**15))])
