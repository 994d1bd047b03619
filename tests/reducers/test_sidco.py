"""Tests of SIDCo: fits against SciPy's distributions, stages, and the rules that adapt their number."""
# N = elements of the vector

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from torch import Tensor

from sage.comm.wire import Wire
from sage.reducers._signal import Signal
from sage.reducers.sidco import EVERY, SIDCo, gamma_tail, shares, tail
from sage.reduction.layout import Layout

FITS = ("E", "GP", "P")


def bound(n: int, **options: Any) -> SIDCo:
    reducer = SIDCo(**options)
    reducer.bind(Layout.of([("w", (n,))]))
    return reducer


def count(reducer: SIDCo, signal_N: Tensor) -> int:
    return reducer.select(signal_N, Wire(0, 1)).numel()


# Fits.


def test_the_exponential_tail_needs_only_the_mean() -> None:
    from scipy import stats  # takes a second, which every worker would spend at collection

    assert tail(2.0, 8.0, 0.01, pareto=False) == pytest.approx(stats.expon.isf(0.01, scale=2.0))


@pytest.mark.parametrize("shape", [-0.4, -0.1, 0.0, 1e-9, 0.2, 0.45])
@pytest.mark.parametrize("share", [0.25, 0.001])
def test_the_pareto_tail_is_that_of_the_distribution_with_these_moments(shape: float, share: float) -> None:
    from scipy import stats

    mean, variance = stats.genpareto.stats(shape, scale=3.0, moments="mv")
    expected = stats.genpareto.isf(share, shape, scale=3.0)
    assert tail(float(mean), float(variance + mean**2), share, pareto=True) == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("shape", [0.3, 0.7, 1.0, 5.0])
def test_the_gamma_tail_is_that_of_the_distribution_with_these_moments(shape: float) -> None:
    from scipy import stats

    # The estimate of the shape is within 1.5 % of the likeliest (Minka, 2002).
    mean, log = 3.0 * shape, math.log(3.0) + float(special.digamma(shape))
    exact = gamma_tail(mean, log, 0.01, exact=True)
    assert exact == pytest.approx(stats.gamma.isf(0.01, shape, scale=3.0), rel=0.02)
    # The closed form omits the tail's factor x^(α−1): it is equal only at α = 1.
    closed = gamma_tail(mean, log, 0.01, exact=False)
    assert closed == pytest.approx(-3.0 * (math.log(0.01) + math.lgamma(shape)), rel=0.03)
    assert (closed == pytest.approx(exact, rel=0.01)) == (shape == 1.0)


def test_a_distribution_without_width_has_no_tail() -> None:
    for mean, square in ((1.0, 1.0), (1.0, 1.0 - 1e-9), (0.0, 0.0), (math.inf, math.inf), (math.nan, 1.0)):
        assert all(math.isnan(tail(mean, square, 0.1, pareto=pareto)) for pareto in (False, True))
    for mean, log in (
        (2.0, math.log(2.0)),
        (0.0, -math.inf),
        (math.inf, 1.0),
        (math.nan, 0.0),
        (1.0, -math.inf),
    ):
        assert all(math.isnan(gamma_tail(mean, log, 0.1, exact=exact)) for exact in (False, True))


# Stages.

LAPLACE = torch.empty(100_000).exponential_(generator=torch.Generator().manual_seed(0))
LAPLACE *= torch.rand(100_000, generator=torch.Generator().manual_seed(1)).sub(0.5).sign()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("stages", [0, 1, 2, 3, 5])
def test_an_exponential_distribution_is_exponential_above_any_threshold(fit: Any, stages: int) -> None:
    reducer = bound(100_000, density=0.01, fit=fit, stages=stages)
    assert count(reducer, LAPLACE) == pytest.approx(1000, rel=0.1)
    # 0.25⁴ is below a hundredth, 0.25³ is not.
    assert reducer.report()["stages"] == (stages or 4)


def test_two_stages_equal_the_result_computed_by_hand() -> None:
    # Mean 5.5, share 0.25: λ₁ = 7.62 leaves 8, 9 and 10. Less 8 they are 0, 1, 2: mean 1, share 0.1/0.25, so
    # that λ = 8 + ln 2.5 = 8.92. One stage goes to 5.5·ln 10 = 12.7, which nothing exceeds.
    signal_N = torch.tensor([1.0, -2, 3, -4, 5, -6, 7, -8, 9, -10])
    two, one = (bound(10, density=0.1, stages=stages) for stages in (2, 1))
    assert two.select(signal_N, Wire(0, 1)).tolist() == [8, 9]
    assert two.report()["threshold"] == pytest.approx(8 + math.log(2.5))
    assert one.select(signal_N, Wire(0, 1)).tolist() == [9]


def test_from_a_density_of_a_quarter_on_there_is_one_stage() -> None:
    reducer = bound(100_000, density=0.3, stages=3)
    assert count(reducer, LAPLACE) == pytest.approx(30_000, rel=0.05)
    assert reducer.report()["stages"] == 1


@pytest.mark.parametrize("fit", FITS)
def test_zeros_are_left_out_of_the_fit(fit: Any) -> None:
    mostly_N = torch.cat((LAPLACE, torch.zeros(900_000)))
    with_zeros = bound(1_000_000, density=0.001, fit=fit, stages=1)
    without = bound(100_000, density=0.01, fit=fit, stages=1)
    assert count(with_zeros, mostly_N) == count(without, LAPLACE)
    # If fewer than the target are not zero, they are sent together with zeros.
    assert count(bound(1_000_000, density=0.2, fit=fit), mostly_N) == 200_000


@settings(max_examples=examples(100), deadline=None)
@given(st.floats(1e-6, 0.24), st.floats(0.05, 0.5), st.integers(1, 20), st.booleans())
def test_the_product_of_the_shares_of_all_stages_is_the_density(
    d: float, first: float, stages: int, even: bool
) -> None:
    found = shares(d, first, stages, even=even)
    assert len(found) == stages
    assert math.prod(found) == pytest.approx(d)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("stages", [1, 6])
@pytest.mark.parametrize("density", [0.001, 0.1, 0.6])
def test_no_gradient_raises_an_error(fit: Any, stages: int, density: float) -> None:
    dice = torch.Generator().manual_seed(0)
    noise_N = torch.randn(200, generator=dice)
    spike_N = torch.zeros(200).index_fill_(0, torch.tensor([7]), 5.0)
    odd = [
        *(noise_N * scale for scale in (1e-44, 1e-30, 1e30, 1e37)),
        noise_N * (torch.rand(200, generator=dice) < 0.3),
        noise_N.masked_fill(torch.arange(200) == 7, math.nan),
        noise_N.masked_fill(torch.arange(200) == 7, -math.inf),
        noise_N.sign(),
        1 + noise_N * 1e-7,
        spike_N,
        spike_N + 1e-3,
    ]
    for quantile in ("exact", "closed"):
        for signal_N in odd:
            for n in (1, 3, 9, 200):
                reducer = bound(n, density=density, fit=fit, stages=stages, quantile=quantile)
                at_K = reducer.select(signal_N[:n], Wire(0, 1))
                assert 1 <= at_K.numel() <= n
                lost = (~signal_N[:n].isfinite()).nonzero().view(-1).tolist()
                assert set(lost) <= set(at_K.tolist())


# Adaptation. The density is 0.1: there are 1 to 4 stages.


class SelectsGivenNumber(SIDCo):
    """Selects k̂ elements, whatever it fits."""

    wanted = 0

    def estimate(self, signal: Signal, counts: Sequence[int]) -> list[float | None]:
        super().estimate(signal, counts)
        return [float(signal.of(0).abs().kthvalue(signal.sizes[0] - self.wanted + 1).values)]


def stages_after(ratios: list[float], **options: Any) -> list[int]:
    """M after each adaptation, for the given k̂/k between them."""
    reducer = SelectsGivenNumber(density=0.1, **options)
    reducer.bind(Layout.of([("w", (100,))]))
    found = []
    for ratio in ratios:
        reducer.wanted = round(10 * ratio)
        for _ in range(EVERY):
            assert count(reducer, torch.arange(1.0, 101.0)) == reducer.wanted
        found.append(int(reducer.stages_G))
    return found


def test_the_papers_rule_adds_a_stage_if_too_few_are_sent_and_stays_at_one() -> None:
    assert stages_after([0.5, 0.5, 0.8, 1.2, 0.7, 0.5], adapt="paper") == [2, 3, 3, 3, 4, 4]
    assert stages_after([0.5, 1.5, 1.5, 9.0], adapt="paper") == [2, 1, 1, 1]


def test_flipping_reverses_if_the_error_has_grown_and_at_the_ends() -> None:
    # Up at first. Off by .5, .4, .6 (more: down), .3, none (it stays), .5 (more: up).
    assert stages_after([1.5, 1.4, 1.6, 1.3, 1.0, 1.5], adapt="flip") == [2, 3, 2, 1, 1, 2]
    # Less and less off: up, until there is no further up.
    assert stages_after([3.0, 2.0, 1.5, 1.4, 1.3, 1.3], adapt="flip") == [2, 3, 4, 3, 2, 1]
    assert stages_after([0.5, 0.5, 1.5, 0.7, 0.6], adapt="flip") == [2, 3, 4, 3, 4]


def test_the_third_rule_of_the_released_code_is_the_sign_of_the_error_unless_it_has_not_moved_back() -> None:
    # Too few, too few but moved back, too many but moved back; it stays at the end of the range.
    assert stages_after([0.5, 0.7, 1.5], adapt="return") == [2, 3, 2]
    assert stages_after([2.0, 1.5], adapt="return") == [1, 1]
    # Not moved back from outside the band: the other way, for one move.
    assert stages_after([0.5, 0.5, 1.5, 0.7, 0.6], adapt="return") == [2, 1, 1, 2, 1]
    assert stages_after([0.5, 1.0, 1.5, 1.4], adapt="return") == [2, 2, 3, 2]


def test_the_second_rule_of_the_released_code_is_the_sign_of_the_error_unless_that_has_grown() -> None:
    assert stages_after([0.5, 0.7, 1.5], adapt="worse") == [2, 3, 4]
    assert stages_after([2.0, 1.5], adapt="worse") == [1, 1]
    assert stages_after([0.5, 0.4, 0.4, 1.3], adapt="worse") == [2, 1, 2, 1]


def test_without_a_number_of_stages_each_leaves_a_quarter_and_the_last_one_the_rest() -> None:
    assert shares(0.05, 0.25, 3, even=False) == pytest.approx([0.25, 0.25, 0.8])
    assert shares(0.05, 0.25, 3, even=True) == pytest.approx([0.25, 0.2**0.5, 0.2**0.5])
    assert shares(0.05, 0.25, 1, even=True) == [0.05]
    # The second stage's λ leaves a quarter of a quarter of an exponential vector, the third 0.8 of that.
    reducer = bound(100_000, density=0.05, stages=0)
    assert count(reducer, LAPLACE) == pytest.approx(5000, rel=0.05)
    assert reducer.report()["stages"] == 3
    assert bound(100_000, density=1 / 16, stages=0)._num_stages(0, 1 / 16, 0.25) == 2


def test_the_first_share_moves_against_the_error_within_its_range() -> None:
    def first_after(ratios: list[float]) -> float:
        reducer = SelectsGivenNumber(density=0.1, adjust_first=True)
        reducer.bind(Layout.of([("w", (100,))]))
        for ratio in ratios:
            reducer.wanted = round(10 * ratio)
            for _ in range(EVERY):
                count(reducer, torch.arange(1.0, 101.0))
        return float(reducer.first_G)

    assert first_after([0.5]) == pytest.approx(0.3)
    assert first_after([2.0, 1.1, 2.0]) == pytest.approx(0.15)
    assert first_after([0.5] * 7) == pytest.approx(0.5)
    assert first_after([2.0] * 7) == pytest.approx(0.05)


def test_every_group_adapts_separately() -> None:
    # Evenly spread, the first ends far below its exponential quantile; the second is exponential.
    signal_N = torch.cat((torch.arange(1.0, 1001.0), LAPLACE[:10_000]))
    reducer = SIDCo(density=0.1, adapt="paper")
    reducer.bind(Layout.of([("flat", (1000,)), ("heavy", (10_000,))], "layer"))
    for _ in range(EVERY):
        count(reducer, signal_N)
    assert reducer.stages_G.tolist() == [2, 1]
