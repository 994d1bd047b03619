"""Tests of the sparsifiers: the elements they select, by hand, and their number on average."""
# N = elements of the vector, K = elements selected, S = sampled elements

import csv
import math
import runpy
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sage import ops, registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reducers._signal import Signal
from sage.reducers.dgc import DGC, sample_stride
from sage.reducers.gaussiank import GaussianK
from sage.reducers.mstopk import MSTopK
from sage.reducers.randomk import RandomK
from sage.reducers.redsync import RedSync
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.rng import seed_at
from sage.testing import conformance
from sage.testing.harness import SHAPES, Case, Step, reduce_once, steps

ROOT = Path(__file__).parents[2]
SELECTION = runpy.run_path(str(ROOT / "benchmarks" / "selection.py"))

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("randomk", {"draw": "own"}),
    ("randomk", {"draw": "block"}),
    ("gaussiank", {"rule": "paper"}),
    ("dgc", {"rule": "grace"}),
    ("dgc", {"density_schedule": "warmup"}),
    ("dgc", {"rule": "authors"}),
    ("redsync", {"rule": "released"}),
    ("redsync", {"trim": True}),
    ("redsync", {"rule": "released", "trim": True}),
    ("gaussiank", {"rule": "released"}),
    ("mstopk", {"bisections": 3}),
    ("sidco", {"fit": "P"}),
    ("sidco", {"fit": "GP"}),
    ("sidco", {"fit": "GP", "quantile": "closed", "adapt": "paper"}),
    ("sidco", {"fit": "E", "stages": 4, "adjust_first": True}),
    ("sidco", {"fit": "P", "stages": 0, "adapt": "return"}),
]
THRESHOLDS: list[tuple[str, dict[str, Any]]] = [
    (name, {}) for name in ("dgc", "redsync", "gaussiank", "mstopk", "sidco")
] + OPTIONS[3:]
"""What looks at magnitudes."""


def selected(reducer: Any, signal_N: Tensor) -> list[int]:
    """The elements that a single rank selects of one vector."""
    reducer.bind(Layout.of([("w", tuple(signal_N.shape))]))
    found: list[int] = reducer.take(signal_N.clone(), None, Wire(0, 1))[1].tolist()
    return found


def named(value: object) -> str | None:
    if isinstance(value, dict):
        return " ".join(f"{k}={v}" for k, v in value.items()) or "default"
    return None


# All of them.


@pytest.mark.parametrize(
    "invariant",
    [
        conformance.nothing_is_lost,
        conformance.edge_cases_are_handled,
        conformance.density_one_is_all_reduce,
        conformance.density_is_the_share_sent,
        conformance.ledger_equals_bytes_by_hand,
        conformance.nan_reaches_every_mean,
        conformance.resumed_equals_uninterrupted,
    ],
    ids=lambda invariant: invariant.__name__,
)
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=named)
def test_the_invariants_hold_with_other_options(name: str, options: dict[str, Any], invariant: Any) -> None:
    invariant(Case(registry.load("reducers", name), options, 2, memory="residual"))


@pytest.mark.parametrize("density", [0.01, 0.3, 0.6])
@pytest.mark.parametrize(("name", "options"), THRESHOLDS, ids=named)
def test_a_vector_without_a_threshold_terminates_and_sends_the_k_largest(
    name: str, options: dict[str, Any], density: float
) -> None:
    n, make = 100, registry.load("reducers", name)
    k = 25 if "density_schedule" in options and density < 0.25 else round(density * n)
    for flat_N in (torch.ones(n), torch.full((n,), -0.1), torch.zeros(n), torch.full((n,), 1e-41)):
        at = selected(make(density=density, **options), flat_N)
        # GRACE's refinement oscillates around it: the largest one is sent, or all of them.
        assert at == list(range(k)) or (options == {"rule": "grace"} and len(at) in (1, n))


@pytest.mark.parametrize(("name", "options"), THRESHOLDS, ids=named)
def test_few_values_and_few_elements_terminate(name: str, options: dict[str, Any]) -> None:
    make = registry.load("reducers", name)
    two_N = torch.where(torch.arange(90) % 3 == 0, 2.0, -1.0)
    for signal_N in (two_N, two_N * 1e30, two_N * 1e-40, two_N.clamp(min=0), two_N.cumsum(0) == 2.0):
        for n in (1, 2, 3, 5, 90):
            count = len(selected(make(density=0.05, **options), signal_N[:n].float()))
            assert 1 <= count <= n


@pytest.mark.parametrize(("name", "options"), THRESHOLDS, ids=named)
def test_the_sign_does_not_affect_the_selection(name: str, options: dict[str, Any]) -> None:
    signal_N = torch.randn(3000, generator=torch.Generator().manual_seed(0)).abs() + 0.01
    make = registry.load("reducers", name)
    upward, downward = (selected(make(density=0.02, **options), x_N) for x_N in (signal_N, -signal_N))
    assert upward == downward
    assert len(upward) < 1500


@pytest.mark.parametrize(("name", "options"), THRESHOLDS, ids=named)
def test_the_reported_threshold_is_the_one_that_was_used(name: str, options: dict[str, Any]) -> None:
    signal_N = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    reducer = registry.load("reducers", name)(density=0.02, **options)
    at_K = selected(reducer, signal_N)
    result = reducer.report()
    assert result["threshold"] <= float(signal_N[at_K].abs().min())
    if name != "mstopk" and options.get("rule") != "authors":  # which leave some above it where they are
        assert at_K == (signal_N.abs() >= result["threshold"]).nonzero().view(-1).tolist()
    assert result["density_asked"] == (0.25 if "density_schedule" in options else 0.02)


# Random-k.


def test_ranks_that_draw_equally_send_no_indices_and_get_the_mean_of_the_drawn_elements() -> None:
    seen = steps(Case(RandomK, {"density": 0.1}, 2), lambda rank, step: torch.arange(1023.0) * (1 + rank))
    drawn = []
    for first, second in zip(*seen, strict=True):
        assert first.reduced.sent is not None
        assert second.reduced.sent is not None
        at_K = first.reduced.sent.long()
        assert torch.equal(first.reduced.sent, second.reduced.sent)
        assert len(at_K) == 102
        assert first.payload == {"values": 408}
        expected_N = torch.zeros(1023)
        expected_N[at_K] = (first.signal_N + second.signal_N)[at_K] / 2
        assert torch.equal(first.mean_N, expected_N)
        drawn.append(set(at_K.tolist()))
    assert len(set.intersection(*drawn)) < 20  # drawn again at every step: about one in 100 is in all three


def test_ranks_that_draw_independently_send_an_element_drawn_twice_once() -> None:
    def work(wire: Wire) -> list[Step]:
        feedback = ErrorFeedback(RandomK(density=0.5, draw="own"), Layout.of([("w", (1000,))]))
        return [reduce_once(feedback, torch.ones(1000), wire) for _ in range(3)]

    first, second = simulate(2, work)
    for a, b in zip(first, second, strict=True):
        assert a.reduced.sent is not None
        assert b.reduced.sent is not None
        assert a.reduced.sent.tolist() != b.reduced.sent.tolist()
        # Of 1,000 elements 500 draws hit 1,000·(1 − (1 − 1/1000)^500) = 393.6.
        for sent in (a.reduced.sent, b.reduced.sent):
            assert 360 < len(set(sent.tolist())) == len(sent) < 425


def test_a_block_is_contiguous_and_wraps_around_the_end() -> None:
    reducer = RandomK(density=0.3, draw="block")
    starts, wrapped = set(), 0
    for _ in range(40):
        at = selected(reducer, torch.ones(10))
        gaps = [(b - a) % 10 for a, b in zip(at, at[1:] + at[:1], strict=True)]
        assert sorted(gaps) == [1, 1, 8]
        starts.add(at[(gaps.index(8) + 1) % 3])
        wrapped += at[0] == 0 and at[-1] == 9
    assert starts == set(range(10))
    assert wrapped


def test_all_sets_of_elements_are_equally_likely() -> None:
    for k in (2, 7):  # of 7, the two others are drawn
        keys = range(5, 905)
        drawn = [ops.draw_indices(torch.empty(18), [0, 9, 18], [k, k], key, distinct=True) for key in keys]
        seen = Counter(tuple(at.tolist()) for both in drawn for at in (both[:k], both[k:] - 9))
        assert len(seen) == 36
        assert all(list(each) == sorted(set(each)) for each in seen)
        # 50 of each are expected; with 35 degrees of freedom, chi-squared exceeds 66.6 once in 1,000 times.
        assert sum((count - 50) ** 2 / 50 for count in seen.values()) < 66.6


@pytest.mark.parametrize("draw", ["shared", "block", "own"])
def test_unbiased_is_the_gradient_on_average_and_is_disabled_with_a_memory(draw: Any) -> None:
    signal_N = torch.tensor([3.0, -1.0, 0.5, 2.0, 4.0, 1.0])
    shapes = [("a", (4,)), ("b", (2,))]

    def means(memory: Any, count: int) -> list[Tensor]:
        reducer = RandomK(density=0.75, draw=draw, unbiased=True)
        feedback = ErrorFeedback(reducer, Layout.of(shapes, "layer"), memory=memory)
        return simulate(1, lambda w: [feedback(signal_N.clone(), w).mean_N.clone() for _ in range(count)])[0]

    means_TN = torch.stack(means("none", 300))
    error_N = means_TN.std(0) / math.sqrt(300)
    assert bool(((means_TN.mean(0) - signal_N).abs() <= 4 * error_N).all())
    (kept_N,) = means("residual", 1)
    assert torch.equal(kept_N, torch.where(kept_N == 0, 0.0, signal_N))


# DGC.


@pytest.mark.parametrize("seed", range(6))
def test_dgc_takes_its_threshold_from_a_sample_and_drops_excess_elements(seed: int) -> None:
    signal_N = torch.randn(1000, generator=torch.Generator().manual_seed(seed))
    # One of each 100 elements.
    at_S = 100 * torch.arange(10) + (100 * ops.random_bits(10, seed_at(seed, 0, 0, zlib.crc32(b"w"))) >> 16)
    threshold = signal_N[at_S].abs().sort(descending=True).values[2]  # ⌈0.01·1000·0.25⌉ = 3rd
    survivors = (signal_N.abs() >= threshold).nonzero().view(-1)
    if len(survivors) > 333:  # 4/3 of 250
        survivors = signal_N.abs().topk(250).indices.sort().values
    assert selected(DGC(density=0.25, sample_seed=seed), signal_N) == survivors.tolist()


def test_the_six_samples_include_both_cases() -> None:
    counts = [
        len(
            selected(
                DGC(density=0.25, sample_seed=seed),
                torch.randn(1000, generator=torch.Generator().manual_seed(seed)),
            )
        )
        for seed in range(6)
    ]
    assert 250 in counts
    assert any(count != 250 for count in counts)
    assert max(counts) <= 333


def test_each_rank_and_step_has_its_own_sample() -> None:
    signal_N = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    case = Case(DGC, {"density": 0.25, "rule": "grace"}, 3, memory="none", grouping="model")
    seen = steps(case, lambda rank, step: signal_N, shapes=[("w", (1000,))])
    assert len({len(s.reduced.sent) for rank in seen for s in rank if s.reduced.sent is not None}) > 1


def test_grace_refines_until_three_tenths_of_k() -> None:
    for seed in range(6):
        signal_N = torch.randn(1000, generator=torch.Generator().manual_seed(seed))
        assert 175 <= len(selected(DGC(density=0.25, rule="grace", sample_seed=seed), signal_N)) <= 325


def test_the_density_warms_up_by_epochs() -> None:
    reducer = DGC(density=0.001, density_schedule="warmup")
    result = []
    for epoch in range(6):
        reducer.begin_epoch(epoch, 0.1, Wire(0, 1))
        selected(reducer, torch.ones(1000))
        result.append(reducer.report()["density_asked"])
    assert result == [0.25, 0.0625, 0.015625, 0.00390625, 0.001, 0.001]


def test_the_warm_up_of_the_authors_code_falls_by_equal_factors() -> None:
    reducer = DGC(density=0.001, density_schedule="warmup", density_epochs=4)
    result = []
    for epoch in range(6):
        reducer.begin_epoch(epoch, 0.1, Wire(0, 1))
        result.append(reducer.now())
    assert result == pytest.approx([0.2512, 0.0631, 0.01585, 0.00398, 0.001, 0.001], rel=1e-3)


@pytest.mark.parametrize(
    "options", [{"density_epochs": 3}, {"density_epochs": 0, "density_schedule": "warmup"}]
)
def test_epochs_of_a_warm_up_need_one(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected 1 epoch or more, density_schedule='warmup'"):
        DGC(**options)


def authors_selection(x_N: Tensor, density: float, start: int) -> list[int]:
    """What DGC's code sends of a layer, by its rules, element by element from the first sample on."""
    n, magnitudes = x_N.numel(), x_N.abs().tolist()
    k = math.ceil(n * density)
    samples = sorted(magnitudes[start :: (stride := sample_stride(n, density))], reverse=True)
    threshold = samples[math.ceil(n // stride * density) - 1]
    for _ in range(10):
        if sum(x >= threshold for x in magnitudes) >= 0.8 * k:
            break
        threshold *= 0.8
    found = [at for at, x in enumerate(magnitudes) if x >= threshold]
    if len(found) > 1.3 * k:
        found = sorted(sorted(found, key=lambda at: -magnitudes[at])[:k])
    return found[:k]


@pytest.mark.parametrize("density", [0.01, 0.02, 0.1])
def test_the_authors_rule_is_that_of_their_code(density: float) -> None:
    lengths = set()
    for seed in range(12):
        signal_N = torch.randn(5000, generator=torch.Generator().manual_seed(seed)).double()
        reducer = DGC(density=density, rule="authors", sample_seed=seed)
        start = seed_at(seed, 0, 0, zlib.crc32(b"w")) % sample_stride(5000, density)
        found = selected(reducer, signal_N)
        assert found == authors_selection(signal_N, density, start)
        lengths.add(len(found))
    assert max(lengths) == 5000 * density


def test_a_layer_of_few_elements_sends_its_largest_by_the_authors_rule() -> None:
    signal_N = torch.randn(150, generator=torch.Generator().manual_seed(3))
    expected = signal_N.abs().topk(2).indices.sort().values.tolist()
    assert selected(DGC(density=0.0133, rule="authors"), signal_N) == expected


def test_with_nesterov_the_newest_gradient_counts_more() -> None:
    def work(wire: Wire) -> list[list[float]]:
        feedback = ErrorFeedback(
            DGC(density=0.5), Layout.of([("w", (2,))]), memory="momentum", momentum=0.5, nesterov=True
        )
        gradients = ([4.0, 1.0], [1.0, 1.0], [1.0, 0.0])
        return [feedback(torch.tensor(g), wire).mean_N.tolist() for g in gradients]

    # u, g + u/2, v: (4, 1), (6, 1.5), (6, 1.5) | (1, 1.5), (1.5, 1.75), (1.5, 3.25) | (1.5, 0), (1.75, 0),
    # (3.25, 0).
    (means,) = simulate(1, work)
    assert [x for mean in means for x in mean] == pytest.approx([6, 0, 0, 3.25, 3.25, 0])


def test_with_momentum_memory_the_momentum_is_corrected_and_masked() -> None:
    def work(wire: Wire) -> list[list[float]]:
        feedback = ErrorFeedback(DGC(density=0.5), Layout.of([("w", (2,))]), memory="momentum", momentum=0.9)
        gradients = ([4.0, 1.0], [1.0, 1.0], [1.0, 0.0])
        return [feedback(torch.tensor(g), wire).mean_N.tolist() for g in gradients]

    # u, v: (4, 1), (4, 1) | (1, 1.9), (1, 2.9) | (1.9, 0), (2.9, 0): sent elements are cleared in both.
    (means,) = simulate(1, work)
    assert [x for mean in means for x in mean] == pytest.approx([4, 0, 0, 2.9, 2.9, 0])


# RedSync. Mean 1, maximum 4: m = 0.5 is 2.5, 0.25 is 1.75, 0.75 is 3.25, 0.625 is 2.875.

LADDER = torch.tensor([0.0, 4, 0, -3, 0, 2, 0, -1, 0, 0])


@pytest.mark.parametrize(
    ("density", "options", "expected"),
    [
        (0.2, {}, [1, 3]),  # 2 at once
        (0.1, {}, [1]),  # 2 are too many, 1 is right
        (0.3, {}, [1, 3, 5]),  # 2 are too few, 3 are right
        (0.3, {"rule": "released"}, [1, 3]),  # 2 are too few: it raises m, finds 1, then 2 again, and ends
        (0.3, {"trim": True}, [1, 3, 5]),  # 1 at 3.4, 2 at 2.8 and 2.2, 3 at 1.6
        (0.6, {}, [0, 1, 2, 3, 5, 7]),  # no more than 3 lie above the mean: the 6 largest
        (0.6, {"trim": True}, [0, 1, 2, 3, 5, 7]),
    ],
)
def test_redsync_equals_the_result_computed_by_hand(
    density: float, options: dict[str, Any], expected: list[int]
) -> None:
    assert selected(RedSync(density=density, **options), LADDER) == expected


def test_only_the_papers_rule_selects_more_if_too_few_were_selected() -> None:
    # The mean is 1.1, the maximum 4: 2 reach m = 0.5, which is 2.55, and 4 reach m = 0.25, which is 1.825.
    steps_N = torch.tensor([4.0, -3, 2, 0, -2, 0, 0, 0, 0, 0])
    assert selected(RedSync(density=0.3), steps_N) == [0, 1, 2, 4]
    assert selected(RedSync(density=0.3, rule="released"), steps_N) == [0, 1]


def test_only_the_papers_rule_trims() -> None:
    close_N = torch.tensor([0.0, 4, 0, 3.9, 0, 3.95, 0, 1, 0, 0])
    # The mean is 1.285, the maximum 4; m = 0.8 is 3.457.
    assert selected(RedSync(density=0.2, trim=True), close_N) == [1, 5]
    assert selected(RedSync(density=0.2, trim=True, rule="released"), close_N) == [1, 3, 5]


# Gaussian-k. Half −1, half 7: mean 3, deviation 4; of the magnitudes mean 4, deviation 3.

HALVES = torch.tensor([-1.0, 7.0]).repeat(50)
Z = 1.6448536269514722
"""Φ⁻¹(1 − 0.1/2)"""


def fitted(reducer: GaussianK, signal_N: Tensor) -> float | None:
    """λ of a vector of 100 elements, of which 10 are wanted."""
    return reducer.estimate(Signal(signal_N, None, Layout.of([("w", (100,))])), [10])[0]


def test_gaussiank_is_the_quantile_of_a_normal_distribution_with_the_moments_of_the_signal() -> None:
    bisect, paper, released = (
        GaussianK(corrections=0, rule=rule) for rule in ("bisect", "paper", "released")
    )
    for rule in (bisect, paper):
        assert fitted(rule, HALVES) == pytest.approx(3 + 4 * Z)
    assert fitted(bisect, -HALVES) == pytest.approx(3 + 4 * Z)
    assert fitted(paper, -HALVES) == pytest.approx(-3 + 4 * Z)  # the mean has its sign
    assert fitted(released, HALVES) == pytest.approx(4 + 3 * Z)


def test_gaussiank_corrects_by_the_count_and_only_bisect_halves_the_step() -> None:
    # λ = 9.58 lets none through, nor do 7.2 = 0.75·9.58 and the like; half of it, 4.79, lets 50 of 10.
    start = 3 + 4 * Z

    def after(corrections: int, rule: Any = "bisect") -> float | None:
        return fitted(GaussianK(corrections=corrections, rule=rule), HALVES)

    assert after(1) == pytest.approx(start / 2)
    assert after(2) == pytest.approx(start * 3 / 4)
    assert after(3) == pytest.approx(start * 5 / 8)
    assert after(1, "paper") == pytest.approx(start / 2)
    assert after(2, "paper") == pytest.approx(start * 3 / 4)
    assert after(3, "paper") == pytest.approx(start * 3 / 8)
    start = 4 + 3 * Z
    assert after(2, "released") == pytest.approx(start * 3 / 4)
    assert after(3, "released") == pytest.approx(start * 9 / 8 if start * 3 / 4 < 7 else start * 3 / 8)


def test_gaussiank_has_no_bisection_in_its_authors_code_and_two_corrections_in_sidcos() -> None:
    # λ = 2.1 lets 3 through, 1.5·λ none; theirs then goes to 0.75·λ, and halfway would be 1.25·λ.
    signal_N = torch.tensor([-3.0, 1, 0, 0, -1, -3, 3, 1, -1, 1])
    assert selected(GaussianK(density=0.2, rule="paper", corrections=2), signal_N) == [0, 5, 6]
    assert selected(GaussianK(density=0.2, rule="paper"), signal_N) == [0, 5, 6]
    assert selected(GaussianK(density=0.2, corrections=2), signal_N) == [0]
    # λ = 3.7 lets 1 through, 1.8 five, 2.7 three: SIDCo's code ends there, a third correction goes to 4.1.
    signal_N = torch.tensor([1.0, 0, -1, 3, -2, 2, 5, -1, 3, -1])
    assert selected(GaussianK(density=0.2, rule="released"), signal_N) == [3, 6, 8]
    assert selected(GaussianK(density=0.2, rule="released", corrections=3), signal_N) == [6]


# MSTopK. Magnitudes 0 to 9: the mean is 4.5, the first t 6.75, which 7, 8 and 9 reach.

NINE = torch.tensor([9.0, -8, 0, 1, 2, -3, 4, 5, 6, 7])


def test_mstopk_takes_the_certain_elements_and_fills_up_from_a_contiguous_range() -> None:
    fillings = set()
    for seed in range(40):
        at = selected(MSTopK(density=0.5, bisections=1, sample_seed=seed), NINE)
        assert len(at) == 5
        assert {0, 1, 9} < set(at)
        a, b = sorted(set(at) - {0, 1, 9})
        assert b == a + 1
        fillings.add(a)
    assert fillings == set(range(2, 8))


def test_mstopk_takes_all_from_a_contiguous_range_if_none_is_certain() -> None:
    pairs = {tuple(selected(MSTopK(density=0.2, bisections=1, sample_seed=s), NINE)) for s in range(20)}
    assert pairs == {(0, 1), (1, 9)}


@pytest.mark.parametrize("density", [0.3, 0.01, 0.002])
def test_mstopk_converges_to_the_largest(density: float) -> None:
    signal_N = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    k = round(density * 5000)
    largest = signal_N.abs().topk(k).indices.sort().values.tolist()
    assert selected(MSTopK(density=density), signal_N) == largest
    coarse = selected(MSTopK(density=density, bisections=1), signal_N)
    assert len(coarse) == k
    assert coarse != largest


# Average number of selected elements.

AVERAGED: list[tuple[str, dict[str, Any]]] = [
    ("mstopk", {}),
    ("dgc", {}),
    ("redsync", {"trim": True}),
    ("gaussiank", {}),
    *(("sidco", {"fit": fit}) for fit in ("E", "GP", "P")),
]
"""Methods that are documented to be within 20 % of k."""
BUT = {("gaussiank", "", "70 % zeros", 0.001), ("sidco", "--fit E", "Student-t(4)", 0.001)}
"""Methods that are documented not to be."""


@pytest.fixture(scope="module")
def vectors() -> dict[str, list[Tensor]]:
    distributions = SELECTION["DISTRIBUTIONS"]
    return {
        each: [SELECTION["drawn"](each, 100_000, number) for number in range(10)] for each in distributions
    }


@pytest.mark.parametrize("density", [0.1, 0.01, 0.001])
@pytest.mark.parametrize(("name", "options"), AVERAGED, ids=named)
def test_on_average_the_selection_is_within_a_fifth_of_the_target(
    name: str, options: dict[str, Any], density: float, vectors: dict[str, list[Tensor]]
) -> None:
    if name == "dgc" and density == 0.001:
        return  # the sample of such a short vector has one element: see its docstring
    for distribution, some in vectors.items():
        if (name, SELECTION["format_options"](options), distribution, density) not in BUT:
            had, _ = SELECTION["ratios"](name, options, density, some, 40 if name == "sidco" else 0)
            assert abs(sum(had) / len(had) - 1) <= 0.2, distribution


def test_the_measured_table_agrees_for_long_vectors() -> None:
    with SELECTION["RESULTS"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    asked = {(name, SELECTION["format_options"](options)) for name, options in AVERAGED}
    off = {
        (row["method"], row["options"], row["distribution"], float(row["density"]))
        for row in rows
        if (row["method"], row["options"]) in asked and abs(float(row["mean"]) - 1) > 0.2
    }
    assert off == BUT
    page = ROOT / "docs" / "explanation" / "selection.md"
    assert SELECTION["table"](rows) in page.read_text(encoding="utf-8")


# Bytes and options.


def gradient(rank: int) -> Tensor:
    """3 elements of rank 0 and 5 of rank 1 stand out."""
    grad_N = torch.zeros(1023)
    grad_N[: 3 + 2 * rank] = 1.0
    return grad_N


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # 10 of 1,023.
        ("randomk", {"density": 0.01}, ({"values": 40},) * 2),
        ("randomk", {"density": 0.01, "draw": "block", "values": "fp16"}, ({"values": 20},) * 2),
        ("mstopk", {"density": 0.01}, ({"values": 40, "indices": 40},) * 2),
        # All that is not zero is selected, as thresholds are above 0.
        (
            "gaussiank",
            {"density": 0.01},
            (
                {"values": 12, "indices": 12, "sizes": 8, "padding": 16},
                {"values": 20, "indices": 20, "sizes": 8},
            ),
        ),
    ],
)
def test_the_payload_bytes_equal_those_counted_by_hand(
    name: str, options: dict[str, Any], expected: tuple[dict[str, int], ...]
) -> None:
    assert sum(math.prod(shape) for _, shape in SHAPES) == 1023
    case = Case(registry.load("reducers", name), options, 2)
    seen = steps(case, lambda rank, step: gradient(rank), count=1)
    assert tuple({k: v for k, v in step.payload.items() if v} for (step,) in seen) == expected


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("randomk", {"draw": "mine"}, "draw='mine': expected shared, block or own"),
        ("randomk", {"density": 0.0}, r"density=0\.0: expected a share"),
        ("dgc", {"rule": "released"}, "rule='released': expected paper, authors or grace"),
        ("dgc", {"density_schedule": "linear"}, "density_schedule='linear': expected constant or warmup"),
        ("dgc", {"density": 0.5, "density_from": 0.1}, r"density_from=0\.1: expected at least density=0\.5"),
        ("redsync", {"rule": "grace"}, "rule='grace': expected paper or released"),
        ("gaussiank", {"rule": "grace"}, "rule='grace': expected bisect, paper, released"),
        ("gaussiank", {"corrections": -1}, "corrections=-1: expected 0 or more"),
        ("mstopk", {"bisections": 0}, "bisections=0: expected 1 or more"),
        ("mstopk", {"density": 2.0}, r"density=2\.0: expected a share"),
        ("sidco", {"fit": "gamma"}, "fit='gamma': expected E, GP, P"),
        ("sidco", {"adapt": "never"}, "adapt='never': expected flip, paper, worse, return"),
        ("sidco", {"quantile": "best"}, "quantile='best': expected exact, closed"),
        ("sidco", {"stages": -1}, "stages=-1: expected 1 or more, 0 to derive the number from the density"),
    ],
)
def test_an_option_out_of_range_is_refused_with_the_allowed_range(
    name: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        registry.load("reducers", name)(**options)
