"""The fit of latency and bandwidth finds those that made the times, and keeps what they do not explain."""

import random
from dataclasses import replace

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_calibration import BANDWIDTH, LATENCY, SIZES, TIMES, links

from sage.predict.calibration import Samples
from sage.predict.fit import Fit, fit


def of(collective: str, *, noise: float = 0.0, seed: int = 0) -> list[Samples]:
    """Times of a collective, each off by a random factor around 1."""
    draw = random.Random(seed)
    return [
        replace(each, seconds=tuple(t * draw.gauss(1, noise) for t in each.seconds * 5))
        for each in links()
        if each.collective == collective
    ]


@pytest.mark.parametrize("collective", list(TIMES))
def test_exact_times_determine_latency_and_bandwidth(collective: str) -> None:
    found = fit(of(collective), 1)
    assert found.latency == pytest.approx(LATENCY, rel=1e-9)
    assert found.seconds_per_byte == pytest.approx(1 / BANDWIDTH, rel=1e-9)
    assert found.most_ranks == 4
    assert all(abs(each) < 1e-9 for each in found.residuals.values())


def test_the_covariance_covers_the_spread_of_the_fits_of_noisy_times() -> None:
    """Over many noisy measurements, most intervals of two standard errors have the true value in them."""
    fits = [fit(of("all_reduce", noise=0.1, seed=seed), 1) for seed in range(60)]
    inside = [abs(each.seconds_per_byte - 1 / BANDWIDTH) <= 2 * each.covariance[1][1] ** 0.5 for each in fits]
    assert sum(inside) >= 50
    inside = [abs(each.latency - LATENCY) <= 2 * each.covariance[0][0] ** 0.5 for each in fits]
    assert sum(inside) >= 50


def test_draws_have_the_covariance_of_the_fit_and_begin_with_it() -> None:
    found = fit(of("all_reduce", noise=0.1), 1)
    latency_D, per_byte_D = found.draw(numpy.random.default_rng(0), 20_000)
    assert (latency_D[0], per_byte_D[0]) == (found.latency, found.seconds_per_byte)
    assert numpy.cov(latency_D, per_byte_D) == pytest.approx(numpy.array(found.covariance), rel=0.1)


def test_deviations_from_the_fitted_line_are_kept_for_each_size() -> None:
    slow = [
        replace(each, seconds=tuple(1.3 * t for t in each.seconds)) if each.bytes == SIZES[-1] else each
        for each in of("all_reduce")
    ]
    found = fit(slow, 1)
    assert found.residuals[SIZES[-1]] > max(found.residuals[size] for size in SIZES[:-1])
    for ranks, size in ((2, SIZES[-1]), (4, SIZES[-1])):
        steps, moved = 2 * (ranks - 1), 2 * (ranks - 1) / ranks * size
        fitted = steps * found.latency + moved * found.seconds_per_byte
        assert found.correction(size) * fitted == pytest.approx(
            1.3 * TIMES["all_reduce"](ranks, size), rel=0.02
        )


@settings(max_examples=60, deadline=None)
@given(
    latency=st.floats(1e-5, 1e-3),
    bandwidth=st.floats(1e6, 1e9),
    burst=st.floats(16 * 1024, 1024 * 1024),
)
def test_a_link_that_passes_a_burst_at_once_is_found_with_its_bandwidth(
    latency: float, bandwidth: float, burst: float
) -> None:
    sizes = [1024 * 4**power for power in range(9)]
    samples = [
        Samples("broadcast", "inter", 2, size, (latency + max(0.0, size - burst) / bandwidth,) * 5)
        for size in sizes
    ]
    found = fit(samples, 1)
    assert found.seconds_per_byte == pytest.approx(1 / bandwidth, rel=0.1)
    if found.burst == 0:  # what it saves is within the assumed errors of the measurements
        assert burst / bandwidth < latency
    else:
        assert burst / 2 <= found.burst <= 2 * burst


def test_noise_is_not_taken_for_a_burst() -> None:
    found = [fit(of("all_reduce", noise=0.1, seed=seed), 1) for seed in range(60)]
    assert sum(each.burst > 0 for each in found) <= 3


def test_a_correction_is_interpolated_and_flat_outside_the_measured_sizes() -> None:
    found = Fit(0.0, 1.0, ((0.0, 0.0), (0.0, 0.0)), {1000: 0.1, 100_000: 0.3}, 4)
    assert found.correction(1) == pytest.approx(1.1)
    assert found.correction(10_000) == pytest.approx(1.2)
    assert found.correction(10**9) == pytest.approx(1.3)


def test_a_residual_within_its_error_does_not_correct() -> None:
    found = Fit(0.0, 1.0, ((0.0, 0.0), (0.0, 0.0)), {1000: 0.1, 100_000: 0.5}, 4, {1000: 0.2, 100_000: 0.1})
    assert found.correction(1000) == 1
    assert found.correction(100_000) == pytest.approx(1 + 0.5 * (1 - 0.04))
    noisy = fit(of("all_reduce", noise=0.3), 1)
    assert set(noisy.errors) == set(noisy.residuals)
    assert all(abs(noisy.correction(size) - 1) <= abs(r) + 1e-12 for size, r in noisy.residuals.items())


@settings(max_examples=50)
@given(seconds=st.lists(st.floats(1e-6, 10), min_size=1, max_size=8), ranks=st.integers(2, 64))
def test_any_times_give_a_latency_and_a_bandwidth_that_are_not_negative(
    seconds: list[float], ranks: int
) -> None:
    samples = [Samples("all_gather", "inter", ranks, 4**i, (each,)) for i, each in enumerate(seconds)]
    found = fit(samples, 1)
    assert found.latency >= 0
    assert found.seconds_per_byte >= 0
    assert found.latency + found.seconds_per_byte > 0
    assert numpy.linalg.eigvalsh(numpy.array(found.covariance)).min() >= -1e-9


def test_a_fit_without_measurements_is_an_error() -> None:
    with pytest.raises(ValueError, match="no measurements to fit"):
        fit([], 1)


def test_times_of_several_ranks_per_node_give_the_link_between_nodes() -> None:
    """Two nodes of two ranks: of the ring's 6 steps, 2 cross the network; the others are known."""
    within = Fit(1e-6, 1e-10, ((0.0, 0.0), (0.0, 0.0)), {1: 0.0}, 2)
    samples = [
        Samples("all_reduce", "inter", 4, size, (2 * LATENCY + 4 * 1e-6 + 1.5 * size / BANDWIDTH,))
        for size in SIZES
    ]
    found = fit(samples, 2, within)
    assert found.latency == pytest.approx(LATENCY)
    assert found.seconds_per_byte == pytest.approx(1 / BANDWIDTH)
