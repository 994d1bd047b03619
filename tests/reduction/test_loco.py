"""The memory `loco`: a residual in 8 bits, its size, its error, and its state by parameter."""
# N = elements of the flat vector

import pytest
import torch
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.mount import state
from sage.mount.flat import Flat
from sage.reduction.error_feedback import ErrorFeedback, MemoryOptions
from sage.reduction.layout import Layout
from sage.reduction.loco import BLOCK

SHAPES = (("w", (30, 40)), ("v", (700,)))
N = 1900
ALL: MemoryOptions = {"loco_beta": 0.0, "reset_every": 1000}


def feedback(
    reducer: str = "topk", shapes: tuple[tuple[str, tuple[int, ...]], ...] = SHAPES
) -> ErrorFeedback:
    return ErrorFeedback(registry.load("reducers", reducer)(), Layout.of(shapes), memory="loco", **ALL)


def kept_by(feedback: ErrorFeedback) -> Tensor:
    kept_N = feedback.residual()
    assert kept_N is not None
    return kept_N


def gradient(step: int, rank: int = 0) -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(100 * step + rank))


def block_scales(x_N: Tensor) -> Tensor:
    """The largest magnitude of each element's block (N)."""
    blocks = [block for part in x_N.split([1200, 700]) for block in part.split(BLOCK)]
    return torch.cat([block.abs().max().expand(len(block)) for block in blocks])


def test_the_state_is_a_byte_for_each_element_and_a_scale_for_each_block() -> None:
    plain = ErrorFeedback(registry.load("reducers", "topk")(), Layout.of(SHAPES), memory="residual")
    theirs, ours = (sum(x.nbytes for x in kept.buffers()) for kept in (plain, feedback()))
    assert theirs - 4 * N == ours - (N + 4 * (5 + 3)) - 8  # beside the step, both have the last learning rate


@settings(max_examples=examples(8), deadline=None)
@given(st.sampled_from(["topk", "int8", "onebit", "powersgd"]), st.integers(0, 99))
def test_with_beta_0_it_is_the_residual_up_to_half_a_step_of_8_bits(reducer: str, seed: int) -> None:
    def work(wire: Wire) -> tuple[Tensor, Tensor]:
        ours = feedback(reducer)
        plain = ErrorFeedback(registry.load("reducers", reducer)(), Layout.of(SHAPES), memory="residual")
        for step in range(3):
            assert plain.residual_N is not None
            plain.residual_N.copy_(kept_by(ours))
            left, right = (kept(gradient(seed + step, wire.rank), wire) for kept in (ours, plain))
            assert torch.equal(left.mean_N, right.mean_N)
        return kept_by(ours), kept_by(plain)

    for ours_N, plain_N in simulate(2, work):
        assert bool(((ours_N - plain_N).abs() <= block_scales(plain_N) / 254 * 1.001).all())


def test_it_is_a_moving_average_that_is_dropped_every_t_steps() -> None:
    kept = ErrorFeedback(
        registry.load("reducers", "topk")(),
        Layout.of(SHAPES),
        memory="loco",
        loco_beta=0.75,
        reset_every=3,
    )

    def work(wire: Wire) -> list[float]:
        off = []
        for step in range(4):
            before_N, grad_N = kept_by(kept), gradient(step)
            signal_N = before_N + grad_N
            at_K = kept(grad_N, wire).sent
            assert at_K is not None
            after_N = kept_by(kept)
            signal_N[at_K] = 0
            wanted_N = torch.zeros(N) if step == 2 else 0.75 * before_N + 0.25 * signal_N
            off.append(float(((after_N - wanted_N).abs() - block_scales(wanted_N) / 253).max()))
        return off

    assert max(simulate(1, work)[0]) <= 0


def test_the_state_moves_with_its_parameters_to_other_buckets() -> None:
    def flat(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Flat:
        reducer = registry.load("reducers", "topk")()
        return Flat(
            shapes,
            reducer,
            dtype=torch.float32,
            device=torch.device("cpu"),
            memory="loco",
            memory_options=ALL,
        )

    def work(wire: Wire) -> None:
        both = flat(SHAPES)
        both.grad_N.copy_(gradient(0))
        both(wire)
        saved = state.by_parameter(both)
        own_N = kept_by(both.feedback)
        for shape, own in zip(SHAPES, own_N.split([1200, 700]), strict=True):
            alone = flat((shape,))
            state.restore(alone, saved)
            assert torch.equal(kept_by(alone.feedback), own)
        reverse = flat(SHAPES[::-1])
        state.restore(reverse, saved)
        assert torch.equal(kept_by(reverse.feedback), torch.cat(own_N.split([1200, 700])[::-1]))

    simulate(1, work)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"loco_beta": 1.0}, "loco_beta=1.0 of the memory: expected a number of at least 0 and below 1"),
        ({"reset_every": 0}, "reset_every=0 of the memory: expected 1 step or more"),
    ],
)
def test_options_out_of_range_are_refused(options: MemoryOptions, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ErrorFeedback(registry.load("reducers", "topk")(), Layout.of(SHAPES), memory="loco", **options)
