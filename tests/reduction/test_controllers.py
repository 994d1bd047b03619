"""Tests of the controllers: the published rule computed independently, the quantile, and feedback."""
# N = elements of the vector

import math

import pytest
import torch
from torch import Tensor

from sage import ops
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reduction.controllers import (
    CONTROLLERS,
    Agree,
    Controller,
    Feedback,
    Published,
    Quantile,
    local_only,
)
from sage.reduction.controllers.base import sample_size
from sage.reduction.controllers.quantile import common, sampled_every


class SeesEverything(Published):
    """Its sample is the whole vector, so that its steps can be computed by hand."""

    def sample_mean(self, grad_N: Tensor, residual_N: Tensor | None, size: int) -> float:
        return float(grad_N.abs().mean(dtype=torch.float64))


def stream(step: int, n: int = 2000) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(n, generator=generator) * (1 + 0.3 * math.sin(step))


def selected(controller: Controller, signal_N: Tensor, density: float, agree: Agree = local_only) -> Tensor:
    """The indices that the controller selects of this signal."""
    return controller.take(signal_N, None, density, agree)[1]


def moved(controller: Controller, signal_N: Tensor, density: float = 0.01) -> float:
    """The threshold that the controller selects this signal by."""
    selected(controller, signal_N, density)
    return float(controller.threshold)


def rule(signals: list[Tensor], density: float, threshold: float) -> list[float]:
    """The published rule, computed with plain Python numbers."""
    thresholds = [threshold]
    for before, now in zip(signals, signals[1:], strict=False):
        s_before, s_now = (sum(abs(x) for x in signal.tolist()) / signal.numel() for signal in (before, now))
        alpha = s_now / s_before if s_now and s_before else 1.0
        achieved = sum(abs(x) >= alpha * threshold for x in now.tolist()) / now.numel()
        beta = 2 / (1 + math.exp(density - achieved))
        gamma = 0.95 if achieved / density < 0.1 else 1.05 if achieved / density > 10 else 1.0
        threshold = threshold * alpha * beta * gamma
        thresholds.append(threshold)
    return thresholds


@pytest.mark.parametrize(("density", "first"), [(0.01, 2.5), (0.01, 0.05), (0.001, 6.0), (0.5, 0.1)])
def test_the_threshold_follows_the_published_rule(density: float, first: float) -> None:
    controller = SeesEverything(threshold=first)
    signals = [stream(step) for step in range(8)]
    assert [moved(controller, signal_N, density) for signal_N in signals] == pytest.approx(
        rule(signals, density, first), rel=1e-9
    )


def test_two_steps_by_hand() -> None:
    # d* = 0.1 of 10 elements and λ_0 = 4. At step 1 the scale has doubled: α = 2, α·λ = 8; 3 are above.
    # β = 2/(1 + exp(0.1 − 0.3)) = 1.0996680, and 0.3/0.1 = 3 lies between 0.1 and 10, so γ = 1.
    controller = SeesEverything(threshold=4.0)
    signal_N = torch.tensor([0.0, 0.0, 1.0, -1.0, 2.0, -2.0, 3.0, 5.0, -6.0, 10.0])
    assert moved(controller, signal_N, 0.1) == 4.0
    assert moved(controller, 2 * signal_N, 0.1) == pytest.approx(8 * 1.0996680, rel=1e-7)
    # The same again, all signs turned: α = 1, α·λ = 8.797, the same 3 above it.
    assert moved(controller, -2 * signal_N, 0.1) == pytest.approx(8 * 1.0996680**2, rel=1e-7)


def test_the_released_sampling_takes_a_tensor_first_and_then_an_element_of_it() -> None:
    # Two elements that stay at 10, and 998 that go from 1 to 2: s goes from 1.018 to 2.016 over the elements,
    # and from (10 + 1)/2 to (10 + 2)/2 where both tensors are as likely, by ⌊1000/3.5⌋ = 285 draws.
    before_N = torch.cat((torch.full((2,), 10.0), torch.ones(998)))
    after_N = torch.cat((torch.full((2,), 10.0), torch.full((998,), 2.0)))

    def scales(by_tensor: bool, seed: int) -> tuple[float, float]:
        controller = Published(threshold=0.5, seed=seed)
        if by_tensor:
            controller.sample_by_tensor([(0, 2), (2, 2), (2, 1000)])
        assert len(controller.sample_indices(1000, sample_size(1000))) == (285 if by_tensor else 286)
        found = []
        for signal_N in (before_N, after_N):
            selected(controller, signal_N, 0.05)
            found.append(float(controller.scale))
        return found[0], found[1]

    for by_tensor, expected in ((True, (5.5, 6.0)), (False, (1.018, 2.016))):
        means = [sum(some) / 300 for some in zip(*(scales(by_tensor, s) for s in range(300)), strict=True)]
        assert means == pytest.approx(expected, rel=0.02)
    alone_N = torch.ones(1)
    controller = Published(threshold=0.5)
    controller.sample_by_tensor([(0, 1)])
    selected(controller, alone_N, 0.5)
    assert float(controller.scale) == 1.0


def test_far_from_the_target_the_threshold_changes_by_five_per_cent_more() -> None:
    for first, above, push in ((100.0, 0.0, 0.95), (1e-6, 1.0, 1.05)):
        controller = SeesEverything(threshold=first)
        moved(controller, stream(0))
        beta = 2 / (1 + math.exp(0.01 - above))
        assert moved(controller, stream(0)) == pytest.approx(first * beta * push)


def test_the_first_threshold_is_given_or_else_follows_from_the_number_of_elements_to_send() -> None:
    assert moved(Published(), torch.zeros(10_000)) == 1 / (2 * math.sqrt(100))
    assert moved(Published(threshold=0.3), torch.zeros(10_000)) == 0.3


def test_a_scale_of_zero_causes_no_division_by_zero_and_does_not_persist() -> None:
    controller = SeesEverything(threshold=1.0)
    zero_N = torch.zeros(2000)
    assert moved(controller, stream(0)) == 1.0
    into_zero = moved(controller, zero_N)
    among_zeros = moved(controller, zero_N)
    out_of_zero = moved(controller, stream(0))
    # Nothing is above the threshold of a vector of zeros, so it falls by β·γ a step, and never by α.
    fall = 0.95 * 2 / (1 + math.exp(0.01))
    assert (into_zero, among_zeros) == pytest.approx((fall, fall**2))
    assert 0.5 < out_of_zero < 1.5


def test_zero_gradients_never_lower_the_published_threshold_to_zero() -> None:
    controller = Published(threshold=1.0)
    zero_N = torch.zeros(10)
    silent = [moved(controller, zero_N, 0.1) for _ in range(4000)]
    assert min(silent) > 0
    assert max(silent[-500:]) < 1e-30
    assert moved(controller, torch.ones(10), 0.1) > 0


@pytest.mark.parametrize("name", ["quantile", "feedback"])
@pytest.mark.parametrize("agree", [local_only, lambda x_B: 1 * x_B])
def test_zero_gradients_select_nothing_and_the_next_gradient_is_selected(name: str, agree: Agree) -> None:
    controller = CONTROLLERS[name]()
    zero_N = torch.zeros(10)
    for _ in range(400):
        assert selected(controller, zero_N, 0.1, agree).numel() == 0
        assert float(controller.threshold) > 0
        controller.learn(0.0)
    assert float(controller.threshold) < 1e-30
    # All of them are equal: with no agreement, `quantile` takes the first of these.
    all_but_the_exact = 1 if name == "quantile" and agree is local_only else 10
    assert selected(controller, torch.ones(10), 0.1, agree).numel() == all_but_the_exact


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("agree", [local_only, lambda x_B: 1 * x_B])
def test_many_elements_that_are_not_finite_are_selected_and_leave_no_state(name: str, agree: Agree) -> None:
    controller = CONTROLLERS[name]()
    selected(controller, stream(0), 0.01, agree)
    flooded_N = stream(1)
    flooded_N[::4], flooded_N[1::4] = math.nan, math.inf
    residual_N = torch.zeros(2000)
    own_K, taken_K = controller.take(flooded_N, residual_N, 0.01, agree)
    at_K = taken_K.tolist()
    assert bool(residual_N.isfinite().all())
    residual_N[taken_K] = own_K
    assert torch.equal(residual_N.nan_to_num(7.0), flooded_N.nan_to_num(7.0))
    controller.learn(len(at_K) / 2000)
    assert set(at_K) >= set(range(0, 2000, 4)) | set(range(1, 2000, 4))
    achieved = 0.0
    for step in range(2, 30):
        achieved = selected(controller, stream(step), 0.01, agree).numel() / 2000
        controller.learn(achieved)
    assert 0 < achieved < 0.2


@pytest.mark.parametrize("name", CONTROLLERS)
def test_an_empty_vector_has_no_threshold_and_changes_no_state(name: str) -> None:
    controller = CONTROLLERS[name]()
    assert selected(controller, torch.empty(0), 0.01).tolist() == []
    assert float(controller.threshold) == 0.0
    assert int(controller.step) == 0


def test_elements_that_are_not_finite_do_not_change_the_threshold() -> None:
    controller = Published()
    signal_N = stream(0, n=100)
    signal_N[::3], signal_N[1::3] = math.nan, math.inf
    assert all(math.isfinite(moved(controller, signal_N, 0.1)) for _ in range(3))
    assert math.isfinite(moved(controller, stream(1, n=100), 0.1))


def test_the_sample_has_slovins_size() -> None:
    assert [sample_size(n) for n in (1, 10, 400, 10_000, 1_000_000, 2**31)] == [1, 10, 200, 385, 400, 400]


def sampled_scales(controller: Published, signal_N: Tensor, count: int) -> list[float]:
    scales = []
    for _ in range(count):
        moved(controller, signal_N)
        scales.append(float(controller.scale))
    return scales


def test_the_sample_depends_only_on_the_seed_and_the_step() -> None:
    signal_N = stream(0, n=50_000)
    once = sampled_scales(Published(seed=3), signal_N, 4)
    torch.manual_seed(99)
    assert sampled_scales(Published(seed=3), signal_N, 4) == once
    assert len(set(once)) == 4
    assert sampled_scales(Published(seed=4), signal_N, 4) != once


def test_the_mean_of_the_sample_is_unbiased_wherever_the_large_elements_are() -> None:
    for large in (slice(0, 500), slice(-500, None), slice(None, None, 100)):
        signal_N = torch.full((50_000,), 0.1)
        signal_N[large] = -50.0
        mean = float(signal_N.abs().mean())
        scales = sampled_scales(Published(), signal_N, 300)
        # One element's deviation is about 5, and 300 samples of 400 elements were drawn.
        assert sum(scales) / 300 == pytest.approx(mean, abs=4 * 5 / math.sqrt(300 * 400))


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_resumed_controller_continues_as_if_uninterrupted(name: str) -> None:
    make = CONTROLLERS[name]

    def play(controller: Controller, steps: range) -> list[float]:
        thresholds = []
        for step in steps:
            thresholds.append(moved(controller, stream(step)))
            controller.learn(0.02)
        return thresholds

    whole, stopped, resumed = make(seed=1), make(seed=1), make(seed=1)
    expected = play(whole, range(6))
    play(stopped, range(3))
    resumed.load_state_dict(stopped.state_dict())
    assert play(resumed, range(3, 6)) == expected[3:]


@pytest.mark.parametrize("name", CONTROLLERS)
def test_exactly_the_elements_not_below_the_threshold_are_selected(name: str) -> None:
    controller = CONTROLLERS[name]()
    for step in range(5):
        signal_N = stream(step)
        signal_N[7] = math.nan
        at_K = selected(controller, signal_N, 0.05)
        assert at_K.tolist() == ops.select_above(signal_N, float(controller.threshold)).tolist()
        assert 7 in at_K.tolist()
        controller.learn(at_K.numel() / 2000)


# The quantile.


def kth_largest(signal_N: Tensor, k: int) -> float:
    return float(signal_N.abs().sort(descending=True).values[k - 1])


def test_the_quantile_is_the_kth_largest_whatever_the_earlier_steps() -> None:
    controller = Quantile()
    for step, (scale, density) in enumerate(
        [(1, 0.01), (1.1, 0.01), (10, 0.01), (0.1, 0.01), (0.1, 0.25), (1, 0.001), (1, 1e-9), (1e30, 0.01)]
    ):
        signal_N = scale * stream(step)
        k = max(1, int(density * 2000))
        assert moved(controller, signal_N, density) == kth_largest(signal_N, k)


def test_of_equal_elements_at_the_quantile_the_first_are_selected_and_zeros_never() -> None:
    controller = Quantile()
    signal_N = torch.tensor([3.0, 2.0, -2.0, 2.0, -0.0, 0.0, 0.0, 0.0])
    for _ in range(2):
        assert selected(controller, signal_N, 0.25).tolist() == [0, 1]
        residual_N = torch.zeros(8)
        assert controller.take(signal_N, residual_N, 0.9)[1].tolist() == [0, 1, 2, 3]
        assert residual_N.tolist() == [0.0] * 8
        assert selected(controller, torch.zeros(8), 0.25).tolist() == []


@pytest.mark.parametrize("agree", [local_only, lambda x_B: 1 * x_B])
@pytest.mark.parametrize(("density", "n"), [(0.01, 20_000), (0.1, 100_000), (0.5, 2000)])
def test_the_elements_that_a_quantile_selects_are_removed_from_the_residual(
    agree: Agree, density: float, n: int
) -> None:
    controller = Quantile()
    residual_N = torch.zeros(n)
    for step, scale in enumerate((1.0, 1.1, 10.0, 0.1, 0.1, 0.1)):
        grad_N, before_N = scale * stream(step, n), residual_N.clone()
        own_K, at_K = controller.take(grad_N, residual_N, density, agree)
        signal_N = before_N + grad_N
        assert at_K.dtype == torch.int32
        assert at_K.tolist() == ops.select_above(signal_N, float(controller.threshold)).tolist()
        assert torch.equal(own_K, signal_N[at_K])
        signal_N[at_K] = 0
        assert torch.equal(residual_N, signal_N)
        within = 0.12 if sampled_every(density, n) > 1 else 0.03 if agree is not local_only else 0
        assert own_K.numel() == pytest.approx(density * n, rel=within)


def test_the_sample_of_a_quantile_has_other_elements_at_each_step() -> None:
    controller = Quantile()
    n, density = 100_000, 0.1
    assert sampled_every(density, n) == 9
    signal_N = stream(0, n)
    thresholds = {moved(controller, signal_N, density) for _ in range(9)}
    assert len(thresholds) == 9
    counts = [ops.count_above(signal_N, threshold) for threshold in thresholds]
    # Nine samples, each of 1,111 of the elements wanted, make up the whole vector.
    assert sum(counts) / 9 == pytest.approx(density * n, rel=0.01)


@pytest.mark.parametrize("density", [0.01, 0.1])
def test_the_agreed_quantile_is_that_of_all_ranks_elements_together(density: float) -> None:
    ranks = [(3 * rank + 1) * stream(rank, n=30_000) for rank in range(3)]
    everything = torch.cat(ranks)

    def work(wire: Wire) -> list[float]:
        controller = Quantile()
        thresholds = []
        for scale in (1.0, 1.05, 10.0, 0.2):
            selected(controller, scale * ranks[wire.rank], density, lambda x_B: wire.mean(x_B))
            thresholds.append(float(controller.threshold) / scale)
        return thresholds

    seen = simulate(3, work)
    assert seen[0] == seen[1] == seen[2]
    for threshold in seen[0]:
        within = 0.01 if density == 0.01 else 0.08
        assert int((everything.abs() >= threshold).sum()) == pytest.approx(90_000 * density, rel=within)


def test_agreement_needs_a_single_message_while_the_quantile_stays_in_its_bracket() -> None:
    messages: list[int] = []

    def agree(x_B: Tensor) -> Tensor:
        messages.append(x_B.numel())
        return 1 * x_B

    controller = Quantile()
    for step in range(25):
        messages.clear()
        selected(controller, (1 + 0.01 * (step % 3)) * stream(0, 50_000), 0.01, agree)
    assert messages == [16]


def test_the_agreed_quantile_is_accurate_for_dense_clusters_of_elements() -> None:
    # A cluster, as left by error feedback: nine tenths of all values are within a thousandth of each other.
    generator = torch.Generator().manual_seed(0)
    x_N = torch.rand(10_000, generator=generator)
    x_N[:9000] = 2 - x_N[:9000] / 1000
    for wanted in (20, 300, 8000, 9500):
        threshold = common(x_N, wanted, lambda x_B: 1 * x_B)
        assert threshold is not None
        assert int((x_N >= threshold).sum()) == pytest.approx(wanted, rel=0.06)


def test_an_agreed_quantile_selects_all_or_none_of_equal_elements_but_never_nothing() -> None:
    tied_N = torch.tensor([5.0, 4.0] + [2.0] * 98)

    def count(wanted: float) -> int:
        return int((tied_N >= (common(tied_N, wanted, lambda x_B: 1 * x_B) or 0.0)).sum())

    assert [count(wanted) for wanted in (1, 2, 10, 90)] == [1, 2, 2, 100]
    tied_N = tied_N[2:]
    assert count(1) == 98


def test_a_quantile_that_may_be_outside_the_bracket_is_not_estimated() -> None:
    x_C = torch.tensor([1.0, 1.1, 1.2, 9.0, 10.0])
    assert common(x_C, 6, local_only, 1.0, 2.0) is None
    assert int((x_C >= (common(x_C, 4, local_only, 1.0, 2.0) or 0.0)).sum()) == 4
    assert common(x_C, 1, local_only, 1.0, 2.0) is None


# Feedback.


def test_feedback_corrects_a_share_of_the_error_by_the_slope_of_the_tail() -> None:
    controller = Feedback(threshold=2.0, gain=0.3)
    signal_N = torch.tensor([4.0, -8.0, 1.0, 0.5, 2.0])
    controller.sample_mean = lambda grad_N, residual_N, size: float(grad_N.abs().mean())  # type: ignore[method-assign]
    assert moved(controller, signal_N, 0.2) == 2.0
    # Above λ = 2 lie 2, 4 and 8: h = 3 / (log 1 + log 2 + log 4) = 1 / log 2. They were three times as many.
    controller.learn(0.6)
    push = 0.3 * math.log(3) * math.log(2)
    assert moved(controller, signal_N, 0.2) == pytest.approx(2 * math.exp(push))
    controller.learn(0.2)
    # Nothing to correct, and four times the scale: half of its logarithm is followed.
    assert moved(controller, 4 * signal_N, 0.2) == pytest.approx(2 * math.exp(push) * 2)


def test_feedback_returns_to_the_target_from_either_side() -> None:
    for first in (1e-3, 50.0):
        controller = Feedback(threshold=first)
        achieved = []
        for step in range(80):
            achieved.append(selected(controller, stream(step, n=20_000), 0.01).numel() / 20_000)
            controller.learn(achieved[-1])
        assert not 0.005 < achieved[0] < 0.02
        assert sum(achieved[60:]) / 20 == pytest.approx(0.01, rel=0.4)
