"""Tests of L-GreCo's allocation: the programme against every allocation, and the reducers that have one."""
# N = elements of the flat vector, L = layers

from itertools import product
from typing import Any

import pytest
import torch
from fuzz import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reducers.topk import TopK
from sage.reduction.allocated import Allocated
from sage.reduction.allocation import Layer, allocate, total, total_bytes
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.reduction.reducer import Memory
from sage.testing.conformance import INVARIANTS
from sage.testing.harness import Case, same_bits

SHAPES = (("flat", (40, 30)), ("bias", (32,)), ("steep", (30, 50)), ("conv", (8, 9, 4)))
N = Layout.of(SHAPES).numel
SOON: dict[str, Any] = {"allocation": "lgreco", "allocation_every": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "topk": {"density": 0.1},
    "powersgd": {"rank": 2},
    "qsgd": {"bucket": 16},
}
SETTING = {"topk": "density_G", "powersgd": "rank_G", "qsgd": "level_G"}


# The programme.

layer_lists = st.integers(1, 4).flatmap(
    lambda count: st.lists(
        st.builds(
            Layer,
            st.lists(st.integers(0, 40), min_size=count, max_size=count),
            st.lists(st.integers(1, 30), min_size=count, max_size=count),
            st.integers(0, count - 1),
        ),
        min_size=1,
        max_size=4,
    )
)


@given(layers=layer_lists)
@settings(max_examples=examples(60), deadline=None)
def test_it_finds_the_fewest_bytes_of_all_allocations_within_the_budget(layers: list[Layer]) -> None:
    uniform = [layer.uniform for layer in layers]
    budget = int(total(layers, uniform))
    found = allocate(layers, buckets=max(1, budget))  # steps of 1, so that nothing is rounded
    every = product(*(range(len(layer.errors)) for layer in layers))
    best = min(total_bytes(layers, each) for each in every if total(layers, each) <= budget)
    assert total_bytes(layers, found) == best
    assert total(layers, found) <= budget


positive = st.floats(0, 1e6) | st.floats(0, allow_infinity=False)


@given(
    rows=st.lists(
        st.tuples(st.tuples(*[positive] * 3), st.tuples(*[st.integers(0, 10**6)] * 3)),
        min_size=1,
        max_size=5,
    ),
    uniform=st.integers(0, 2),
    buckets=st.sampled_from([1, 7, 1000]),
)
@example(rows=[((2.2e-309, 0.0, 0.0), (2, 1, 0))], uniform=0, buckets=1)
@example(rows=[((1e308, 1e308, 1e308), (2, 1, 0))] * 2, uniform=0, buckets=1)
@settings(max_examples=examples(60), deadline=None)
def test_it_never_has_a_larger_error_or_more_bytes_than_the_uniform_setting(
    rows: list[tuple[tuple[float, ...], tuple[int, ...]]], uniform: int, buckets: int
) -> None:
    layers = [Layer(errors, sizes, uniform) for errors, sizes in rows]
    same = [uniform] * len(layers)
    found = allocate(layers, buckets=buckets)
    assert total(layers, found) <= total(layers, same) * (1 + 1e-12)
    assert total_bytes(layers, found) <= total_bytes(layers, same)


def test_a_smaller_budget_is_kept_and_one_that_nothing_keeps_gives_the_smallest_errors() -> None:
    layers = [Layer((8.0, 4.0, 2.0), (1, 2, 4), 1), Layer((8.0, 4.0, 2.0), (1, 2, 4), 1)]
    assert allocate(layers, alpha=0.8) in ([1, 2], [2, 1])
    assert allocate(layers, alpha=0.25) == [2, 2]
    assert allocate(layers, alpha=2.0) == [0, 0]


def test_without_an_error_to_spend_only_settings_without_error_are_chosen() -> None:
    layers = [Layer((0.0, 1.0, 0.0), (8, 4, 2), 0), Layer((0.0, 5.0, 6.0), (8, 4, 2), 0)]
    assert allocate(layers) == [2, 0]
    nan = Layer((float("nan"), 1.0), (8, 4), 0)
    assert allocate([nan, layers[0]]) == [0, 0]


# The reducers.


def gradient(rank: int, step: int) -> Tensor:
    """A gradient: one matrix is noise, another is nearly of rank 1 and has a few large elements."""
    grad_N = torch.randn(N, generator=torch.Generator().manual_seed(100 * step + rank))
    steep = torch.outer(torch.arange(30.0), torch.arange(50.0).exp() / 1e20) * (1 + step)
    grad_N[1232:2732] = 0.01 * grad_N[1232:2732] + steep.view(-1)
    return grad_N


def make(name: str, memory: Memory | None = None, **more: Any) -> ErrorFeedback:
    reducer = registry.load("reducers", name)(**{**OPTIONS[name], **SOON, **more})
    return ErrorFeedback(reducer, Layout.of(SHAPES, "layer"), memory=memory)


def allocated(feedback: ErrorFeedback) -> Allocated:
    assert isinstance(feedback.reducer, Allocated)
    return feedback.reducer


@pytest.mark.parametrize("error", ["norm", "square"])
@pytest.mark.parametrize("name", OPTIONS)
def test_all_ranks_take_rank_0s_allocation_of_fewer_bytes_and_no_larger_error(name: str, error: str) -> None:
    def work(wire: Wire) -> tuple[list[Tensor], list[dict[str, int]]]:
        feedback = make(name, "none", allocation_error=error)
        seen, sent = [], []
        for step in range(4):
            before = wire.ledger.copy()
            feedback(gradient(wire.rank, step), wire)
            seen.append(feedback.reducer.get_buffer(SETTING[name]).clone())
            sent.append(dict(wire.ledger.since(before).payload))
        return seen, sent

    (seen, sent), *others = simulate(3, work)
    for other, _ in others:
        assert all(same_bits(a, b) for a, b in zip(seen, other, strict=True))
    assert same_bits(seen[0], seen[1])
    assert same_bits(seen[2], seen[3])
    # The allocation is of the signals of steps 0 and 1, which are the gradients without a residual.
    of_groups = allocated(make(name)).settings_of(gradient(0, 0) + gradient(0, 1))
    chosen = [
        next(each for each in of_group if each.value == value)
        for of_group, value in zip(of_groups, seen[2].tolist(), strict=True)
    ]
    uniform = [of_group[0] for of_group in of_groups]
    power = 1.0 if error == "square" else 0.5
    assert sum(each.error**power for each in chosen) <= sum(each.error**power for each in uniform)
    assert sum(each.bytes for each in chosen) < sum(each.bytes for each in uniform)
    # The ledger has the bytes of the settings; rank 0 has sent the allocation in step 2, and the others not.
    dense = 4 * 32 if name == "powersgd" else 0
    _, sent_by_1 = others[0]
    assert sent[2].get("scales", 0) - sent_by_1[2].get("scales", 0) == 8 * len(SHAPES)
    assert [sum(step.values()) for step in sent_by_1] == [
        *[sum(each.bytes for each in uniform) + dense] * 2,
        *[sum(each.bytes for each in chosen) + dense] * 2,
    ]


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.__name__)
@pytest.mark.parametrize("name", OPTIONS)
def test_with_an_allocation_every_invariant_holds(name: str, invariant: Any) -> None:
    options = {**OPTIONS[name], **SOON, "allocation_every": 1}
    invariant(Case(registry.load("reducers", name), options, 3, memory="residual"))


@pytest.mark.parametrize("name", OPTIONS)
def test_until_the_first_allocation_the_bits_are_those_of_uniform_settings(name: str) -> None:
    def work(wire: Wire) -> list[bool]:
        pair = make(name), make(name, allocation="uniform")
        means = [[of(gradient(wire.rank, step), wire).mean_N.clone() for step in range(3)] for of in pair]
        return [same_bits(a, b) for a, b in zip(*means, strict=True)]

    assert simulate(2, work) == [[True, True, False]] * 2


@pytest.mark.parametrize("name", OPTIONS)
def test_a_signal_that_is_not_finite_leaves_the_settings_as_they_are(name: str) -> None:
    def work(wire: Wire) -> tuple[Tensor, Tensor, int]:
        feedback = make(name)
        first = feedback.reducer.get_buffer(SETTING[name]).clone()
        for step in range(3):
            grad_N = gradient(wire.rank, step).bfloat16()
            grad_N[3] = float("nan") if wire.rank == 0 and step == 1 else 0.0
            feedback(grad_N, wire)
        allocation = allocated(feedback).allocation
        assert allocation is not None
        return first, feedback.reducer.get_buffer(SETTING[name]), int(allocation.step)

    for first, last, steps in simulate(2, work):
        assert same_bits(first, last)
        assert steps == 3


def test_a_budget_moves_all_densities_of_an_allocation_and_the_next_one_is_around_the_new_density() -> None:
    # The limit is so low that the density halves at each measurement after the first, whatever the time.
    def work(wire: Wire) -> tuple[list[float], list[float], float, int]:
        feedback = make("topk", allocation_every=21, budget=1e-9)
        reducer = feedback.reducer
        assert isinstance(reducer, TopK)
        for step in range(22):
            feedback(gradient(wire.rank, step), wire)
        allocated = reducer.densities()
        for step in range(22, 30):
            feedback(gradient(wire.rank, step), wire)
        before = wire.ledger.copy()
        feedback(gradient(wire.rank, 30), wire)
        sent = wire.ledger.since(before).payload["indices"] // 4
        return allocated, reducer.densities(), reducer.report()["density_asked"], sent

    for allocated, halved, asked, sent in simulate(2, work):
        assert all(0.025 <= density <= 0.1 for density in allocated)  # 0.1 has become 0.05
        assert len(set(allocated)) > 1
        assert halved == pytest.approx([density / 2 for density in allocated])
        assert asked < 0.05
        assert abs(sent - asked * N) < len(SHAPES)


def test_an_allocation_decides_over_the_whole_vector() -> None:
    for name in OPTIONS:
        assert registry.load("reducers", name)(**SOON).decides_by == "vector"
        assert registry.load("reducers", name)().decides_by == "group"


def test_in_a_hybrid_the_sparsifier_alone_has_an_allocation() -> None:
    both = registry.load("reducers", "topk+qsgd")(**SOON)
    assert both.sparsifier.allocation is not None
    assert both.quantiser.allocation is None
    for name in ("sage+qsgd", "hadamard+qsgd", "topk+server"):
        with pytest.raises(TypeError, match="takes no option 'allocation'"):
            registry.load("reducers", name)(**SOON)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("topk", {"allocation": "greedy"}, r"allocation='greedy': expected uniform or lgreco"),
        ("topk", {"budget": 0.0}, r"budget=0\.0: expected a finite number above 0, or none"),
        ("topk", {"allocation_every": 0}, r"allocation_every=0: expected 1 step or more"),
        ("powersgd", {"allocation_alpha": 0.0}, r"allocation_alpha=0\.0: expected a number above 0"),
        ("qsgd", {"allocation_error": "l1"}, r"allocation_error='l1': expected norm or square"),
        ("qsgd", {**SOON, "coding": "elias"}, r"allocation='lgreco' with coding='elias': expected coding="),
    ],
)
def test_an_option_out_of_range_is_refused_with_the_allowed_range(
    name: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        registry.load("reducers", name)(**options)
