"""Tests of the ops against plain implementations: sorting, and dense vectors."""
# N = elements of the vector, K = elements selected, M = elements of all ranks together

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sage import ops

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
TELLING = [0.0, -0.0, 1.0, -1.0, 2.5, math.inf, -math.inf, math.nan, 1e-41, -1e-41, 6e-8, 65504.0, 1e30]

dtypes = st.sampled_from(FLOATS)
elements = st.lists(st.sampled_from(TELLING) | st.floats(width=32), max_size=40)
moderately = settings(deadline=None, derandomize=True, max_examples=50)


def vector(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).to(dtype)


def largest_first(x_N: Tensor) -> list[int]:
    """The indices by falling |x|, NaN as ∞, the lower index first among equals, by numpy's stable sort."""
    magnitude = np.abs(x_N.double().numpy())
    return np.argsort(-np.where(np.isnan(magnitude), np.inf, magnitude), kind="stable").tolist()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_magnitude_bits_have_the_order_of_magnitudes_with_nan_above_infinity(dtype: torch.dtype) -> None:
    bits = ops.magnitude_bits(vector([0.0, -0.0, 1e-7, -1.0, 2.0, -math.inf, math.nan], dtype)).tolist()
    assert bits[0] == bits[1] == 0
    assert bits[1:] == sorted(set(bits[1:]))


def test_integers_have_no_magnitude_bits() -> None:
    with pytest.raises(
        TypeError, match=r"a vector of torch\.int64: expected one of torch\.float32, torch\.float16"
    ):
        ops.magnitude_bits(torch.arange(3))


@moderately
@given(elements, st.integers(0, 45), dtypes)
def test_select_top_selects_the_first_elements_of_a_stable_sort(
    values: list[float], k: int, dtype: torch.dtype
) -> None:
    finite_N = vector([v for v in values if not math.isnan(v)], dtype)
    at_K = ops.select_top(finite_N, k)
    assert at_K.dtype == torch.int64
    assert at_K.tolist() == sorted(largest_first(finite_N)[:k])


@moderately
@given(elements, st.integers(1, 45), dtypes)
def test_select_top_selects_nan_first(values: list[float], k: int, dtype: torch.dtype) -> None:
    x_N = vector(values, dtype)
    nan = set(x_N.isnan().nonzero().view(-1).tolist())
    taken = set(ops.select_top(x_N, k).tolist())
    assert len(taken) == min(k, len(values))
    assert taken >= nan or taken <= nan


@pytest.mark.parametrize(
    ("values", "k", "expected"),
    [
        ([], 0, []),
        ([], 3, []),
        ([5.0], 0, []),
        ([5.0, 1.0], 2, [0, 1]),
        ([5.0, 1.0], 9, [0, 1]),
        ([1.0, -3.0, 2.0], 1, [1]),
        ([1.0, -1.0, 1.0, 1.0], 2, [0, 1]),
        ([0.0, -0.0, 0.0], 2, [0, 1]),
        ([1.0, 2.0, -2.0, 1.0, 3.0], 2, [1, 4]),
        ([math.inf, math.nan, -math.inf], 1, [1]),
        ([1e-41, 0.0, -2e-41], 1, [2]),
    ],
)
def test_select_top_equals_the_result_computed_by_hand(
    values: list[float], k: int, expected: list[int]
) -> None:
    assert ops.select_top(vector(values), k).tolist() == expected


@moderately
@given(
    elements, st.sampled_from([0.0, 1e-41, 1.0, 2.5, 1e30, math.inf]) | st.floats(0, 100, width=32), dtypes
)
def test_select_above_selects_nan_and_every_magnitude_not_below_the_threshold(
    values: list[float], threshold: float, dtype: torch.dtype
) -> None:
    x_N = vector(values, dtype)
    limit = float(vector([threshold], dtype))  # the threshold is rounded to what it is compared with
    expected = [i for i, x in enumerate(x_N.tolist()) if abs(x) >= limit or math.isnan(x)]
    assert ops.select_above(x_N, threshold).tolist() == expected
    assert ops.count_above(x_N, threshold) == len(expected)


def test_a_magnitude_equal_to_the_threshold_is_selected_and_zero_selects_everything() -> None:
    x_N = vector([0.5, -0.5, 0.25, 0.0])
    assert ops.select_above(x_N, 0.5).tolist() == [0, 1]
    assert ops.select_above(x_N, 0.0).tolist() == [0, 1, 2, 3]
    assert ops.select_above(torch.empty(0), 1.0).tolist() == []


def test_accumulate_adds_to_the_residual_in_place_if_there_is_one() -> None:
    grad_N, residual_N = vector([1.0, 2.0]), vector([0.5, -2.0])
    assert ops.accumulate(grad_N, None) is grad_N
    assert ops.accumulate(grad_N, residual_N) is residual_N
    assert residual_N.tolist() == [1.5, 0.0]
    assert grad_N.tolist() == [1.0, 2.0]


def test_take_sets_the_taken_elements_to_zero_only_with_keep() -> None:
    for keep, left in ((True, [1.0, 0.0, 3.0, 0.0]), (False, [1.0, -2.0, 3.0, math.inf])):
        signal_N = vector([1.0, -2.0, 3.0, math.inf])
        values_K = ops.take(signal_N, torch.tensor([1, 3]), dtype=torch.float32, keep=keep)
        assert values_K.tolist() == [-2.0, math.inf]
        assert signal_N.tolist() == left


@moderately
@given(elements.filter(bool), st.sampled_from([torch.float16, torch.bfloat16]))
def test_the_rounding_error_of_take_stays_in_the_residual(values: list[float], dtype: torch.dtype) -> None:
    before_N = vector(values)
    left_N = before_N.clone()
    at_K = torch.arange(len(values))
    values_N = ops.take(left_N, at_K, dtype=dtype, keep=True)
    finite_N = before_N.isfinite()
    assert values_N.dtype == dtype
    # Rounding to a narrower float loses less than what is left can hold, so the sum is exact.
    assert torch.equal((values_N.float() + left_N)[finite_N], before_N[finite_N])
    assert torch.equal(values_N.isnan(), before_N.isnan())
    assert torch.equal(values_N[~finite_N].isinf(), before_N[~finite_N].isinf())
    assert bool(values_N[finite_N].isfinite().all())
    assert not bool(left_N[~finite_N].any())


def test_take_sends_the_largest_fp16_where_a_value_would_overflow_and_keeps_the_rest() -> None:
    signal_N = vector([1e6, -65520.0, 65504.0, math.inf, math.nan])
    values_N = ops.take(signal_N, torch.arange(5), dtype=torch.float16, keep=True)
    assert values_N[:4].tolist() == [65504.0, -65504.0, 65504.0, math.inf]
    assert math.isnan(values_N[4])
    assert signal_N.tolist() == [1e6 - 65504, -16.0, 0.0, 0.0, 0.0]


def test_take_widens_a_narrow_signal_without_loss() -> None:
    signal_N = vector([1.5, -2.25], torch.bfloat16)
    values_K = ops.take(signal_N, torch.tensor([1]), dtype=torch.float32, keep=True)
    assert (values_K.dtype, values_K.tolist(), signal_N.tolist()) == (torch.float32, [-2.25], [1.5, 0.0])


@st.composite
def contributions(draw: st.DrawFn) -> tuple[int, list[dict[int, float]]]:
    n = draw(st.integers(1, 30))
    value = st.floats(-1e3, 1e3, width=32)
    return n, draw(st.lists(st.dictionaries(st.integers(0, n - 1), value), min_size=1, max_size=5))


@moderately
@given(contributions())
def test_scatter_mean_is_the_mean_of_dense_vectors(drawn: tuple[int, list[dict[int, float]]]) -> None:
    n, ranks = drawn
    dense = np.zeros(n, dtype=np.float32)
    for rank in ranks:
        for at, value in rank.items():
            dense[at] += np.float32(value)
    at_M = torch.tensor([at for rank in ranks for at in rank], dtype=torch.int32)
    values_M = torch.tensor([value for rank in ranks for value in rank.values()], dtype=torch.float32)
    out_N = torch.full((n,), math.nan)
    mean_N = ops.scatter_mean(values_M, at_M, [len(rank) for rank in ranks], out_N)
    assert mean_N is out_N
    assert np.array_equal(mean_N.numpy(), dense / np.float32(len(ranks)))


def test_scatter_mean_of_halves_accumulates_in_the_precision_of_the_result() -> None:
    values_M = vector([2048.0, 1.0], torch.float16)
    mean_N = ops.scatter_mean(values_M, torch.tensor([0, 0], dtype=torch.int32), [1, 1], torch.empty(1))
    assert mean_N.tolist() == [1024.5]


def test_scatter_mean_of_nothing_is_zero() -> None:
    nothing_M = torch.empty(0)
    assert ops.scatter_mean(nothing_M, nothing_M.int(), [0, 0], torch.ones(2)).tolist() == [0.0, 0.0]
    assert ops.scatter_mean(nothing_M, nothing_M.int(), [0], torch.empty(0)).tolist() == []


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_magnitude_is_recovered_from_its_bits(dtype: torch.dtype) -> None:
    for x in (0.0, 1.0, -1.5, 2.0**-20, math.inf):
        bits = int(ops.magnitude_bits(vector([x], dtype)))
        assert ops.magnitude(bits, dtype) == abs(float(vector([x], dtype)))


def test_the_least_magnitude_ignores_nan() -> None:
    some = [[2.0, -1.0, math.nan], [math.nan, -math.inf], [math.nan], []]
    assert [ops.least_magnitude(vector(x)) for x in some] == [1.0, math.inf, math.inf, 0.0]


@pytest.mark.parametrize("n", [64 * 5, 64 * 5 + 1, 64 * 6 - 1])
def test_a_sample_has_every_nth_group_of_the_signal(n: int) -> None:
    grad_N, residual_N = torch.arange(float(n)), torch.full((n,), 0.5)
    for every, first in ((1, 0), (2, 0), (2, 1), (4, 3)):
        whole = n // 32
        at_S = [32 * group + i for group in range(first, whole, every) for i in range(32)]
        assert ops.sample(grad_N, None, every=every, first=first).tolist() == at_S
        assert ops.sample(grad_N, residual_N, every=every, first=first).tolist() == [i + 0.5 for i in at_S]


def test_a_samples_threshold_is_the_largest_that_the_given_number_reach() -> None:
    sample_S = vector([5.0, -4.0, 3.0, 2.0, -1.0])
    result = [ops.threshold_from_sample(sample_S, density) for density in (0.01, 0.2, 0.21, 0.6, 1.0)]
    assert result == [5.0, 5.0, 4.0, 3.0, 1.0]
