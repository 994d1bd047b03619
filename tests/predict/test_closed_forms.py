"""Break-even bandwidths: closed form against root finding, and the published logs."""

import math

import pytest
from fuzz import examples
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sage.predict.break_even import HIGHEST, LOWEST
from sage.predict.break_even import break_even as by_roots
from sage.predict.closed_forms import (
    Baseline,
    Compressed,
    break_even,
    break_even_without_overlap,
    coding_budget,
    compression_needed,
    most_ranks,
)
from sage.predict.recurrence import overlap

SECONDS = st.floats(0.001, 5)

BASELINES = st.builds(
    Baseline,
    other=st.floats(0, 1),
    backward=SECONDS,
    buckets=st.integers(1, 30),
    latency=st.floats(0, 1e-3),
    volume=st.floats(1e4, 1e8),
    last_volume=st.floats(1e4, 1e8),
    gamma=st.floats(1, 1.2),
    first_ready=st.just(0.0) | st.floats(0, 0.001),
)
METHODS = st.builds(
    Compressed, coding=st.floats(0, 2), latency=st.floats(0, 1e-2), volume=st.floats(1e3, 1e9)
)


ALIKE = Baseline(0.0, 0.99999, 1, 0.000159, 1e4, 1e4), Compressed(0.0, 0.000159, 1e4)
"""A method that takes the time of the baseline but for rounding: it is nowhere faster."""


@example(baseline=ALIKE[0], method=ALIKE[1], rho=1.0)
@settings(max_examples=examples(300))
@given(baseline=BASELINES, method=METHODS, rho=st.sampled_from([1.0, 0.8, 1.5]))
def test_the_closed_form_and_the_roots_agree(baseline: Baseline, method: Compressed, rho: float) -> None:
    closed = break_even(baseline, method, rho)
    ends = [each for interval in closed for each in interval if 0 < each < math.inf]
    assume(all(10 * LOWEST < each < HIGHEST / 10 for each in ends))
    assume(all(high > 1.5 * low for low, high in closed))
    assume(len(ends) < 2 or ends[-1] > 1.5 * ends[0])
    assert len(closed) <= 2
    found = by_roots(lambda b: (baseline.seconds(1 / b), rho * method.seconds(baseline, 1 / b)))
    inside = [(low, high) for low, high in found if high > 10 * LOWEST and low < HIGHEST / 10]
    assert len(inside) == len(closed)
    for (low, high), (expected_low, expected_high) in zip(inside, closed, strict=True):
        assert low == pytest.approx(expected_low, rel=1e-4, abs=10 * LOWEST)
        assert high == pytest.approx(expected_high, rel=1e-4)


@settings(max_examples=examples(200))
@given(baseline=BASELINES, method=METHODS, x=st.floats(1e-12, 1e-4))
def test_the_method_is_faster_exactly_within_the_intervals(
    baseline: Baseline, method: Compressed, x: float
) -> None:
    gain = baseline.seconds(x) - method.seconds(baseline, x)
    assume(abs(gain) > 1e-8 * baseline.seconds(x))
    assert (gain > 0) == any(low < 1 / x < high for low, high in break_even(baseline, method))


@settings(max_examples=examples(200))
@given(baseline=BASELINES, method=METHODS)
def test_the_slow_side_is_the_formula_of_the_two_terms(baseline: Baseline, method: Compressed) -> None:
    """B* = (r·S0 − v_M)/(t_b + t_ed + L_M − t_1 − k·A), if it lies beyond the knee."""
    saved = baseline.total_volume - method.volume
    cost = baseline.backward + method.coding + method.latency
    cost -= baseline.first_ready + baseline.buckets * baseline.latency
    whole = baseline.other + baseline.backward
    assume(saved > 0.01 * baseline.total_volume and cost > 0.01 * whole and baseline.buckets > 1)
    assume(cost / saved > max(baseline.knee, 0) * (1 + 1e-6))
    assert list(break_even(baseline, method)[0]) == pytest.approx([0, saved / cost])


@settings(max_examples=examples(200))
@given(
    k=st.integers(1, 20),
    each=st.floats(0.001, 1),
    gamma=st.floats(1, 1.2),
    latency=st.floats(0, 0.1),
    volume=st.floats(1e4, 1e8),
    x=st.floats(1e-10, 1e-6),
)
def test_with_equal_buckets_the_baseline_takes_the_time_of_the_recurrence(
    k: int, each: float, gamma: float, latency: float, volume: float, x: float
) -> None:
    baseline = Baseline(0.1, k * each, k, latency, volume, volume, gamma, first_ready=each)
    comm = latency + volume * x
    found = overlap([each * (i + 1) for i in range(k)], [comm] * k, k * each, gamma=gamma)
    assert baseline.seconds(x) == pytest.approx(0.1 + float(found.seconds))


def test_a_method_that_misses_the_target_never_pays_and_one_in_fewer_steps_pays_further() -> None:
    baseline = Baseline(0.1, 0.2, 5, 1e-4, 8e6, 8e6)
    method = Compressed(0.05, 1e-3, 1e6)
    assert break_even(baseline, method, math.inf) == ()
    ends = [break_even(baseline, method, rho)[0][1] for rho in (1.5, 1.0, 0.9)]
    assert ends == sorted(ends)


LOGGED = {
    "ResNet-18 on CIFAR-10": (0.1315 - 0.00725, 7.16e5, 4.3e9),
    "LSTM on WikiText-2": (0.340 + 0.0033, 1.85e6, 4.0e9),
}
"""What the authors of SAGE logged for top-k at density 0.001 on 4 ranks (kljp/topk_results, commit 4d5937c).

Seconds of the reduction without its gather, or of selecting and combining; bits that a rank sends; and the
break-even that follows, in bits per second.
"""


@pytest.mark.parametrize("task", list(LOGGED))
def test_the_logs_of_the_authors_of_sage_give_their_break_even(task: str) -> None:
    """Against their un-overlapped float32 all-reduce; their link had 29 to 35 Gbit/s."""
    coding, bits, expected = LOGGED[task]
    numel = bits / 64 / 0.001  # a value and an index of 32 bits for each element that is sent
    dense = Baseline(0.0, 0.1, 1, 0.0, 0.0, 1.5 * 4 * numel)
    method = Compressed(coding, 0.0, 3 * bits / 8)
    closed = 8 * break_even_without_overlap(dense, method)
    assert closed == pytest.approx(expected, abs=0.05e9)
    ((_, root),) = by_roots(lambda b: (dense.seconds_without_overlap(1 / b), method.seconds(dense, 1 / b)))
    assert 8 * root == pytest.approx(closed, rel=1e-5)


def test_the_ceiling_of_gathers_is_where_their_bytes_exceed_the_all_reduce() -> None:
    numel = 1_000_000
    for density, ceiling in ((0.01, 50), (0.001, 500)):
        contributed = 8 * density * numel
        assert most_ranks(2 * numel, contributed) == pytest.approx(ceiling)
        for ranks, more in ((ceiling - 1, False), (ceiling + 1, True)):
            gathered, reduced = (ranks - 1) * contributed, 2 * (ranks - 1) / ranks * 2 * numel
            assert (gathered > reduced) is more
    assert most_ranks(2 * numel, numel / 8) == 32
    assert most_ranks(4 * numel, numel / 8) == 64


@settings(max_examples=examples(100))
@given(baseline=BASELINES, method=METHODS, x=st.floats(1e-12, 1e-6))
def test_a_method_at_its_coding_budget_takes_the_time_of_the_baseline(
    baseline: Baseline, method: Compressed, x: float
) -> None:
    budget = coding_budget(baseline, method, x)
    at_budget = Compressed(budget, method.latency, method.volume)
    assert at_budget.seconds(baseline, x) == pytest.approx(baseline.seconds(x))


def test_the_compression_that_is_needed_hides_all_but_the_last_bucket() -> None:
    baseline = Baseline(0.1, 0.2, 5, 1e-4, 8e6, 8e6)
    x = 1e-7
    needed = compression_needed(baseline, x)
    shrunk = Baseline(0.1, 0.2, 5, 1e-4, 8e6 / needed, 8e6)
    assert shrunk.seconds(x) == pytest.approx(0.1 + 0.2 + 1e-4 + 0.8)
    assert compression_needed(Baseline(0, 1e-5, 5, 1e-4, 8e6, 8e6), x) == math.inf
