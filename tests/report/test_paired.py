"""Paired ratios keep their invariants, and their intervals cover as often as they say."""

import math

import numpy
import pytest
from fuzz import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from sage.report.paired_ratio import PairedRatio, paired_ratio

VALUES = st.floats(1e-3, 1e3)
OR_MISSED = VALUES | st.just(math.inf)


def sides(values: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[dict[int, float], dict[int, float]]]:
    side = st.dictionaries(st.integers(0, 9), values, min_size=1)
    return st.tuples(side, side)


def inverse(value: float) -> float:
    return math.inf if value == 0 else 1 / value


@settings(max_examples=examples(100))
@given(sides(OR_MISSED))
def test_swapping_the_sides_inverts_the_ratio_and_its_interval(
    given_sides: tuple[dict[int, float], dict[int, float]],
) -> None:
    a, b = given_sides
    there, back = paired_ratio(a, b), paired_ratio(b, a)
    assert (there.num, there.num_undefined, there.strength) == (back.num, back.num_undefined, back.strength)
    assert there.centre == pytest.approx(inverse(back.centre), rel=1e-9, nan_ok=True)
    if there.interval is None:
        assert back.interval is None
        return
    assert back.interval is not None
    low, high = back.interval
    assert there.interval == pytest.approx((inverse(high), inverse(low)), rel=1e-6)
    assert there.interval[0] <= there.interval[1]


@settings(max_examples=examples(100))
@given(sides(OR_MISSED), st.floats(0.1, 10))
def test_scaling_one_side_scales_the_ratio_and_its_interval(
    given_sides: tuple[dict[int, float], dict[int, float]], factor: float
) -> None:
    a, b = given_sides
    plain = paired_ratio(a, b)
    scaled = paired_ratio({seed: factor * value for seed, value in a.items()}, b)
    assert scaled.centre == pytest.approx(factor * plain.centre, rel=1e-9, nan_ok=True)
    if plain.interval is not None:
        assert scaled.interval == pytest.approx([factor * end for end in plain.interval], rel=1e-6)


@settings(max_examples=examples(100))
@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=10))
def test_the_interval_of_finite_ratios_is_that_of_the_paired_t_test(
    values: list[tuple[float, float]],
) -> None:
    above, below = zip(*values, strict=True)
    differences = numpy.log(above) - numpy.log(below)
    assume(differences.std() > 1e-3)
    found = paired_ratio(dict(enumerate(above)), dict(enumerate(below)))
    expected = stats.ttest_rel(numpy.log(above), numpy.log(below)).confidence_interval()
    assert found.interval is not None
    assert math.log(found.centre) == pytest.approx(differences.mean(), abs=1e-9)
    width = expected.high - expected.low
    assume(expected.high < 600)
    assert math.log(found.interval[1]) == pytest.approx(expected.high, abs=1e-3 * width)
    if expected.low > -600:
        assert math.log(found.interval[0]) == pytest.approx(expected.low, abs=1e-3 * width)


@pytest.mark.parametrize("pairs", [3, 6])
def test_the_t_interval_covers_the_ratio_in_95_of_100_draws(pairs: int) -> None:
    draws = 4000
    random = numpy.random.default_rng(14)
    true = 0.8
    logs = math.log(true) + 0.3 * random.standard_normal((draws, pairs))
    covered = 0
    for row in logs:
        interval = PairedRatio(dict(enumerate(numpy.exp(row).tolist()))).interval
        assert interval is not None
        covered += interval[0] <= true <= interval[1]
    # Three standard deviations of the count.
    assert abs(covered / draws - 0.95) < 3 * math.sqrt(0.95 * 0.05 / draws)


@pytest.mark.parametrize("pairs", [3, 6])
def test_the_range_covers_the_median_as_often_as_its_formula_states(pairs: int) -> None:
    draws = 4000
    random = numpy.random.default_rng(15)
    # Ratios of which 30 % are infinite; their median is that of the finite ones' 5/7 quantile.
    values = numpy.exp(random.standard_normal((draws, pairs)))
    values[random.random((draws, pairs)) < 0.3] = math.inf
    median = math.exp(stats.norm.ppf(0.5 / 0.7))
    covered = ((values.min(axis=1) <= median) & (median <= values.max(axis=1))).mean()
    expected = 1 - 2 ** (1 - pairs)
    assert abs(covered - expected) < 3 * math.sqrt(expected * (1 - expected) / draws)
    missed = next(row for row in values if numpy.isinf(row).any())
    found = PairedRatio(dict(enumerate(missed.tolist())))
    assert found.interval == (missed.min(), math.inf)
    assert found.how == f"[min, max], {pairs} pairs"


def test_the_strength_follows_from_the_number_of_pairs() -> None:
    def strength(pairs: int) -> str:
        return PairedRatio(dict.fromkeys(range(pairs), 1.0)).strength

    assert [strength(pairs) for pairs in (0, 2, 3, 5, 6, 20)] == [
        "too few", "too few", "smoke", "smoke", "claim", "claim"
    ]  # fmt: skip


def test_a_pair_in_which_both_miss_has_no_ratio_and_is_counted() -> None:
    missed = math.inf
    found = paired_ratio({0: missed, 1: missed, 2: 3.0}, {0: missed, 1: 2.0, 2: 2.0, 7: 1.0})
    assert (found.ratios, found.num_undefined) == ({1: missed, 2: 1.5}, 1)
    assert (found.centre, found.interval) == (missed, (1.5, missed))
    assert paired_ratio({0: 1.0}, {0: missed}).ratios == {0: 0.0}


def test_without_pairs_there_is_neither_a_ratio_nor_an_interval() -> None:
    found = paired_ratio({0: 1.0}, {1: 1.0})
    assert math.isnan(found.centre)
    assert (found.interval, found.how) == (None, "no pairs")
    alone = paired_ratio({0: 3.0}, {0: 2.0})
    assert (alone.centre, alone.interval, alone.how) == (1.5, None, "no interval: one pair")


def test_the_median_of_as_many_misses_on_either_side_is_not_a_number() -> None:
    found = paired_ratio({0: math.inf, 1: 1.0}, {0: 1.0, 1: math.inf})
    assert math.isnan(found.centre)
    assert found.interval == (0.0, math.inf)
