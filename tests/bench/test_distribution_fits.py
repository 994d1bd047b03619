"""Tests of the fitted families: they recover the parameters of samples, and agree with scipy's own fits."""
# N = elements of a sample

from collections.abc import Callable

import numpy
import pytest
import torch
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Generator, default_rng
from scipy import stats

from sage.bench.distribution.families import FAMILIES, SIDCO, Array, Estimator, Fitted, fit
from sage.bench.distribution.measure import SHARES, WHOLE, WITHOUT, Row, ks_distance, measured
from sage.bench.distribution.pareto import likeliest_pareto

seeds = st.integers(0, 2**32)
scales = st.floats(-20, 3).map(lambda exponent: 10.0**exponent)
trial = settings(max_examples=examples(15), deadline=None, database=None)


def drawn(of: Fitted, num: int, rng: Generator) -> Array:
    """A sample of a family, by numpy's and scipy's generators."""
    if of.family == "normal":
        return rng.normal(of.location, of.scale, num)
    if of.family == "Laplace":
        return rng.laplace(of.location, of.scale, num)
    magnitudes: dict[str, Callable[[], Array]] = {
        "double exponential": lambda: rng.exponential(of.scale, num),
        "double gamma": lambda: rng.gamma(of.shape, of.scale, num),
        "double generalised Pareto": lambda: pareto(of.shape, of.scale, num, rng),
    }
    return magnitudes[of.family]() * rng.choice([-1.0, 1.0], num)


def pareto(shape: float, scale: float, num: int, rng: Generator) -> Array:
    return numpy.asarray(stats.genpareto.rvs(shape, scale=scale, size=num, random_state=rng))


def fitted(family: str, x_N: Array, how: Estimator = "mle") -> Fitted:
    found = fit(family, x_N, how)
    assert found is not None
    return found


def check(of: Fitted, seed: int, how: Estimator = "mle", rel: float = 0.1) -> None:
    """Check that the parameters are recovered from 20,000 elements, to six standard errors or more."""
    found = fitted(of.family, drawn(of, 20_000, default_rng(seed)), how)
    assert found.scale == pytest.approx(of.scale, rel=rel)
    assert found.location == pytest.approx(of.location, abs=0.05 * of.scale)
    if of.family in SIDCO[1:]:
        assert found.shape == pytest.approx(of.shape, rel=rel, abs=0.08)
    else:
        assert numpy.isnan(found.shape)


@pytest.mark.fuzz
@trial
@given(seed=seeds, scale=scales, location=st.floats(-2, 2))
@pytest.mark.parametrize("family", ["normal", "Laplace"])
def test_a_located_family_recovers_its_parameters(
    family: str, seed: int, scale: float, location: float
) -> None:
    check(Fitted(family, scale, location * scale), seed)


@pytest.mark.fuzz
@trial
@given(seed=seeds, scale=scales)
def test_the_double_exponential_recovers_its_scale(seed: int, scale: float) -> None:
    check(Fitted("double exponential", scale), seed)


@pytest.mark.fuzz
@trial
@given(seed=seeds, scale=scales, shape=st.floats(0.2, 5))
def test_the_double_gamma_recovers_its_parameters(seed: int, scale: float, shape: float) -> None:
    check(Fitted("double gamma", scale, shape=shape), seed)
    check(
        Fitted("double gamma", scale, shape=shape), seed, "sidco", rel=0.11
    )  # an approximation within 1.5 %


@pytest.mark.fuzz
@trial
@given(seed=seeds, scale=scales, shape=st.floats(-0.4, 2))
def test_the_double_generalised_pareto_recovers_its_parameters(seed: int, scale: float, shape: float) -> None:
    of = Fitted("double generalised Pareto", scale, shape=shape)
    check(of, seed)
    if shape < 0.1:  # the variance of the moments needs a finite fourth moment: c < ¼
        check(of, seed, "sidco", rel=0.15)


def test_the_estimates_are_those_of_scipy() -> None:
    rng = default_rng(0)
    x_N = drawn(Fitted("double gamma", 2.0, shape=0.5), 3000, rng) + 0.1
    m_N = numpy.abs(x_N)
    assert (fitted("normal", x_N).location, fitted("normal", x_N).scale) == pytest.approx(stats.norm.fit(x_N))
    laplace = fitted("Laplace", x_N)
    assert (laplace.location, laplace.scale) == pytest.approx(stats.laplace.fit(x_N))
    assert fitted("double exponential", x_N).scale == pytest.approx(stats.expon.fit(m_N, floc=0)[1])
    shape, _, scale = stats.gamma.fit(m_N, floc=0)
    gamma = fitted("double gamma", x_N)
    assert (gamma.shape, gamma.scale) == pytest.approx((shape, scale), rel=1e-6)


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.4, 1.5])
def test_the_pareto_likelihood_is_at_least_that_of_scipys_fit(shape: float) -> None:
    m_N = pareto(shape, 3.0, 2000, default_rng(1))
    c, _, scale = stats.genpareto.fit(m_N, floc=0)
    ours, ours_scale = likeliest_pareto(m_N)
    assert stats.genpareto.nnlf((ours, 0, ours_scale), m_N) <= stats.genpareto.nnlf((c, 0, scale), m_N) + 1e-3
    assert (ours, ours_scale) == pytest.approx((c, scale), abs=0.01)


REFERENCE: dict[str, tuple[Fitted, Callable[[Array], Array]]] = {
    "normal": (
        Fitted("normal", 2.0, -1.0),
        lambda t: stats.norm.sf(t, -1, 2) + stats.norm.cdf(-t, -1, 2),
    ),
    "Laplace": (
        Fitted("Laplace", 2.0, 1.0),
        lambda t: stats.laplace.sf(t, 1, 2) + stats.laplace.cdf(-t, 1, 2),
    ),
    "double exponential": (Fitted("double exponential", 2.0), lambda t: stats.expon.sf(t, scale=2)),
    "double gamma": (Fitted("double gamma", 2.0, shape=0.3), lambda t: stats.gamma.sf(t, 0.3, scale=2)),
    "double generalised Pareto": (
        Fitted("double generalised Pareto", 2.0, shape=0.6),
        lambda t: stats.genpareto.sf(t, 0.6, scale=2),
    ),
    "double generalised Pareto, bounded": (
        Fitted("double generalised Pareto", 2.0, shape=-0.5),
        lambda t: stats.genpareto.sf(t, -0.5, scale=2),
    ),
    "double generalised Pareto, exponential": (
        Fitted("double generalised Pareto", 2.0, shape=0.0),
        lambda t: stats.expon.sf(t, scale=2),
    ),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_tails_and_quantiles_are_those_of_scipy(name: str) -> None:
    of, reference = REFERENCE[name]
    t = numpy.array([0.0, 1e-6, 0.5, 1.0, 3.9, 20.0, 80.0])
    assert of.above(t) == pytest.approx(reference(t), rel=1e-9)
    share = numpy.array([0.999, 0.5, 0.1, 1e-3, 1e-6])
    assert reference(of.exceeded(share)) == pytest.approx(share, rel=1e-6)


SAMPLES = [
    Fitted("normal", 1e-6, 2e-7),
    Fitted("Laplace", 1e-3, 5e-4),
    Fitted("double exponential", 1e-9),
    Fitted("double gamma", 1.0, shape=0.4),
    Fitted("double generalised Pareto", 1e-4, shape=0.7),
]


def row(x_N: Array, *, sample: int = 2**16, how: Estimator = "mle", seed: int = 0) -> Row:
    part_N = torch.from_numpy(x_N)
    return measured(part_N, "t", 0, WITHOUT, WHOLE, sample=sample, seed=seed, how=how)


@pytest.mark.parametrize("of", SAMPLES, ids=lambda of: of.family)
def test_the_closest_family_of_a_sample_is_its_own_and_its_distance_within_the_error(of: Fitted) -> None:
    found = row(drawn(of, 50_000, default_rng(3)))
    assert found.best == of.family
    assert found.fits[of.family].ks <= found.error
    assert min(ratio for ratio in found.fits[of.family].selected) > 0.6
    assert max(ratio for ratio in found.fits[of.family].selected) < 1.4


@pytest.mark.parametrize("of", SAMPLES, ids=lambda of: of.family)
def test_the_ks_distance_is_that_of_scipy(of: Fitted) -> None:
    x_N = drawn(of, 500, default_rng(4))
    found = fitted("double gamma", x_N)
    sorted_N = numpy.sort(numpy.abs(x_N))
    expected = stats.kstest(sorted_N, lambda t: 1 - found.above(t)).statistic
    assert ks_distance(found, sorted_N) == pytest.approx(expected)


def test_a_small_sample_cannot_tell_families_apart() -> None:
    found = row(drawn(SAMPLES[0], 20, default_rng(0)))
    assert found.best == ""
    assert set(found.closest) == set(FAMILIES)
    assert found.error == pytest.approx(1.358 / numpy.sqrt(20), rel=1e-3)


def test_the_sampling_error_covers_the_distance_of_the_true_distribution_in_95_of_100_samples() -> None:
    of = Fitted("double exponential", 1.0)
    rng = default_rng(0)
    distances = [ks_distance(of, numpy.sort(numpy.abs(drawn(of, 300, rng)))) for _ in range(400)]
    covered = numpy.mean(numpy.array(distances) <= 1.358 / numpy.sqrt(300))
    assert 0.925 <= covered <= 0.985


def test_zeros_are_left_out_and_their_share_is_stated() -> None:
    x_N = drawn(SAMPLES[3], 4000, default_rng(0))
    with_zeros = row(numpy.concatenate([x_N, numpy.zeros(6000)]))
    without = row(x_N)
    assert with_zeros.zeros == pytest.approx(0.6)
    assert without.zeros == 0
    assert (with_zeros.elements, with_zeros.used) == (10_000, 4000)
    assert with_zeros.fits == without.fits
    assert with_zeros.positive == pytest.approx(float((x_N > 0).mean()))


def test_a_larger_vector_is_sampled_by_the_seed() -> None:
    x_N = drawn(SAMPLES[2], 5000, default_rng(0))
    first, again, other = (row(x_N, sample=1000, seed=seed) for seed in (1, 1, 2))
    assert (first.elements, first.used) == (5000, 1000)
    assert first.fits == again.fits
    assert first.fits != other.fits


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [2.0], [0.5, -0.5, 0.5, 0.0], [1.0, -1.0 - 1e-15]])
def test_a_part_without_a_spread_has_no_fit(values: list[float]) -> None:
    found = row(numpy.array([*values, 0.0]))
    assert (found.fits, found.best, found.curve) == ({}, "", None)
    assert found.elements == len(values) + 1


def test_the_energy_is_the_share_of_the_squared_norm_in_the_largest_elements() -> None:
    found = row(numpy.array([1.0] * 990 + [-10.0] * 10))
    assert dict(zip(SHARES, found.energy, strict=True))[0.01] == pytest.approx(1000 / 1990)
    normal, exponential = (
        row(drawn(of, 60_000, default_rng(0))) for of in (Fitted("normal", 1.0), SAMPLES[2])
    )
    assert normal.energy[SHARES.index(0.01)] == pytest.approx(0.0845, rel=0.05)
    assert exponential.energy[SHARES.index(0.01)] == pytest.approx(0.1621, rel=0.05)


def test_a_threshold_of_the_normal_selects_too_few_elements_of_a_heavy_tail() -> None:
    """k̂/k of a one-stage threshold, counted by hand."""
    x_N = drawn(SAMPLES[4], 20_000, default_rng(1))
    found = row(x_N)
    for i, share in enumerate(SHARES):
        of = found.fits["double exponential"]
        threshold = -numpy.abs(x_N).mean() * numpy.log(share)
        assert of.selected[i] == pytest.approx((numpy.abs(x_N) > threshold).mean() / share)
    assert found.fits["double exponential"].selected[2] > 3


@settings(max_examples=examples(60), deadline=None, database=None)
@given(
    values=st.lists(st.floats(1e-30, 1e30) | st.sampled_from([1.0, 2.0]), min_size=1, max_size=30),
    how=st.sampled_from(["mle", "sidco"]),
)
def test_any_small_sample_has_finite_fits_or_none(values: list[float], how: Estimator) -> None:
    found = row(numpy.array(values), how=how)
    for each in found.fits.values():
        assert numpy.isfinite([each.fitted.scale, each.ks, *each.selected]).all()
        assert 0 <= each.ks <= 1
