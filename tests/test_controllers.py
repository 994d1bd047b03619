"""The published controller against its rule, worked out here a second time."""
# N = elements of the vector

import math

import pytest
import torch
from torch import Tensor

from sage.controllers import Controller, Published
from sage.controllers.base import sample_size


class SeesEverything(Published):
    """Its sample is the whole vector, so that what it does can be worked out by hand."""

    def sample_mean(self, signal_N: Tensor, size: int) -> float:
        return float(signal_N.abs().mean(dtype=torch.float64))


def stream(step: int, n: int = 2000) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(n, generator=generator) * (1 + 0.3 * math.sin(step))


def moved(controller: Controller, signal_N: Tensor, density: float = 0.01) -> float:
    """The threshold that the controller selects this signal by."""
    controller.select(signal_N, density)
    return float(controller.threshold)


def rule(signals: list[Tensor], density: float, threshold: float) -> list[float]:
    """methods.md, section 3, as it stands there."""
    thresholds = [threshold]
    for before, now in zip(signals, signals[1:], strict=False):
        s_before, s_now = (sum(abs(x) for x in signal.tolist()) / signal.numel() for signal in (before, now))
        alpha = s_now / s_before if s_now and s_before else 1.0
        had = sum(abs(x) >= alpha * threshold for x in now.tolist()) / now.numel()
        beta = 2 / (1 + math.exp(density - had))
        gamma = 0.95 if had / density < 0.1 else 1.05 if had / density > 10 else 1.0
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


def test_far_from_the_target_the_threshold_is_pushed_by_five_per_cent() -> None:
    for first, above, push in ((100.0, 0.0, 0.95), (1e-6, 1.0, 1.05)):
        controller = SeesEverything(threshold=first)
        moved(controller, stream(0))
        beta = 2 / (1 + math.exp(0.01 - above))
        assert moved(controller, stream(0)) == pytest.approx(first * beta * push)


def test_the_first_threshold_is_given_or_else_follows_from_the_number_of_elements_to_send() -> None:
    assert moved(Published(), torch.zeros(10_000)) == 1 / (2 * math.sqrt(100))
    assert moved(Published(threshold=0.3), torch.zeros(10_000)) == 0.3


def test_a_scale_of_zero_neither_divides_nor_sticks() -> None:
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


def test_long_silence_never_drives_the_threshold_to_zero() -> None:
    controller = Published(threshold=1.0)
    zero_N = torch.zeros(10)
    silent = [moved(controller, zero_N, 0.1) for _ in range(4000)]
    assert min(silent) > 0
    assert max(silent[-500:]) < 1e-30
    assert moved(controller, torch.ones(10), 0.1) > 0


def test_an_empty_vector_has_no_threshold_and_leaves_no_trace() -> None:
    controller = Published()
    assert moved(controller, torch.empty(0)) == 0.0
    assert int(controller.step) == 0


def test_what_is_not_finite_does_not_reach_the_threshold() -> None:
    controller = Published()
    signal_N = stream(0, n=100)
    signal_N[::3], signal_N[1::3] = math.nan, math.inf
    assert all(math.isfinite(moved(controller, signal_N, 0.1)) for _ in range(3))
    assert math.isfinite(moved(controller, stream(1, n=100), 0.1))


def test_the_sample_is_slovins() -> None:
    assert [sample_size(n) for n in (1, 10, 400, 10_000, 1_000_000, 2**31)] == [1, 10, 200, 385, 400, 400]


def sampled_scales(controller: Published, signal_N: Tensor, count: int) -> list[float]:
    scales = []
    for _ in range(count):
        moved(controller, signal_N)
        scales.append(float(controller.scale))
    return scales


def test_the_sample_depends_on_the_seed_and_the_step_alone() -> None:
    signal_N = stream(0, n=50_000)
    once = sampled_scales(Published(seed=3), signal_N, 4)
    torch.manual_seed(99)
    assert sampled_scales(Published(seed=3), signal_N, 4) == once
    assert len(set(once)) == 4
    assert sampled_scales(Published(seed=4), signal_N, 4) != once


def test_the_samples_mean_is_unbiased_wherever_the_large_elements_lie() -> None:
    for large in (slice(0, 500), slice(-500, None), slice(None, None, 100)):
        signal_N = torch.full((50_000,), 0.1)
        signal_N[large] = -50.0
        mean = float(signal_N.abs().mean())
        scales = sampled_scales(Published(), signal_N, 300)
        # One element's deviation is about 5, and 300 samples of 400 elements were drawn.
        assert sum(scales) / 300 == pytest.approx(mean, abs=4 * 5 / math.sqrt(300 * 400))


def test_a_resumed_controller_goes_on_as_if_it_had_never_stopped() -> None:
    whole, stopped = Published(seed=1), Published(seed=1)
    expected = [moved(whole, stream(step)) for step in range(6)]
    for step in range(3):
        moved(stopped, stream(step))
    resumed = Published(seed=1)
    resumed.load_state_dict(stopped.state_dict())
    assert [moved(resumed, stream(step)) for step in range(3, 6)] == expected[3:]
