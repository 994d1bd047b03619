"""Tests of the table of goals and its limits, and that the GRACE classes compute what the reducers send."""

import sys
from pathlib import Path

import pytest
import torch

from sage import registry
from sage.bench.loopback_wire import LoopbackWire
from sage.predict.decode_fit import fitted
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import goal_measure
import goal_table
import goals
import grace_class

FAST = "efsignsgd", "onebit", "onebit_sgd", "sign_norm", "topk"


@pytest.mark.parametrize("name", [*FAST, "int8", "fp8", "signsgd"])
def test_graces_class_computes_what_the_reducer_sends(name: str) -> None:
    n = 5000
    reducer = registry.load("reducers", name)()
    feedback = ErrorFeedback(reducer, Layout.of([("w", (n,))], reducer.grouping))
    x_N = torch.randn(n, generator=torch.Generator().manual_seed(0))
    ours_N = feedback(x_N.clone(), LoopbackWire(torch.device("cpu"))).mean_N
    theirs_N = grace_class.METHODS[name](x_N)
    # The two-way methods encode a mean twice; by rounding, a code may differ by one.
    torch.testing.assert_close(ours_N, theirs_N, rtol=1e-4, atol=0.08 if name in ("int8", "fp8") else 1e-6)


@pytest.mark.parametrize("name", ["qsgd", "terngrad", "natural", "dithering"])
def test_graces_random_codes_are_unbiased(name: str) -> None:
    torch.manual_seed(0)
    x_N = torch.tensor([0.3, -1.0, 0.0, 0.7, -0.2, 0.01])
    mean_N = sum(grace_class.METHODS[name](x_N) for _ in range(4000)) / 4000
    torch.testing.assert_close(mean_N, x_N, rtol=0, atol=0.04)


def test_unsent_elements_stay_in_the_residual() -> None:
    layers, residuals = [torch.randn(300), torch.randn(7)], [torch.randn(300), torch.zeros(7)]
    signals = [x + r for x, r in zip(layers, residuals, strict=True)]
    grace_class.step(grace_class.top, layers, residuals)
    for signal_N, left_N in zip(signals, residuals, strict=True):
        assert torch.equal(left_N, signal_N - grace_class.top(signal_N))


def test_every_measured_reducer_exists_and_every_compared_one_has_a_counterpart() -> None:
    names = {spec.partition(":")[0] for spec in goal_table.REDUCERS}
    assert names <= set(registry.names("reducers"))
    assert {spec.partition(":")[0] for spec in goal_table.COMPARED} <= set(grace_class.METHODS)
    assert set(registry.names("reducers")) - names == {"exact", "ps", "accordion_powersgd"}


def test_a_ceiling_is_missed_above_it_and_a_floor_below_it() -> None:
    above = goals.Figure("layers", "onebit", "compress", 3.0, 3.0, 3.0, 2.5, is_floor=False)
    below = goals.Figure("layers", "onebit", "GRACE's class", 3.0, 3.0, 3.0, 5.0, is_floor=True)
    assert above.is_missed()
    assert not above.is_missed(2.0)
    assert below.is_missed()
    assert not below.is_missed(2.0)
    assert goals.Figure("a", "b", "c", 2.4, 0, 0, 5.0, is_floor=True).is_missed(2.0)
    assert not goals.Figure("a", "b", "c", 99.0, 0, 0, None, is_floor=False).is_missed()


def test_only_passes_may_take_twice_as_long_without_avx_512() -> None:
    limits: dict[goal_table.What, tuple[float, float]] = {
        "compress": (4.0, 8.0),
        "decode": (1.5, 3.0),
        "grace": (5.0, 5.0),
        "memory": (2.0, 2.0),
    }
    for what, expected in limits.items():
        goal = goal_table.goal_of(what, "qsgd")
        assert goal is not None
        assert (goal.at(1), goal.at(1, 2.0)) == expected


@pytest.mark.skipif(
    not goal_measure.MEMORY_FILE.exists(), reason="Linux tells the peak, other systems do not"
)
def test_the_peak_includes_memory_that_is_used_and_freed() -> None:
    size = 2**25
    peak = goal_measure.peak_bytes(lambda: torch.ones(size // 4).sum())
    assert peak is not None
    assert 0.95 * size <= peak < 1.5 * size  # the kernel counts pages in batches


def test_a_fit_of_a_line_finds_it_and_is_never_negative() -> None:
    assert fitted({1: 3.0, 2: 5.0, 4: 9.0}) == (1.0, 2.0)
    assert min(fitted({1: 1.0, 2: 4.0, 4: 8.0})) >= 0
    assert fitted({1: 2.0, 2: 1.0, 4: 0.0}) == (1.0, 0.0)


def test_a_reducer_is_measured_in_all_that_its_goals_need() -> None:
    shapes = [("w", (64, 32)), ("b", (32,))]
    seen = goal_measure.measure("onebit", shapes, (1, 2, 4), 5, 0.0, grace=True)
    found = goals.figures("layers", seen, (1, 2, 4), 1.0)
    whats = ["compress", "decode W=1", "decode W=2", "decode W=4", "GRACE's class", "memory"]
    assert [figure.what for figure in found] == whats
    assert [figure.limit for figure in found] == [2.5, 1.3, 1.6, 2.2, 5.0, 2.0]
    assert all(figure.median > 0 for figure in found if figure.what != "memory")
