"""Tests of the first reducers: the elements they send, the bytes, and the options they refuse."""
# N = elements of the flat vector, W = world size

import math
from typing import Any

import pytest
import torch
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reducers.gtopk import GTopK
from sage.reducers.sage import Sage
from sage.reducers.threshold import Threshold
from sage.reducers.topk import TopK, num_kept
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.testing.conformance import INVARIANTS
from sage.testing.harness import SHAPES, Case, reduce_once, same_bits, steps

# conv 216, wide 800, bias 7: 1,023 elements.
N = 1023


def sent(reducer: Any, signal_N: Tensor, shapes: Any, grouping: str | None = None) -> list[int]:
    """The elements that one rank sends of one gradient."""
    feedback = ErrorFeedback(reducer, Layout.of(shapes, grouping or reducer.grouping), memory="none")
    (step,) = simulate(1, lambda wire: reduce_once(feedback, signal_N, wire))
    assert step.reduced.sent is not None
    found: list[int] = step.reduced.sent.tolist()
    return found


# Top-k.


def test_topk_sends_the_largest_elements_of_every_layer() -> None:
    signal_N = torch.tensor([1.0, -4.0, 3.0, 2.0] + [0.1, 0.3, -0.2] + [0.0, 0.0])
    shapes = (("a", (2, 2)), ("b", (3,)), ("c", (2,)))
    assert sent(TopK(density=0.5), signal_N, shapes) == [1, 2, 5, 7]
    assert sent(TopK(density=0.01), signal_N, shapes) == [1, 5, 7]


def test_gtopk_lets_large_layers_take_all_of_the_budget() -> None:
    signal_N = torch.tensor([1.0, -4.0, 3.0, 2.0] + [0.1, 0.3, -0.2] + [0.0, 0.0])
    shapes = (("a", (2, 2)), ("b", (3,)), ("c", (2,)))
    assert sent(GTopK(density=0.5), signal_N, shapes) == [0, 1, 2, 3]
    assert sent(GTopK(density=0.01), signal_N, shapes) == [1]
    assert sent(GTopK(density=0.5), signal_N, shapes, "layer") == sent(TopK(density=0.5), signal_N, shapes)


def merge_of(gradients: list[list[float]], merge: Any, density: float) -> list[Any]:
    """Each rank's mean and residual of one step."""

    def work(wire: Wire) -> Any:
        feedback = ErrorFeedback(
            GTopK(density=density, merge=merge), Layout.of([("w", (len(gradients[0]),))]), memory="residual"
        )
        return reduce_once(feedback, torch.tensor(gradients[wire.rank]), wire)

    return simulate(len(gradients), work)


def test_gtopk_gathers_the_largest_of_every_rank_and_its_tree_keeps_k_for_all_ranks() -> None:
    gradients = [[3.0, 0, 0, 0], [0, 2.0, 0, 0]]
    for step in merge_of(gradients, "gather", 0.25):
        assert step.mean_N.tolist() == [1.5, 1.0, 0.0, 0.0]
    first, second = merge_of(gradients, "tree", 0.25)
    assert first.mean_N.tolist() == second.mean_N.tolist() == [1.5, 0.0, 0.0, 0.0]
    assert first.left_N.tolist() == [0.0] * 4
    assert second.left_N.tolist() == [0.0, 2.0, 0.0, 0.0]
    assert [step.reduced.density for step in (first, second)] == [1 / 8] * 2


def test_an_element_dropped_by_a_merge_stays_in_the_residual_even_if_another_branch_has_it() -> None:
    # Ranks 0 and 1 keep element 0 and drop rank 1's element 1; ranks 2 and 3 bring element 1 to 8.
    steps_W = merge_of([[4.0, 0], [0, 3.0], [0, 5.0], [0, 3.0]], "tree", 0.5)
    for rank, step in enumerate(steps_W):
        assert step.mean_N.tolist() == [0.0, 2.0]
        assert step.left_N.tolist() == [[4.0, 0.0], [0.0, 3.0], [0.0, 0.0], [0.0, 0.0]][rank]


@settings(max_examples=examples(60), deadline=None)
@given(
    st.integers(1, 7).flatmap(
        lambda n: st.lists(st.lists(st.integers(-9, 9), min_size=n, max_size=n), min_size=1, max_size=6)
    ),
    st.sampled_from([0.1, 0.4, 1.0]),
)
def test_a_tree_of_merges_keeps_dropped_elements_in_the_residual(
    gradients: list[list[int]], density: float
) -> None:
    signal_WN = torch.tensor(gradients).float()
    seen = merge_of(signal_WN.tolist(), "tree", density)
    left_WN = torch.stack([step.left_N for step in seen])
    torch.testing.assert_close(seen[0].mean_N, (signal_WN - left_WN).sum(0) / len(gradients))
    assert all(same_bits(step.mean_N, seen[0].mean_N) for step in seen)
    assert seen[0].mean_N.count_nonzero() <= num_kept(density, signal_WN.shape[1])


@pytest.mark.parametrize("options", [{}, {"values": "fp16"}, {"indices": "coded"}])
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.__name__)
def test_gtopks_tree_keeps_the_invariants(invariant: Any, world_size: int, options: dict[str, Any]) -> None:
    invariant(Case(GTopK, {"density": 0.05, "merge": "tree", **options}, world_size, memory="residual"))


def test_topk_within_buckets_shares_the_budget_of_a_bucket() -> None:
    signal_N = torch.tensor([5.0, 6.0, 7.0, 8.0, 1.0, 2.0])
    shapes = (("a", (2,)), ("b", (2,)), ("c", (2,)))
    # 16 bytes: a and b in one bucket, c in the next.
    assert sent(TopK(density=0.5), signal_N, shapes, "bucket:0.000016") == [2, 3, 5]


def test_the_number_kept_is_the_floor_and_at_least_one() -> None:
    assert [num_kept(0.01, n) for n in (0, 1, 99, 100, 199, 200, 1_000_000)] == [0, 1, 1, 1, 1, 2, 10_000]
    assert num_kept(0.29, 100) == 29  # 0.29·100 is 28.999999999999996 in binary
    assert num_kept(1.0, 7) == 7


# Thresholds.


def test_the_published_threshold_is_that_of_dutta_et_al() -> None:
    threshold = Threshold(density=0.01, start="published")
    threshold.bind(Layout.of([("w", (10_000,))]))
    assert threshold.report() == {"threshold": 1 / (2 * math.sqrt(100)), "density_asked": 0.01}
    signal_N = torch.zeros(10_000)
    signal_N[[3, 70, 9000]] = torch.tensor([0.05, -0.06, 0.0499])
    assert sent(Threshold(density=0.01, start="published"), signal_N, [("w", (10_000,))]) == [3, 70]


def test_the_default_threshold_is_the_quantile_of_the_first_signal_that_has_one() -> None:
    reducer = Threshold(density=0.01)
    layout = Layout.of([("w", (10_000,))])
    grad_N = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    zeros_N = torch.zeros(10_000)
    few_N = zeros_N.index_fill(0, torch.tensor([7]), 1.0)

    def work(wire: Wire) -> list[int]:
        feedback = ErrorFeedback(reducer, layout, memory="none")
        return [
            round(10_000 * feedback(x_N.clone(), wire).density)
            for x_N in (zeros_N, few_N, 100 * grad_N, grad_N)
        ]

    # Nothing of the zeros; the only element that is not 0; then 1 % of the first full gradient.
    (counts,) = simulate(1, work)
    assert counts == [0, 1, 100, 0]
    assert reducer.report()["threshold"] == float((100 * grad_N).abs().topk(100).values.min())


def test_the_first_threshold_of_a_long_vector_comes_from_a_sample() -> None:
    grad_N = torch.randn(500_000, generator=torch.Generator().manual_seed(0))
    count = len(sent(Threshold(density=0.01), grad_N, [("w", (500_000,))]))
    assert count == pytest.approx(5000, rel=0.1)


def test_a_given_threshold_is_not_a_target_density() -> None:
    threshold = Threshold(threshold=0.5, density=0.01)
    threshold.bind(Layout.of([("w", (10_000,))]))
    assert threshold.report() == {"threshold": 0.5}


WITHOUT_TARGET = {"adacomp", "variance", "powersgd", "acp", "accordion_powersgd", "svd", "atomo", "exact"}
WITHOUT_TARGET |= {"fp16", "bf16", "fp8", "int8", "onebit", "onebit_sgd", "signsgd", "signum", "efsignsgd"}
WITHOUT_TARGET |= {"lqsgd", "ps", "sign_norm", "fp4", "qsgd", "dithering", "natural", "terngrad"}
WITHOUT_TARGET |= {"mxfp8", "mxfp4", "nvfp4", "thc", "hadamard", "hadamard+qsgd"}
WITHOUT_TARGET |= {"u8bit", "inceptionn", "sketch"}
WITHOUT_TARGET |= {"adacomp+efsign", "variance+terngrad"}


@pytest.mark.parametrize(
    "name", [*registry.names("reducers"), "topk+efsign", "sage+qsgd", "adacomp+efsign", "variance+terngrad"]
)
def test_exactly_the_reducers_with_a_target_density_report_one(name: str) -> None:
    make = registry.load("reducers", name)
    has_target = name not in WITHOUT_TARGET
    assert ("density" in registry.options(make)) == has_target
    options = {"density": 0.25} if has_target else {}
    case = Case(make, options, 1, memory="none")
    feedback = case.fresh()
    simulate(1, lambda wire: feedback(case.gradient(0, 0), wire))
    result = feedback.reducer.report()
    if not has_target:
        assert "density_asked" not in result
    elif name == "accordion":  # epoch 0 has not begun: its high density
        assert result["density_asked"] == 1.0
    else:
        assert result["density_asked"] == 0.25


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("threshold", {}),
        *(("sage", {"controller": controller}) for controller in ("quantile", "feedback", "sage")),
        *((name, {}) for name in ("micro", "exdyna", "oktopk", "dgc", "redsync", "gaussiank", "sidco")),
    ],
)
def test_the_reported_threshold_is_that_of_the_last_step(name: str, options: dict[str, Any]) -> None:
    make = registry.load("reducers", name)
    case = Case(make, {"density": 0.05, **options}, 1, grouping="model", memory="none")
    feedback = case.fresh()

    def work(wire: Wire) -> None:
        for step in range(6):
            signal_N = case.gradient(0, step)
            sent = feedback(signal_N.clone(), wire).sent
            threshold = feedback.reducer.report()["threshold"]
            assert sent is not None
            left_N = signal_N.index_fill(0, sent.long(), 0.0)
            assert sent.numel() == 0 or float(signal_N[sent].abs().min()) >= threshold * (1 - 1e-6)
            if (
                name != "oktopk" and sent.numel() > 1
            ):  # of too many it selects the largest, of none the largest one
                assert float(left_N.abs().max()) <= threshold * (1 + 1e-6)

    simulate(1, work)


def test_a_given_threshold_never_changes() -> None:
    case = Case(Threshold, {"threshold": 2.0}, 2)
    for rank in steps(case, lambda rank, step: torch.full((N,), 1.5 + rank)):
        assert [step.reduced.density for step in rank] == [0.5, 1.0, 0.5]


def densities(first: float, count: int = 120, density: float = 0.01) -> list[float]:
    """The densities of SAGE on a stationary stream, without memory."""

    def work(wire: Wire) -> list[float]:
        feedback = ErrorFeedback(
            Sage(density=density, threshold=first, controller="sage"),
            Layout.of([("w", (20_000,))]),
            memory="none",
        )
        generator = torch.Generator().manual_seed(wire.rank)
        return [feedback(torch.randn(20_000, generator=generator), wire).density for _ in range(count)]

    return simulate(2, work)[0]


def test_the_published_rule_moves_its_density_towards_the_target_from_either_side() -> None:
    dense, sparse = densities(first=0.1), densities(first=6.0)
    assert dense[0] > 0.9
    assert sparse[0] == 0.0
    # From more than ten times or less than a tenth of the target it returns to between the two, and stays.
    for had in (dense, sparse):
        assert all(0.001 < d < 0.13 for d in had[100:])
    # While it is outside, the trend is towards the target.
    assert dense[0] > dense[20] > dense[40]
    assert sparse[40] > sparse[0]


def test_sage_at_density_one_does_not_use_its_controller() -> None:
    reducer = Sage(density=1.0)
    assert sent(reducer, torch.tensor([0.0, 1.0, -2.0]), [("w", (3,))]) == [0, 1, 2]
    assert int(reducer.controller.step) == 0


def test_sage_reports_the_used_threshold_and_the_target_density() -> None:
    reducer = Sage(density=0.25, threshold=1.5, controller="sage")
    assert sent(reducer, torch.tensor([1.0, -2.0, 1.5, 0.0]), [("w", (4,))]) == [1, 2]
    assert reducer.report() == {"density_asked": 0.25, "density_selected": 0.5, "threshold": 1.5}


# Halves.


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_half_precision_divides_before_it_adds_and_feeds_its_rounding_back(name: str) -> None:
    make = registry.load("reducers", name)
    largest = 60_000.0

    def work(wire: Wire) -> tuple[Tensor, Tensor | None]:
        feedback = ErrorFeedback(make(), Layout.of([("w", (2,))]), memory="residual")
        mean_N = feedback(torch.tensor([largest, 1 + 2**-13]), wire).mean_N
        return mean_N, feedback.residual_N

    for mean_N, residual_N in simulate(4, work):
        assert mean_N.tolist() == pytest.approx([largest, 1.0], rel=2**-7)
        assert residual_N is not None
        assert mean_N.tolist()[1] + residual_N.tolist()[1] == 1 + 2**-13


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_half_precision_adds_the_casts_in_float32_and_rounds_their_sum_once(
    name: str, world_size: int
) -> None:
    make = registry.load("reducers", name)
    dtype = torch.float16 if name == "fp16" else torch.bfloat16
    grads = [gradient(rank) for rank in range(world_size)]
    grads[-1][:3] = torch.tensor([math.nan, -math.inf, 1e30])
    total_N = sum((grad_N / world_size).to(dtype).float() for grad_N in grads)
    assert isinstance(total_N, Tensor)

    def work(wire: Wire) -> tuple[Tensor, Tensor | None]:
        feedback = ErrorFeedback(make(), Layout.of([("w", (total_N.numel(),))]), memory="residual")
        return feedback(grads[wire.rank].clone(), wire).mean_N, feedback.residual_N

    for mean_N, residual_N in simulate(world_size, work):
        assert same_bits(mean_N[1:], total_N.to(dtype).float()[1:])  # the first is NaN, of any kind
        assert mean_N.isfinite().tolist()[:3] == [False, False, name == "bf16"]
        assert residual_N is not None
        assert bool(residual_N.isfinite().all())


@pytest.mark.parametrize("name", ["topk", "gtopk", "threshold", "sage", "accordion"])
def test_values_in_fp16_change_the_mean_by_no_more_than_their_rounding(name: str) -> None:
    make = registry.load("reducers", name)

    def mean_N(values: str) -> Tensor:
        case = Case(make, {"density": 0.1, "values": values}, 2)
        return steps(case, lambda rank, step: gradient(rank) / 3, count=1)[0][0].mean_N

    wide_N, narrow_N = mean_N("fp32"), mean_N("fp16")
    assert not same_bits(wide_N, narrow_N)
    assert float((wide_N - narrow_N).abs().max()) <= 2**-11 * float(wide_N.abs().max())


# Bytes by hand. Rank 0 has 3 elements above the threshold, rank 1 has 5.


def gradient(rank: int) -> Tensor:
    grad_N = torch.randn(N, generator=torch.Generator().manual_seed(rank)) / 100
    grad_N[: 3 + 2 * rank] = 1.0
    return grad_N


PUBLISHED = {"controller": "sage", "threshold": 0.5}
UNEVEN = (
    {"values": 12, "indices": 12, "sizes": 8, "padding": 16},
    {"values": 20, "indices": 20, "sizes": 8},
)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("exact", {}, ({"values": 4092},) * 2),
        ("bf16", {}, ({"values": 2046},) * 2),
        ("fp16", {}, ({"values": 2046},) * 2),
        # 2 of conv, 8 of wide, 1 of bias.
        ("topk", {"density": 0.01}, ({"values": 44, "indices": 44},) * 2),
        ("gtopk", {"density": 0.01}, ({"values": 40, "indices": 40},) * 2),
        ("gtopk", {"density": 0.01, "values": "fp16"}, ({"values": 20, "indices": 40},) * 2),
        ("threshold", {"threshold": 0.5}, UNEVEN),
        ("sage", PUBLISHED, UNEVEN),
        (
            "sage",
            PUBLISHED | {"values": "fp16"},
            (
                {"values": 6, "indices": 12, "sizes": 8, "padding": 12},
                {"values": 10, "indices": 20, "sizes": 8},
            ),
        ),
        ("sage", PUBLISHED | {"agree": True}, tuple(rank | {"scales": 8} for rank in UNEVEN)),
        (
            "sage",
            PUBLISHED | {"exchange": "uneven"},
            ({"values": 12, "indices": 12, "sizes": 8}, {"values": 20, "indices": 20, "sizes": 8}),
        ),
        # The target is 10.23 elements: there is room for 11.
        (
            "sage",
            PUBLISHED | {"exchange": "chunks"},
            (
                {"values": 12, "indices": 12, "sizes": 8, "padding": 64},
                {"values": 20, "indices": 20, "sizes": 8, "padding": 48},
            ),
        ),
        # The union is rank 1's five.
        (
            "sage",
            PUBLISHED | {"exchange": "union"},
            ({"values": 20, "indices": 12, "sizes": 8}, {"values": 20, "indices": 20, "sizes": 8}),
        ),
        # Rank 1's half of the vector has nothing above the threshold.
        (
            "sage",
            PUBLISHED | {"exchange": "exclusive"},
            ({"values": 12, "indices": 12, "sizes": 8}, {"values": 12, "sizes": 8}),
        ),
        # Ten of each rank.
        ("sage", {"density": 0.01}, ({"values": 40, "indices": 40, "sizes": 8},) * 2),
        # Ten times as many in epoch 0: 21 of conv, 80 of wide, 1 of bias.
        ("accordion", {"density": 0.01}, ({"values": 408, "indices": 408},) * 2),
    ],
)
def test_the_payload_bytes_equal_those_counted_by_hand(
    name: str, options: dict[str, Any], expected: tuple[dict[str, int], ...]
) -> None:
    assert sum(math.prod(shape) for _, shape in SHAPES) == N
    case = Case(registry.load("reducers", name), options, 2)
    seen = steps(case, lambda rank, step: gradient(rank), count=1)
    nonzero = [{kind: size for kind, size in step.payload.items() if size} for (step,) in seen]
    assert tuple(nonzero) == expected


# Options.


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("topk", {"density": 0.0}, r"density=0\.0: expected a share of the elements, above 0 and at most 1"),
        ("gtopk", {"density": 1.5}, r"density=1\.5: expected a share"),
        ("sage", {"density": math.nan}, r"density=nan: expected a share"),
        ("sage", {"threshold": 0.0}, r"threshold=0\.0: expected a finite number above 0"),
        ("sage", {"controller": "pid"}, r"controller='pid': expected sage, quantile, feedback"),
        ("threshold", {"threshold": math.inf}, r"threshold=inf: expected a finite number above 0"),
        ("threshold", {"density": -1.0}, r"density=-1\.0: expected a share"),
        ("topk", {"values": "int8"}, r"values='int8': expected fp32 or fp16"),
        ("accordion", {"density_high": 2.0}, r"density_high=2\.0: expected a share"),
        (
            "accordion",
            {"density": 0.5, "density_high": 0.1},
            r"density_high=0\.1: expected at least density=0\.5",
        ),
        ("accordion", {"switch_every": 0}, r"switch_every=0: expected 1 epoch or more"),
        ("accordion", {"eta": -0.1}, r"eta=-0\.1: expected 0 or more"),
    ],
)
def test_an_option_out_of_range_is_refused_with_the_allowed_range(
    name: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        registry.load("reducers", name)(**options)


@pytest.mark.parametrize("name", registry.names("reducers"))
def test_every_option_is_described_on_the_command_line(name: str) -> None:
    for option in registry.options(registry.load("reducers", name)).values():
        assert option.help
