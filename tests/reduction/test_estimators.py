"""Laws of the memories that send the difference of a gradient from an estimate."""
# N = elements of the flat vector, W = ranks

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import memories
from sage.reducers.exact import Exact
from sage.reducers.gtopk import GTopK
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.estimators import ESTIMATING, Estimator
from sage.reduction.layout import Layout
from sage.reduction.reducer import Memory, Reducer
from sage.testing.harness import LEAST, same_bits

N = 20
STEPS = 6
A, ETA = 0.25, 0.125


def feedback(reducer: Reducer, memory: Memory = "ef21", n: int = N, **options: Any) -> ErrorFeedback:
    return ErrorFeedback(
        reducer, Layout.of([("w", (n,))], reducer.grouping), memory=memory, **{"a": A, "eta": ETA, **options}
    )


def estimates(of: ErrorFeedback) -> Estimator:
    assert of.estimator is not None
    return of.estimator


def gradient(rank: int, step: int, n: int = N) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(100 * step + rank))


def reductions(
    make: Callable[[], ErrorFeedback], world_size: int = 2, seen: Callable[[ErrorFeedback], Any] | None = None
) -> list[list[tuple[Tensor, Any]]]:
    """Of each rank, of each step: the vector to step with, and what `seen` returns after it."""

    def work(wire: Wire) -> list[tuple[Tensor, Any]]:
        of, found = make(), []
        for step in range(STEPS):
            mean_N = of(gradient(wire.rank, step), wire).mean_N.clone()
            found.append((mean_N, seen(of) if seen else None))
        return found

    return simulate(world_size, work)


def by_hand(memory: str, compress: Callable[[Tensor], Tensor], world_size: int) -> list[Tensor]:
    """The vectors to step with, by the papers' formulas in double precision, with h as a mean of all h_i."""
    h_WN, v_WN, e_WN = (torch.zeros(world_size, N, dtype=torch.float64) for _ in range(3))
    found = []
    for step in range(STEPS):
        g_WN = torch.stack([gradient(rank, step).double() for rank in range(world_size)])
        signal_WN = g_WN - h_WN
        if memory == "ef21-sgdm":
            v_WN = (1 - A) * v_WN + A * g_WN
            signal_WN = v_WN - h_WN
        elif memory == "econtrol":
            signal_WN = ETA * e_WN + g_WN - h_WN
        c_WN = torch.stack([compress(signal_N) for signal_N in signal_WN])
        e_WN = e_WN + g_WN - h_WN - c_WN
        before_N = h_WN.mean(0)
        h_WN = h_WN + (A if memory == "diana" else 1) * c_WN
        found.append(before_N + c_WN.mean(0) if memory == "diana" else h_WN.mean(0))
    return found


def largest(x_N: Tensor) -> Tensor:
    """The four elements of the largest magnitude."""
    at = x_N.abs().topk(4).indices
    return torch.zeros_like(x_N).index_copy_(0, at, x_N[at])


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("memory", ESTIMATING)
def test_steps_are_those_of_the_papers_formulas(memory: Memory, world_size: int) -> None:
    expected = by_hand(memory, largest, world_size)
    for rank in reductions(lambda: feedback(GTopK(density=0.2), memory), world_size):
        for (mean_N, _), expected_N in zip(rank, expected, strict=True):
            torch.testing.assert_close(mean_N, expected_N.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", ESTIMATING)
def test_if_everything_is_sent_the_step_is_that_of_sgd(memory: Memory) -> None:
    v_N = torch.zeros(N)
    for step, (mean_N, _) in enumerate(reductions(lambda: feedback(Exact(), memory))[0]):
        expected_N = (gradient(0, step) + gradient(1, step)) / 2
        v_N = (1 - A) * v_N + A * expected_N
        torch.testing.assert_close(mean_N, v_N if memory == "ef21-sgdm" else expected_N, rtol=1e-4, atol=1e-5)


def test_with_estimates_that_stay_at_zero_ef21_is_the_bare_reducer() -> None:
    def forget(of: ErrorFeedback) -> None:
        for x_N in estimates(of).buffers():
            x_N.zero_()

    ours = reductions(lambda: feedback(GTopK(density=0.2)), seen=forget)
    bare = reductions(lambda: feedback(GTopK(density=0.2), "none"))
    for (ours_N, _), (bare_N, _) in zip(ours[0], bare[0], strict=True):
        assert same_bits(ours_N, bare_N)


def conserving() -> list[str]:
    """The reducers that estimates go with."""
    made = {name: registry.load("reducers", name)() for name in registry.names("reducers")}
    return [name for name, reducer in made.items() if reducer.conserves and not reducer.needs_squares]


@pytest.mark.parametrize("name", [*conserving(), "topk+terngrad", "sage+qsgd"])
def test_with_every_reducer_ranks_agree_and_estimates_are_means_at_the_bytes_of_no_memory(name: str) -> None:
    shapes = [("a", (20, 15)), ("b", (7,))]
    kinds: tuple[Memory, ...] = ("none", *ESTIMATING)

    def work(wire: Wire) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for memory in kinds:
            reducer = registry.load("reducers", name)()
            layout = Layout.of(shapes, reducer.grouping)
            of = ErrorFeedback(reducer, layout, memory=memory)
            payloads, means, scale = [], [], 0.0
            for step in range(4):
                before, grad_N = wire.ledger.copy(), gradient(wire.rank, step, layout.numel)
                scale = max(scale, float(grad_N.abs().max()))
                means.append(of(grad_N, wire).mean_N.clone())
                payloads.append(dict(wire.ledger.since(before).payload))
            own_N = None if of.estimator is None else of.estimator.own_N.clone()
            common_N = None if of.estimator is None else of.estimator.common_N.clone()
            found[memory] = payloads, means, own_N, common_N, reducer.precision * scale
        return found

    ranks = simulate(2, work)
    for memory in kinds:
        (_, means, *_), (_, others, *_) = (rank[memory] for rank in ranks)
        assert all(same_bits(a, b) for a, b in zip(means, others, strict=True))
    for memory in ESTIMATING:
        of_ranks = [rank[memory] for rank in ranks]
        assert same_bits(of_ranks[0][3], of_ranks[1][3])
        off_N = (of_ranks[0][2] + of_ranks[1][2]) / 2 - of_ranks[0][3]
        assert float(off_N.abs().max()) <= 4 * 4 * of_ranks[0][4] + LEAST  # four steps, of growing signals
        if memory != "ef21-sgdm":  # whose first signal is a part of the gradient
            assert all(rank[memory][0][0] == rank["none"][0][0] for rank in ranks)


@settings(max_examples=15, deadline=None)
@given(
    scales=st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3),
    memory=st.sampled_from(ESTIMATING),
    density=st.sampled_from([0.05, 0.3, 1.0]),
)
def test_the_common_estimate_is_the_mean_of_the_ranks_estimates(
    scales: list[float], memory: Memory, density: float
) -> None:
    def work(wire: Wire) -> tuple[Tensor, Tensor]:
        of = feedback(GTopK(density=density), memory)
        for step in range(STEPS):
            of(gradient(wire.rank, step) * scales[wire.rank], wire)
        return estimates(of).own_N, estimates(of).common_N

    ranks = simulate(3, work)
    assert all(same_bits(common_N, ranks[0][1]) for _, common_N in ranks)
    mean_N = torch.stack([own_N.double() for own_N, _ in ranks]).mean(0)
    torch.testing.assert_close(ranks[0][1].double(), mean_N, rtol=0, atol=1e-5 * max(scales))


# Unequal data: f_i(x) = ½ (x − b_i)ᵀ A_i (x − b_i) with diagonal A_i, full gradients, a constant step.


def distance(memory: Memory, world_size: int, *, reducer: Callable[[], Reducer], lr: float = 0.1) -> float:
    """Distance to the optimum of the mean of f_i after 300 steps, relative to the norm of the optimum."""
    generator = torch.Generator().manual_seed(0)
    a_WN = 0.5 + 1.5 * torch.rand(world_size, N, generator=generator)
    b_WN = 10 * torch.randn(world_size, N, generator=generator)
    optimum_N = (a_WN * b_WN).sum(0) / a_WN.sum(0)

    def work(wire: Wire) -> Tensor:
        of, x_N = feedback(reducer(), memory), torch.zeros(N)
        for _ in range(300):
            x_N -= lr * of(a_WN[wire.rank] * (x_N - b_WN[wire.rank]), wire).mean_N
        return x_N

    first_N, *others = simulate(world_size, work)
    assert all(same_bits(x_N, first_N) for x_N in others)
    return float((first_N - optimum_N).norm() / optimum_N.norm())


@pytest.mark.parametrize("world_size", [2, 3])
def test_with_unequal_data_estimates_reach_the_optimum_and_the_bare_compressor_and_a_residual_do_not(
    world_size: int,
) -> None:
    off = {
        memory: distance(memory, world_size, reducer=lambda: GTopK(density=0.2))
        for memory in get_args(Memory)
        if memory not in ("momentum", "union")
    }
    assert off["none"] > 0.1
    assert off["residual"] > 0.02
    assert {memory: off[memory] for memory in ESTIMATING if off[memory] > 1e-4} == {}


def test_diana_with_an_unbiased_quantiser_reaches_the_optimum_and_the_bare_quantiser_does_not() -> None:
    make = registry.load("reducers", "terngrad")
    bare, diana = (distance(memory, 2, reducer=make, lr=0.05) for memory in ("none", "diana"))
    assert diana < 1e-4 < 1e-2 < bare


# State, options and refusals.


@pytest.mark.parametrize("memory", ESTIMATING)
def test_estimates_resume_from_their_state_to_the_bit(memory: Memory) -> None:
    def work(wire: Wire) -> bool:
        whole, first, second = (feedback(GTopK(density=0.2), memory) for _ in range(3))
        for step in range(3):
            whole(gradient(wire.rank, step), wire)
            first(gradient(wire.rank, step), wire)
        second.load_state_dict(first.state_dict())
        pairs = [
            (whole(gradient(wire.rank, step), wire).mean_N, second(gradient(wire.rank, step), wire).mean_N)
            for step in range(3, 6)
        ]
        return all(same_bits(a, b) for a, b in pairs)

    assert all(simulate(2, work))


@pytest.mark.parametrize("memory", ["none", "residual", "momentum", "union"])
def test_the_state_of_other_memories_has_no_estimates(memory: Memory) -> None:
    names = feedback(GTopK(density=0.2), memory).state_dict()
    assert not [name for name in names if name.startswith("estimator")]


@pytest.mark.parametrize("memory", ESTIMATING)
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("signsgd", {}, "with the reducer signsgd, whose mean is not the mean of what the ranks sent"),
        ("signum", {}, "with the reducer signum, whose mean is not the mean of what the ranks sent"),
        ("variance", {}, "with the reducer variance, "),
        ("topk", {"beta": 0.5}, "has no residual, and its option beta is 0.5: set it to 1"),
        ("topk", {"gamma": 2.0}, "has no residual, and its option gamma is 2.0: set it to 1"),
        ("topk", {"lr_ratio": True}, "has no residual, and its option lr_ratio is True: set it to False"),
        ("topk", {"a": 0.0}, "a=0.0 of the memory: expected a number above 0 and at most 1"),
        ("topk", {"eta": 1.5}, "eta=1.5 of the memory: expected a number above 0 and at most 1"),
    ],
)
def test_what_estimates_do_not_go_with_is_refused(
    memory: Memory, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        feedback(registry.load("reducers", name)(), memory, **options)


def test_a_run_can_choose_every_memory() -> None:
    assert get_args(memories.Memory) == get_args(Memory)
    assert memories.ESTIMATING == ESTIMATING
