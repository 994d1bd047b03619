"""Tests of moments, order statistics and samples: native against the reference, bitwise, and against sums."""
# N = elements of the vector, G = groups, K = elements that reach a limit

import math
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from vectors import KINDS, assert_same, draw, seeded

from sage import ops
from sage.ops import native, reference, reference_moments

needs_native = pytest.mark.skipif(native.MISSING is not None, reason=f"no extension: {native.MISSING}")


@pytest.fixture(params=[1, 2], ids=lambda threads: f"{threads} threads", autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def grouped(n: int) -> list[int]:
    """Bounds of one to four groups, some of them empty."""
    return [0, *sorted(random.choices(range(n + 1), k=random.choice([0, 1, 3]))), n]


def sizes_of(bounds: list[int]) -> list[int]:
    return [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]


def assert_rows_same(ours: list[float], theirs: list[float]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a == b or (math.isnan(a) and math.isnan(b)), (a, b)


@needs_native
@pytest.mark.parametrize("case", range(20))
def test_moments_and_ranks_equal_the_reference(case: int) -> None:
    n = seeded(case)
    grad_N, residual_N = draw(n), draw(n)
    bounds = grouped(n)
    if min(sizes_of(bounds)) == 0:
        bounds = [0, n]
    per = random.randrange(3) if n else 0
    ranks = [random.randint(1, size) for size in sizes_of(bounds) for _ in range(per)]
    left = []
    for op in (torch.ops.sage.ranked_moments_.default, reference_moments.ranked_moments_):
        r_N = residual_N.clone()
        rows, ranked = op(r_N, grad_N, bounds, ranks)
        left.append((rows.view(-1).tolist(), ranked, r_N))
    assert_rows_same(left[0][0], left[1][0])
    assert_same(left[0][1], left[1][1])
    assert_same(left[0][2], left[1][2])


@needs_native
@pytest.mark.parametrize("case", range(20))
def test_the_elements_at_or_above_a_limit_and_their_excess_equal_the_reference(case: int) -> None:
    n = seeded(case)
    grad_N, residual_N, bounds = draw(n), draw(n), grouped(n)
    limits = random.choices([0.0, math.nan, 1e-41, 0.5, 1.5, math.inf], k=len(bounds) - 1)
    higher = random.choice([0.0, 0.7, 2.0, math.inf])
    left = []
    for takes in (True, False):
        r_N = residual_N.clone()
        ops_ = (torch.ops.sage.moments_above_.default, torch.ops.sage.excess_.default)
        references = (reference_moments.moments_above_, reference_moments.excess_)
        above, over = ops_ if takes else references
        rows, above_K, counts_G = above(r_N, grad_N, bounds, limits)
        numbers = over(above_K.clone(), higher).tolist()
        left_K = ops.excess(above_K.clone(), higher).left_K if takes else above_K[~(above_K < higher)]
        left.append((rows.view(-1).tolist() + numbers, above_K, counts_G, r_N, left_K))
    assert_rows_same(left[0][0], left[1][0])
    for ours, theirs in zip(left[0][1:], left[1][1:], strict=True):
        assert_same(ours, theirs)


@needs_native
@pytest.mark.parametrize("case", range(20))
def test_samples_equal_the_reference(case: int) -> None:
    n = seeded(case)
    grad_N, residual_N, bounds = draw(n), draw(n), grouped(n)
    sizes = [random.randint(0, size) for size in sizes_of(bounds)]
    ranks = [random.randint(min(1, size), size) for size in sizes]
    draws_S = torch.randint(65536, (sum(sizes),), dtype=torch.int32)
    added_N = random.choice([None, grad_N])
    ours_G = torch.ops.sage.sampled(residual_N, added_N, bounds, sizes, ranks, draws_S)
    assert_same(ours_G, reference_moments.sampled(residual_N, added_N, bounds, sizes, ranks, draws_S))


@needs_native
@pytest.mark.parametrize("case", range(20))
def test_taking_from_each_group_equals_the_reference(case: int) -> None:
    n = seeded(case)
    grad_N, residual_N, bounds = draw(n), draw(n), grouped(n)
    thresholds = random.choices([0.0, math.nan, 1e-41, 0.5, 3.0, math.inf], k=len(bounds) - 1)
    keep = random.random() < 0.8
    left = []
    for op in (torch.ops.sage.select_groups_.default, reference.take_above_each):
        r_N = residual_N.clone()
        left.append([*op(r_N, grad_N, bounds, thresholds, keep), r_N])
    for ours, theirs in zip(*left, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("make", KINDS[:7])
def test_moments_are_the_sums_and_ranks_those_of_a_sorted_vector(make: Callable[[int], Tensor]) -> None:
    torch.manual_seed(0)
    x_N = make(40_000).float()
    (found,) = ops.moments(x_N, None, [0, 40_000], [[1, 300, 40_000]])
    wide_N = x_N.double()
    assert found.total == pytest.approx(float(wide_N.sum()), rel=1e-9, abs=1e-30)
    assert found.absolute == pytest.approx(float(wide_N.abs().sum()), rel=1e-12)
    assert found.square == pytest.approx(float((wide_N**2).sum()), rel=1e-12)
    assert found.nonzero == int((x_N != 0).sum())
    falling = x_N.abs().sort(descending=True).values
    assert found.ranked == [float(falling[r - 1]) for r in (1, 300, 40_000)]
    assert found.most == found.ranked[0]


def test_a_sum_depends_only_on_the_position_in_its_group() -> None:
    torch.manual_seed(0)
    x_N = torch.randn(9_001) * torch.randn(9_001).exp()
    parts = ops.moments(x_N, None, [0, 3_333, 3_333, 9_001])
    alone = [
        ops.moments(part_N.clone(), None, [0, part_N.numel()])[0] for part_N in x_N.split([3_333, 0, 5_668])
    ]
    assert parts == alone
    assert alone[1] == (0.0, 0.0, 0.0, 0, 0.0, [])


def test_a_sample_has_one_element_of_each_stretch_and_all_are_equally_likely() -> None:
    x_N = torch.arange(10.0)
    drawn = [
        ops.sampled(x_N, None, [0, 10], [3], [rank], torch.full((3,), draw, dtype=torch.int32))[0]
        for rank in (3, 2, 1)
        for draw in (0, 65535)
    ]
    # Runs of 3, 3 and 4: the first and the last element of each.
    assert drawn == [0, 2, 3, 5, 6, 9]


def test_the_excess_is_over_the_smallest_magnitude_left() -> None:
    _, (list_K,) = ops.moments_above(torch.tensor([1.0, -5.0, 0.0, 3.0, -4.0]), None, [0, 5], [1.0])
    assert list_K.tolist() == [1, 5, 3, 4]
    left_K, least, total, square = ops.excess(list_K, 2.5)
    assert left_K.tolist() == [5, 3, 4]
    assert (least, total, square) == (3, 2 + 0 + 1, 4 + 0 + 1)


def test_each_group_has_its_own_threshold() -> None:
    residual_N, grad_N = torch.tensor([1.0, 2.0, 3.0, 1.0, -3.0]), torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0])
    own_K, at_K, counts = ops.take_above_each(grad_N, residual_N, [0, 3, 3, 5], [3.0, 1.0, 2.0])
    assert (own_K.tolist(), at_K.tolist(), counts) == ([3, 2, -3], [2, 3, 4], [1, 0, 2])
    assert residual_N.tolist() == [1, 2, 0, 0, 0]


def test_order_statistics_outside_the_group_are_infinite_or_negative() -> None:
    (found, empty) = ops.moments(torch.tensor([2.0, -1.0]), None, [0, 2, 2], [[0, 2, 3], [0, 1, 1]])
    assert found.ranked == [math.inf, 1.0, -1.0]
    assert empty.ranked == [math.inf, -1.0, -1.0]
