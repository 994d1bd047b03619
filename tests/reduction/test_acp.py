"""Tests of ACP-SGD: its formulas in numpy, PyTorch's PowerSGD hook, its bytes and its residual."""
# N = elements of the flat vector

from typing import Any

import numpy as np
import pytest
import torch
from fuzz import examples
from gloo import processes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reducers.acp import Acp
from sage.reducers.powersgd import PowerSgd
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.testing.harness import Case, StepsByRank, steps

WIDE = (("wide", (6, 4)),)
SQUARE = (("square", (5, 5)),)
MIXED = (("w", (12, 9)), ("scale", (9,)), ("conv", (8, 3, 3)), ("small", (2, 2)))
ALL: dict[str, Any] = {"min_compression_rate": 0.0}
"""Factors matrices however small they are."""


def gradient(rank: int, step: int, shapes: Any = WIDE) -> Tensor:
    dice = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(Layout.of(shapes).numel, generator=dice)


def played(make: Any, options: dict[str, Any], shapes: Any, count: int, world_size: int = 3) -> StepsByRank:
    case = Case(make, options, world_size)
    return steps(case, lambda rank, step: gradient(rank, step, shapes), count=count, shapes=shapes)


def test_the_steps_are_those_of_the_paper_in_numpy() -> None:
    options = {"rank": 2, "sample_seed": 5, **ALL}
    reducer = Acp(**options)
    reducer.bind(Layout.of(WIDE))
    q: NDArray[np.float64] = reducer.q_F.double().numpy().reshape(4, 2)
    p = np.zeros((6, 2))
    residuals = [np.zeros((6, 4)) for _ in range(3)]
    seen = played(Acp, options, WIDE, count=5)
    for step in range(5):
        signals = [gradient(r, step).double().numpy().reshape(6, 4) + residuals[r] for r in range(3)]
        if step % 2 == 0:
            q = np.linalg.qr(q).Q
            own = [m @ q for m in signals]
            residuals = [m - each @ q.T for m, each in zip(signals, own, strict=True)]
            p = np.mean(own, axis=0)
        else:
            p = np.linalg.qr(p).Q
            own = [m.T @ p for m in signals]
            residuals = [m - p @ each.T for m, each in zip(signals, own, strict=True)]
            q = np.mean(own, axis=0)
        for rank in range(3):
            left_N = seen[rank][step].left_N
            assert left_N is not None
            mean = seen[rank][step].mean_N.numpy().reshape(6, 4)
            np.testing.assert_allclose(mean, p @ q.T, atol=1e-5)
            np.testing.assert_allclose(left_N.numpy().reshape(6, 4), residuals[rank], atol=1e-5)


def test_two_steps_on_one_matrix_are_a_step_of_pytorchs_powersgd_hook() -> None:
    def work(wire: Wire) -> list[tuple[Tensor, Tensor]]:
        reducer = Acp(rank=2, **ALL)
        reducer.bind(Layout.of(WIDE))
        state = PowerSGDState(
            None, 2, start_powerSGD_iter=2, min_compression_rate=0, use_error_feedback=False
        )
        state.iter = 2  # begin to compress
        state.q_memory_dict[0] = reducer.q_F.clone()
        state.p_memory_dict[0] = torch.zeros(12)
        found = []
        for _ in range(3):
            reducer(gradient(wire.rank, 0), None, wire)
            ours = reducer(gradient(wire.rank, 0), None, wire).mean_N.clone()
            bucket: Any = OneMatrix(gradient(wire.rank, 0))
            found.append((ours, powerSGD_hook(state, bucket).wait().clone()))
        return found

    for result in processes(2, work):
        for ours, theirs in result:
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


class OneMatrix:
    """The methods of DDP's bucket that the hook uses; it contains one parameter."""

    def __init__(self, grad_N: Tensor) -> None:
        self._grad_N = grad_N

    def buffer(self) -> Tensor:
        return self._grad_N

    def gradients(self) -> list[Tensor]:
        return [self._grad_N.view(6, 4)]

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True


def test_the_means_are_those_of_powersgds_half_steps_and_the_residuals_are_shorter() -> None:
    ours = played(Acp, {"rank": 2}, MIXED, count=4)
    half = played(PowerSgd, {"rank": 2, "half": True}, MIXED, count=4)
    for rank in range(3):
        for step in range(4):
            mine, other = ours[rank][step], half[rank][step]
            torch.testing.assert_close(mine.mean_N, other.mean_N, atol=1e-5, rtol=1e-4)
            assert mine.left_N is not None
            assert other.left_N is not None
            assert float(mine.left_N.norm()) < float(mine.signal_N.norm())
            if step == 0:  # of equal signals
                assert float(mine.left_N.norm()) < float(other.left_N.norm())


@given(seed=st.integers(0, 2**16), step=st.integers(1, 3))
@settings(max_examples=examples(5), deadline=None)
def test_of_full_rank_every_mean_is_exact(seed: int, step: int) -> None:
    options = {"rank": 5, "sample_seed": seed, **ALL}
    for result in played(Acp, options, SQUARE, count=step, world_size=2):
        exact_N = (gradient(0, step - 1, SQUARE) + gradient(1, step - 1, SQUARE)) / 2
        torch.testing.assert_close(result[-1].mean_N, exact_N, atol=1e-4, rtol=1e-4)


def test_an_even_step_sends_all_p_and_an_odd_step_all_q_which_is_half_of_powersgd() -> None:
    # Matrices of 12 × 9 and 8 × 9; scale, and small, which would not shrink, are dense.
    sent = [[step.payload for step in rank] for rank in played(Acp, {"rank": 2}, MIXED, count=4)]
    even, odd = {"values": 4 * (2 * (12 + 8) + 13)}, {"values": 4 * (2 * (9 + 9) + 13)}
    assert sent == [[even, odd, even, odd]] * 3

    def calls(wire: Wire) -> dict[str, int]:
        feedback = ErrorFeedback(Acp(rank=2), Layout.of(MIXED, "layer"))
        feedback(gradient(wire.rank, 0, MIXED), wire)
        return dict(wire.ledger.calls)

    assert simulate(2, calls) == [{"sum": 1}] * 2
    (first, *_), *_ = played(PowerSgd, {"rank": 2}, MIXED, count=1)
    dense = 4 * 13
    assert even["values"] + odd["values"] - 2 * dense == first.payload["values"] - dense


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"rank": 0}, r"rank=0: expected a rank, 1 or more"), ({"eps": 2.0}, r"eps=2\.0: expected a length")],
)
def test_an_option_out_of_range_is_refused_with_the_allowed_range(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Acp(**options)


# PowerSGD's iterations.


@given(seed=st.integers(0, 2**16), rows=st.integers(2, 7), columns=st.integers(2, 7), rank=st.integers(1, 3))
@settings(max_examples=examples(10), deadline=None)
def test_more_iterations_of_powersgd_never_have_a_larger_error(
    seed: int, rows: int, columns: int, rank: int
) -> None:
    # Each factor is the least-squares fit for the other, so that no half iteration can increase the error.
    shapes = (("w", (rows, columns)),)

    def grad_N(at: int) -> Tensor:
        return torch.randn(rows * columns, generator=torch.Generator().manual_seed(seed + at))

    def error(iterations: int) -> float:
        options = {"rank": rank, "iterations": iterations, "sample_seed": seed, **ALL}
        case = Case(PowerSgd, options, 2, memory="none")
        (step,), _ = steps(case, lambda at, _: grad_N(at), count=1, shapes=shapes)
        return float((step.mean_N - (grad_N(0) + grad_N(1)) / 2).norm())

    errors = [error(iterations) for iterations in (1, 2, 3, 6)]
    for fewer, more in zip(errors, errors[1:], strict=False):
        assert more <= fewer + 1e-5
