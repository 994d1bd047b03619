"""Tests of AdaComp: the selection near each bin's maximum, its code, and its hybrids."""
# N = elements of the flat vector

from typing import Any

import pytest
import torch
from torch import Tensor

from sage import ops, registry
from sage.comm.threads import simulate
from sage.reducers.adacomp import AdaComp
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.testing.conformance import INVARIANTS
from sage.testing.harness import Case, Step, conserved, reduce_once, same_bits, steps

SHORT: dict[str, Any] = {"conv_bin": 2, "dense_bin": 4}
SHAPES = (("conv", (2, 1, 2)), ("dense", (6,)))


def one_step(reducer: AdaComp, grad_N: Tensor, residual_N: Tensor | None = None) -> Step:
    """One rank's reduction of one gradient, with a given residual."""
    feedback = ErrorFeedback(reducer, Layout.of(SHAPES), memory="residual")
    if residual_N is not None:
        assert feedback.residual_N is not None
        feedback.residual_N.copy_(residual_N)
    (step,) = simulate(1, lambda wire: reduce_once(feedback, grad_N, wire))
    return step


def test_elements_near_the_maximum_of_their_bin_are_sent_as_sign_and_layer_scale() -> None:
    # Bins of conv: (4, -1), (-2, -1); of dense: (8, 5, 3, -4), (0, 0). H = 2·a, as there is no residual.
    grad_N = torch.tensor([4.0, -1.0, -2.0, -1.0, 8.0, 5.0, 3.0, -4.0, 0.0, 0.0])
    step = one_step(AdaComp(**SHORT), grad_N)
    # Scales: (4 + 2)/2 and (8 + 0)/2.
    sent_N = torch.tensor([3.0, 0.0, -3.0, -3.0, 4.0, 4.0, 0.0, -4.0, 0.0, 0.0])
    assert step.reduced.sent is not None
    assert step.reduced.sent.tolist() == [0, 2, 3, 4, 5, 7]
    assert step.reduced.density == 0.6
    assert step.mean_N.tolist() == sent_N.tolist()
    assert step.left_N is not None
    assert step.left_N.tolist() == (grad_N - sent_N).tolist()


def test_the_scale_factor_weights_the_gradient_of_the_step() -> None:
    # a = (3, 2) in conv's first bin, of which the step has brought (0, g): |2 + (s − 1)·g| ≥ 3 is asked.
    residual_N = torch.tensor([3.0, 1.0] + [0.0] * 8)
    grad_N = torch.tensor([0.0, 1.0] + [0.0] * 8)
    for scale_factor, expected in ((1.9, [0]), (2.0, [0, 1])):
        step = one_step(AdaComp(scale_factor=scale_factor, **SHORT), grad_N, residual_N)
        assert step.reduced.sent is not None
        assert step.reduced.sent.tolist() == expected


def test_a_bin_whose_maximum_the_step_reduces_may_send_nothing() -> None:
    # H = a + g = 2 − 1 stays below gmax = 2.
    residual_N = torch.tensor([3.0, 0.0] + [0.0] * 8)
    step = one_step(AdaComp(**SHORT), torch.tensor([-1.0, 0.0] + [0.0] * 8), residual_N)
    assert step.mean_N.count_nonzero() == 0
    assert step.left_N is not None
    assert step.left_N[0] == 2


def test_without_bins_each_layer_is_one_bin() -> None:
    grad_N = torch.tensor([4.0, -1.0, -2.0, -1.0, 8.0, 5.0, 3.0, -4.0, 0.0, 0.0])
    step = one_step(AdaComp(bins=False), grad_N)
    assert step.mean_N.tolist() == [4.0, 0.0, -4.0, 0.0, 8.0, 8.0, 0.0, -8.0, 0.0, 0.0]


def test_bins_are_of_50_elements_in_convolutions_and_of_500_elsewhere() -> None:
    reducer = AdaComp()
    reducer.bind(Layout.of([("conv", (3, 20, 2)), ("dense", (30, 20)), ("bias", (7,)), ("none", (0,))]))
    assert reducer.bins == ops.Bins((120, 720, 727, 727), (50, 500, 500, 500))
    assert reducer.bins.counts == [3, 2, 1, 0]


def test_an_entry_is_the_position_in_the_bin_and_two_bits() -> None:
    reducer = AdaComp(conv_bin=2, dense_bin=100)
    reducer.bind(Layout.of([("dense", (150,)), ("conv", (2, 1, 2))]))
    at_K, values_K = torch.tensor([3, 99, 153], dtype=torch.int32), torch.tensor([-1.0, 1.0, -1.0])
    counts_B = torch.tensor([2, 0, 0, 1], dtype=torch.int32)
    # Narrow bins first: conv's first has nothing, its second the second element, negative. Then dense's two.
    assert ops.encode_bins(None, at_K, values_K, counts_B, torch.ones(2), reducer.bins).tolist() == [
        0b11111110,
        0b00000111,
        *(3 << 2 | 0b01).to_bytes(2, "little"),
        *(99 << 2 | 0b10).to_bytes(2, "little"),
        *(0xFFFE).to_bytes(2, "little"),
    ]


def test_the_payload_bytes_equal_those_counted_by_hand() -> None:
    # conv 216 elements in 5 bins, wide 800 in 2, bias 7 in 1; rank 0 sends 3 of the first bin of conv, rank 1
    # 5, and each 2 of bias. Nothing comes from 4 bins of a byte an entry, and from 2 of two.
    def gradient(rank: int, step: int) -> Tensor:
        grad_N = torch.zeros(1023)
        grad_N[: 3 + 2 * rank] = 1.0
        grad_N[-2:] = -1.0
        return grad_N

    seen = steps(Case(AdaComp, {}, 2), gradient, count=1)
    assert [step.payload for (step,) in seen] == [
        {"values": entries + 4 + 2 * (2 + 2), "scales": 12, "sizes": 16} for entries in (3, 5)
    ]


@pytest.mark.parametrize("name", ["adacomp+efsign", "adacomp+topk"])
def test_only_a_quantiser_can_follow_in_a_hybrid(name: str) -> None:
    if name == "adacomp+efsign":
        registry.load("reducers", name)
    else:
        with pytest.raises(ValueError, match="expected a method that selects elements"):
            registry.load("reducers", name)


def test_in_a_hybrid_the_quantiser_codes_the_elements_that_adacomp_selects() -> None:
    make = registry.load("reducers", "adacomp+efsign")
    assert {"scale_factor", "bins", "conv_bin", "dense_bin"} <= registry.options(make).keys()
    case = Case(make, SHORT, 2, memory="residual")
    alone = Case(AdaComp, SHORT, 2, memory="residual")
    seen = steps(case, case.gradient, count=1)
    conserved(case, seen)
    for (hybrid,), (own,) in zip(seen, steps(alone, case.gradient, count=1), strict=True):
        assert own.reduced.sent is not None
        assert hybrid.reduced.sent is not None
        assert hybrid.reduced.sent.tolist() == own.reduced.sent.tolist()
        assert not same_bits(hybrid.mean_N, own.mean_N)


# GradComp's code and its options.


def gradcomp(rule: str, signal: list[float], grad: list[float], name: str = "adacomp", **more: Any) -> Step:
    """One step of a layer with this residual + gradient."""
    reducer = registry.load("reducers", name)(rule=rule, **more)
    feedback = ErrorFeedback(reducer, Layout.of([("w", (len(grad),))], reducer.grouping), memory="residual")
    grad_N = torch.tensor(grad)
    assert feedback.residual_N is not None
    feedback.residual_N.copy_(torch.tensor(signal) - grad_N)
    (step,) = simulate(1, lambda wire: reduce_once(feedback, grad_N, wire))
    return step


def test_gradcomp_weights_the_gradient_by_three_and_the_paper_by_s_minus_one() -> None:
    signal, grad = [1.0, 0.4, 0.3], [0.0, 0.25, 0.2]

    def sent(step: Step) -> list[int]:
        assert step.reduced.sent is not None
        return step.reduced.sent.tolist()

    assert sent(gradcomp("gradcomp", signal, grad)) == [0, 1]
    assert sent(gradcomp("paper", signal, grad, bins=False, scale_factor=3.0)) == [0]
    assert sent(gradcomp("paper", signal, grad, bins=False, scale_factor=4.0)) == [0, 1]


def test_gradcomp_sends_h_and_keeps_a_minus_h() -> None:
    step = gradcomp("gradcomp", [1.0, 0.4, 0.3], [0.0, 0.25, 0.2])
    assert step.mean_N.tolist() == pytest.approx([1.0, 1.15, 0.0])
    assert step.left_N is not None
    assert step.left_N.tolist() == pytest.approx([0.0, -0.75, 0.3])
    assert {kind: size for kind, size in step.payload.items() if size} == {
        "values": 8,
        "indices": 8,
        "sizes": 8,
    }


def test_in_a_hybrid_gradcomps_h_is_coded_and_the_residual_is_that_of_a() -> None:
    # H = (1, 1.15) is coded as 1.075 each.
    step = gradcomp("gradcomp", [1.0, 0.4, 0.3], [0.0, 0.25, 0.2], name="adacomp+efsign")
    assert step.mean_N.tolist() == pytest.approx([1.075, 1.075, 0.0])
    assert step.left_N is not None
    assert step.left_N.tolist() == pytest.approx([-0.075, -0.675, 0.3])


def test_adacomp2_clips_at_sixty_standard_deviations_of_the_layer() -> None:
    # One element of 5,000: its a is 70.7 deviations, its H = 4·a far above 60 of them.
    grad = [1.0] + [0.0] * 4999
    deviation = float(torch.tensor(grad).std(correction=0))
    assert 1 / deviation > 60
    clipped, whole = (gradcomp(rule, grad, grad) for rule in ("gradcomp2", "gradcomp"))
    assert float(clipped.mean_N[0]) == pytest.approx(60 * deviation)
    assert float(whole.mean_N[0]) == 4.0
    assert clipped.left_N is not None
    assert float(clipped.left_N[0]) == pytest.approx(1 - 60 * deviation)


def test_raw_values_are_sent_unchanged_and_leave_no_residual() -> None:
    grad_N = torch.tensor([4.0, -1.0, -2.0, -1.0, 8.0, 5.0, 3.0, -4.0, 0.0, 0.0])
    step = one_step(AdaComp(sends="values", **SHORT), grad_N)
    sent_N = torch.tensor([4.0, 0.0, -2.0, -1.0, 8.0, 5.0, 0.0, -4.0, 0.0, 0.0])
    assert step.mean_N.tolist() == sent_N.tolist()
    assert step.left_N is not None
    assert step.left_N.tolist() == (grad_N - sent_N).tolist()


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.__name__)
@pytest.mark.parametrize("options", [{"sends": "values"}, {"rule": "gradcomp"}, {"rule": "gradcomp2"}])
def test_every_choice_of_adacomps_options_keeps_the_invariants(
    options: dict[str, Any], invariant: Any
) -> None:
    invariant(Case(AdaComp, options, 2, memory="residual"))


@pytest.mark.parametrize("name", ["adacomp+efsign", "adacomp+terngrad", "variance+efsign"])
def test_a_hybrid_of_a_layerwise_method_scales_each_layer_separately(name: str) -> None:
    make: Any = registry.load("reducers", name)
    layout = Layout.of([("a", (1,)), ("b", (1,))], make.grouping)
    feedback = ErrorFeedback(make(), layout, memory="none")
    (step,) = simulate(1, lambda wire: reduce_once(feedback, torch.tensor([1.0, 0.1]), wire))
    assert step.mean_N.tolist() == pytest.approx([1.0, 0.1])


def test_the_grouping_does_not_change_what_adacomp_sends() -> None:
    cases = [Case(AdaComp, {}, 2, grouping=grouping, memory="residual") for grouping in ("model", "layer")]
    by_model, by_layer = (steps(case, case.gradient) for case in cases)
    for a, b in zip(by_model, by_layer, strict=True):
        assert all(same_bits(x.mean_N, y.mean_N) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"scale_factor": 0.5}, r"scale_factor=0\.5: expected a finite number, at least 1"),
        ({"rule": "theirs"}, "rule='theirs': expected paper, gradcomp or gradcomp2"),
        ({"sends": "signs"}, "sends='signs': expected scale or values"),
        ({"rule": "gradcomp", "bins": False}, "rule='gradcomp' with sends, bins or scale_factor"),
        ({"conv_bin": 0}, r"conv_bin=0: expected 1 to 2\^30 − 1 elements"),
        ({"dense_bin": 2**30}, r"dense_bin=1073741824: expected 1 to 2\^30 − 1 elements"),
    ],
)
def test_an_option_out_of_range_is_refused_with_the_allowed_range(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        AdaComp(**options)
