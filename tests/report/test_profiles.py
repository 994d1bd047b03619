"""A performance profile is the distribution function of the ratios to the reference."""

import math

import numpy
import pytest
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.report.time_to_target.profiles import MAX_TAU, profile

RATIOS = st.lists(st.floats(0.01, 10) | st.just(math.inf), min_size=1, max_size=12)


@settings(max_examples=examples(100))
@given(RATIOS, st.floats(0.01, MAX_TAU))
def test_it_is_the_share_of_ratios_up_to_tau(ratios: list[float], tau: float) -> None:
    assert profile(ratios)(tau) == sum(ratio <= tau for ratio in ratios) / len(ratios)


@settings(max_examples=examples(100))
@given(RATIOS)
def test_it_rises_and_its_score_is_its_mean_from_1_to_the_largest_tau(ratios: list[float]) -> None:
    found = profile(ratios)
    assert list(found.taus) == sorted(set(found.taus))
    assert list(found.shares) == sorted(found.shares)
    # The integral of a share 1[r <= τ] from 1 to 4 is 4 - max(r, 1) where that is positive.
    parts = [max(0.0, MAX_TAU - max(ratio, 1.0)) for ratio in ratios]
    assert found.score == pytest.approx(numpy.mean(parts) / (MAX_TAU - 1))


def test_the_profile_of_the_reference_itself_is_one_step_at_1() -> None:
    found = profile([1.0, 1.0, 1.0])
    assert (found.taus, found.shares, found.score) == ((1.0,), (1.0,), 1.0)


def test_a_method_that_solves_nothing_within_the_largest_tau_has_the_score_0() -> None:
    found = profile([math.inf, 4.1])
    assert (found.taus, found(MAX_TAU), found.score) == ((), 0.0, 0.0)


def test_a_profile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one ratio"):
        profile([])
