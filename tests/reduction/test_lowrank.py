"""Tests of the low-rank reducers: formulas by hand, error feedback, and PyTorch's own hooks."""
# N = elements of the flat vector

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from gloo import processes
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reducers.accordion_powersgd import AccordionPowerSgd
from sage.reducers.atomo import Atomo, probabilities
from sage.reducers.powersgd import PowerSgd
from sage.reducers.svd import Svd
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.reduction.lowrank import orthonormalise
from sage.testing.conformance import INVARIANTS
from sage.testing.harness import Case, same_bits, steps

WIDE = (("wide", (6, 4)),)
MIXED = (("w", (12, 9)), ("scale", (9,)), ("conv", (8, 3, 3)), ("small", (2, 2)))
DENSE = [*range(108, 117), *range(189, 193)]
"""Two matrices that are factored to rank 2 or 3, and two parameters that are sent dense."""


def gradient(rank: int, step: int, shapes: Any = MIXED) -> Tensor:
    dice = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(Layout.of(shapes).numel, generator=dice)


def means(reducer: Callable[[], Any], gradients: list[Tensor], shapes: Any = WIDE) -> list[Tensor]:
    """The reductions of a single rank for successive gradients, with error feedback."""

    def work(wire: Wire) -> list[Tensor]:
        feedback = ErrorFeedback(reducer(), Layout.of(shapes, "layer"))
        return [feedback(grad_N.clone(), wire).mean_N.clone() for grad_N in gradients]

    return simulate(1, work)[0]


# Bases.


def test_orthonormal_columns_span_what_the_columns_spanned() -> None:
    x = gradient(0, 0, WIDE).view(6, 4).double()
    basis = orthonormalise(x, 0.0)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4).double())
    torch.testing.assert_close(basis @ (basis.T @ x), x)
    # Each is made of the columns before it and itself, on the same side.
    assert torch.linalg.qr(x).Q.abs().allclose(basis.abs())
    assert bool(((basis * x).sum(0) > 0).all())


def test_columns_that_are_parallel_except_for_rounding_become_zero() -> None:
    column = gradient(0, 0, (("w", (1000,)),))
    other = gradient(1, 0, (("w", (1000,)),))
    basis = orthonormalise(torch.stack((column, 3 * column, other, other + column / 7), 1), 1e-8)
    torch.testing.assert_close(basis.T @ basis, torch.diag(torch.tensor([1.0, 0.0, 1.0, 0.0])))


def test_columns_that_are_almost_parallel_become_orthogonal_to_rounding() -> None:
    column, other = (gradient(rank, 0, (("w", (1000,)),)) for rank in range(2))
    basis = orthonormalise(torch.stack((column, column + other * 1e-4), 1), 0.0)
    assert abs(float(basis[:, 0] @ basis[:, 1])) < 1e-6


def test_a_column_of_zeros_stays_zero_and_eps_shortens_columns_of_its_length() -> None:
    x = torch.tensor([[0.0, 3.0], [0.0, 4.0]])
    assert orthonormalise(x, 1e-8).tolist() == [[0.0, pytest.approx(0.6)], [0.0, pytest.approx(0.8)]]
    assert orthonormalise(torch.tensor([[3e-8], [4e-8]]), 5e-8).view(-1).tolist() == pytest.approx([0.3, 0.4])


# PowerSGD by hand.


def test_a_matrix_of_rank_r_is_sent_exactly_in_one_step_without_residual() -> None:
    left, right = gradient(0, 0).view(-1)[:12].view(6, 2), gradient(1, 0).view(-1)[:8].view(2, 4)
    signal_N = (left @ right).view(-1)
    (mean_N,) = means(lambda: PowerSgd(rank=2, min_compression_rate=0), [signal_N])
    torch.testing.assert_close(mean_N, signal_N)


def test_the_steps_are_those_of_algorithm_1_in_double_precision() -> None:
    options: dict[str, Any] = {"rank": 2, "sample_seed": 5, "min_compression_rate": 0.0}
    reducer = PowerSgd(**options)
    reducer.bind(Layout.of(WIDE))
    q = reducer.q_F.view(4, 2).double()
    residuals = [torch.zeros(6, 4).double() for _ in range(3)]
    case = Case(PowerSgd, options, 3)
    seen = steps(case, lambda rank, step: gradient(rank, step, WIDE), count=4, shapes=WIDE)
    for step in range(4):
        signals = [gradient(r, step, WIDE).view(6, 4).double() + residuals[r] for r in range(3)]
        # Algorithm 1: Q is not made orthonormal, and P is, by QR here.
        p = torch.linalg.qr(torch.stack([m @ q for m in signals]).mean(0)).Q
        q = torch.stack([m.T @ p for m in signals]).mean(0)
        residuals = [m - p @ q.T for m in signals]
        for rank in range(3):
            left_N = seen[rank][step].left_N
            assert left_N is not None
            torch.testing.assert_close(seen[rank][step].mean_N, (p @ q.T).float().view(-1))
            torch.testing.assert_close(left_N, residuals[rank].float().view(-1), atol=1e-5, rtol=1e-5)


def test_iterations_of_one_step_are_those_of_as_many_steps_on_the_same_matrices() -> None:
    def last(iterations: int, count: int) -> list[Tensor]:
        options: dict[str, Any] = {"rank": 2, "iterations": iterations, "min_compression_rate": 0.0}
        case = Case(PowerSgd, options, 3, memory="none")
        seen = steps(case, lambda rank, step: gradient(rank, 0, WIDE), count=count, shapes=WIDE)
        return [rank[-1].mean_N for rank in seen]

    for once, often in zip(last(4, 1), last(1, 4), strict=True):
        torch.testing.assert_close(once, often)
    # They converge to the best approximation of rank 2 of the mean.
    mean = torch.stack([gradient(rank, 0, WIDE) for rank in range(3)]).mean(0).view(6, 4)
    u, s, vt = torch.linalg.svd(mean, full_matrices=False)
    best = (u[:, :2] * s[:2]) @ vt[:2]
    near, far = last(60, 1)[0], last(1, 1)[0]
    torch.testing.assert_close(near, best.reshape(-1), rtol=1e-3, atol=1e-3)
    assert float((far - best.reshape(-1)).norm()) > 0.1


@pytest.mark.parametrize("law", INVARIANTS, ids=lambda law: law.__name__)
def test_powersgd_keeps_the_invariants_with_several_iterations(law: Any) -> None:
    law(Case(PowerSgd, {"rank": 2, "iterations": 2}, 2, memory="residual"))


def test_half_steps_compute_p_and_q_alternately() -> None:
    reducer = PowerSgd(rank=2, half=True, min_compression_rate=0)
    reducer.bind(Layout.of(WIDE))
    q = reducer.q_F.view(4, 2).double()
    residual, p = torch.zeros(6, 4).double(), torch.zeros(6, 2).double()
    gradients = [gradient(0, step, WIDE) for step in range(4)]
    seen = means(lambda: PowerSgd(rank=2, half=True, min_compression_rate=0), gradients)
    for step, grad_N in enumerate(gradients):
        m = grad_N.view(6, 4).double() + residual
        if step % 2 == 0:
            q = torch.linalg.qr(q).Q
            p = m @ q
        else:
            p = torch.linalg.qr(p).Q
            q = m.T @ p
        residual = m - p @ q.T
        torch.testing.assert_close(seen[step], (p @ q.T).float().view(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("half", [False, True])
def test_powersgd_is_exact_until_its_start_and_then_as_if_it_had_begun_there(half: bool) -> None:
    gradients = [gradient(0, step) for step in range(6)]
    delayed = means(lambda: PowerSgd(start_step=3, half=half), gradients, MIXED)
    assert all(same_bits(a, b) for a, b in zip(delayed[:3], gradients[:3], strict=True))
    undelayed = means(lambda: PowerSgd(half=half), gradients[3:], MIXED)
    assert all(same_bits(a, b) for a, b in zip(delayed[3:], undelayed, strict=True))


def test_vectors_and_matrices_that_would_not_shrink_are_sent_dense() -> None:
    case = Case(PowerSgd, {"rank": 2}, 2)
    seen = steps(case, gradient, count=2, shapes=MIXED)
    for step in range(2):
        exact_N = (gradient(0, step) + gradient(1, step)) / 2
        assert same_bits(seen[0][step].mean_N[DENSE], exact_N[DENSE])
        assert not torch.isclose(seen[0][step].mean_N[:108], exact_N[:108]).all()
        for rank in range(2):
            left_N = seen[rank][step].left_N
            assert left_N is not None
            assert not left_N[DENSE].any()
            assert left_N[:108].all()


def test_a_matrix_is_factored_only_if_it_reaches_the_minimum_compression_rate() -> None:
    # 6 × 4 at rank 1: 10 elements for 24.
    for rate, sent in [(2.3, 10), (2.4, 24), (0.0, 10)]:
        reducer = PowerSgd(min_compression_rate=rate)
        reducer.bind(Layout.of(WIDE))
        assert reducer.payload([24], 0) == {"values": 4 * sent}


def test_more_steps_on_one_matrix_come_closer_to_its_best_approximation() -> None:
    signal_N = gradient(0, 0, WIDE)
    u, s, v = torch.linalg.svd(signal_N.view(6, 4), full_matrices=False)
    best_N = (s[0] * u[:, :1] @ v[:1]).view(-1)

    def work(wire: Wire) -> list[float]:
        reducer = PowerSgd()
        reducer.bind(Layout.of(WIDE))
        return [float((reducer(signal_N.clone(), None, wire).mean_N - best_N).norm()) for _ in range(60)]

    off = simulate(1, work)[0]
    assert off[0] > off[3] > off[10]
    assert off[-1] < 1e-4 * off[0]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("odd", [0.0, 1e-30, float("nan"), float("inf")])
def test_powersgd_recovers_from_gradients_without_a_direction(odd: float, half: bool) -> None:
    def work(wire: Wire) -> tuple[list[Tensor], Tensor]:
        reducer = PowerSgd(rank=4, min_compression_rate=0, half=half)
        reducer.bind(Layout.of(WIDE))
        for _ in range(3):
            reducer(torch.full((24,), odd), None, wire)
        signal_N = gradient(0, 0, WIDE)
        return [reducer(signal_N.clone(), None, wire).mean_N.clone() for _ in range(2)], signal_N

    (seen, signal_N) = simulate(1, work)[0]
    # Rank 4 is the full rank, so that two steps suffice.
    torch.testing.assert_close(seen[1], signal_N, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"half": True, "rank": 2}, {"start_step": 4, "rank": 3}])
@pytest.mark.parametrize("law", INVARIANTS, ids=lambda law: law.__name__)
def test_powersgd_keeps_the_invariants_in_half_steps_and_before_its_start(
    law: Callable[[Case], None], options: dict[str, Any]
) -> None:
    law(Case(PowerSgd, options, 3, memory="residual"))


def test_all_p_are_sent_in_one_all_reduce_and_all_q_in_another() -> None:
    def calls(half: bool) -> dict[str, int]:
        def work(wire: Wire) -> dict[str, int]:
            reducer = PowerSgd(half=half)
            reducer.bind(Layout.of(MIXED))
            reducer(gradient(wire.rank, 0), None, wire)
            return dict(wire.ledger.calls)

        return simulate(2, work)[0]

    assert calls(half=False) == {"sum": 2}
    assert calls(half=True) == {"sum": 1}


# Accordion over PowerSGD.


def test_accordion_gives_layers_the_high_rank_while_their_gradients_change() -> None:
    def work(wire: Wire) -> list[list[int]]:
        reducer = AccordionPowerSgd(rank=1, rank_high=3, switch_every=1, min_compression_rate=0)
        reducer.bind(Layout.of((("a", (6, 4)), ("bias", (5,)), ("b", (4, 6))), "layer"))
        found = []
        for epoch in range(5):
            reducer.begin_epoch(epoch, 0.1, wire)
            grad_N = gradient(0, 0, (("all", (53,)),))
            grad_N[29:] *= 2 if epoch >= 3 else 1
            mean_N = reducer(grad_N, None, wire).mean_N
            matrices = [mean_N[:24].view(6, 4), mean_N[29:].view(4, 6)]
            ranks = [int(torch.linalg.matrix_rank(x, rtol=1e-4)) for x in matrices]
            assert ranks == reducer.ranks()
            found.append(ranks)
        return found

    # Epoch 0 is critical, epoch 1 has nothing to compare with; in epoch 3 b grows, which the next one sees.
    assert simulate(2, work) == [[[3, 3], [3, 3], [1, 1], [1, 1], [1, 3]]] * 2


def test_in_critical_regimes_accordion_is_powersgd_of_the_high_rank() -> None:
    gradients = [gradient(0, step) for step in range(3)]
    high = means(lambda: AccordionPowerSgd(rank=1, rank_high=3), gradients, MIXED)
    assert all(
        same_bits(a, b) for a, b in zip(high, means(lambda: PowerSgd(rank=3), gradients, MIXED), strict=True)
    )


# SVD and ATOMO.


def cut(signal: Tensor, rank: int) -> Tensor:
    """The best approximation of that rank, by numpy in double precision."""
    u, s, v = np.linalg.svd(signal.double().numpy(), full_matrices=False)
    return torch.from_numpy((u[:, :rank] * s[:rank]) @ v[:rank]).float()


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_svd_is_the_mean_of_every_ranks_own_best_approximation(rank: int) -> None:
    case = Case(Svd, {"rank": rank, "min_compression_rate": 0.0}, 3)
    seen = steps(case, lambda r, step: gradient(r, step, WIDE), count=2, shapes=WIDE)
    for step in range(2):
        best = []
        for result in seen:
            signal = result[step].signal_N.view(6, 4)
            best.append(cut(signal, rank).view(-1))
            left_N = result[step].left_N
            assert left_N is not None
            torch.testing.assert_close(left_N, signal.reshape(-1) - best[-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(seen[0][step].mean_N, sum(best, torch.zeros(24)) / 3, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "rank", "expected"),
    [
        ([4.0, 2.0, 1.0, 1.0], 1, [0.5, 0.25, 0.125, 0.125]),
        ([4.0, 2.0, 1.0, 1.0], 2, [1.0, 0.5, 0.25, 0.25]),
        ([9.0, 1.0, 1.0, 0.0], 2, [1.0, 0.5, 0.5, 0.0]),
        ([8.0, 4.0, 1.0, 1.0], 3, [1.0, 1.0, 0.5, 0.5]),
        ([2.0, 1.0, 0.0], 3, [1.0, 1.0, 0.0]),
        ([0.0, 0.0], 1, [0.0, 0.0]),
    ],
)
def test_atomo_draws_by_singular_value_and_always_the_largest(
    values: list[float], rank: int, expected: list[float]
) -> None:
    assert probabilities(torch.tensor(values), rank).tolist() == expected


def test_atomo_is_unbiased_and_sends_the_given_number_on_average() -> None:
    signal_N, draws = gradient(0, 0, WIDE), 800
    s_K = torch.linalg.svdvals(signal_N.view(6, 4))
    p_K = probabilities(s_K, 2)

    def work(wire: Wire) -> tuple[Tensor, float, int]:
        reducer = Atomo(rank=2, min_compression_rate=0)
        reducer.bind(Layout.of(WIDE))
        total_N, squares = torch.zeros(24), 0.0
        for _ in range(draws):
            mean_N = reducer(signal_N.clone(), None, wire).mean_N
            total_N += mean_N
            squares += float((mean_N - signal_N).square().sum())
        return total_N / draws, squares / draws, wire.ledger.payload["scales"] // 4

    mean_N, variance, sent = simulate(1, work)[0]
    # The atoms are orthogonal, so that the variance is the sum of theirs.
    expected = float((s_K**2 * (1 / p_K - 1)).sum())
    assert variance == pytest.approx(expected, rel=0.1)
    assert float((mean_N - signal_N).norm()) < 3 * (expected / draws) ** 0.5
    assert sent / draws == pytest.approx(2, rel=0.05)


def test_atomo_draws_differently_on_every_rank_and_at_every_step() -> None:
    case = Case(Atomo, {"min_compression_rate": 0.0}, 2)
    seen = steps(case, lambda rank, step: gradient(0, 0, WIDE), count=8, shapes=WIDE)
    sent = [[step.payload.get("scales", 0) for step in result] for result in seen]
    assert sent[0] != sent[1]
    assert len(set(sent[0])) > 1


# The parameter server.


def test_ps_computes_the_mean_of_exact_with_all_traffic_at_rank_0() -> None:
    def work(wire: Wire) -> tuple[Tensor, dict[str, int], tuple[int, int]]:
        mean_N = registry.load("reducers", "ps")()(gradient(wire.rank, 0), None, wire).mean_N
        return mean_N, dict(wire.ledger.calls), (wire.ledger.sent, wire.ledger.received)

    n = Layout.of(MIXED).numel
    result = simulate(4, work)
    exact_N = sum((gradient(rank, 0) for rank in range(1, 4)), gradient(0, 0)) / 4
    assert all(same_bits(mean_N, exact_N) for mean_N, _, _ in result)
    assert all(calls == {"gather_to 0": 1, "broadcast from 0": 1} for _, calls, _ in result)
    # The tree of the broadcast: 0 to 1 and 2, and 1 to 3.
    assert [link for *_, link in result] == [(8 * n, 12 * n), (8 * n, 4 * n), (4 * n, 4 * n), (4 * n, 4 * n)]


# Bytes by hand: conv 8 × 27, wide 40 × 20, bias 7.


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("ps", {}, [{"values": 4092}] * 2),
        # 8 + 27 and 40 + 20 elements, and bias.
        ("powersgd", {}, [{"values": 4 * (35 + 60 + 7)}] * 2),
        # At rank 4 that would be 140 of conv's 216 elements: more than half.
        ("powersgd", {"rank": 4}, [{"values": 4 * (216 + 4 * 60 + 7)}] * 2),
        ("powersgd", {"half": True}, [{"values": 4 * (8 + 40 + 7)}, {"values": 4 * (27 + 20 + 7)}]),
        ("powersgd", {"iterations": 3}, [{"values": 4 * (3 * (35 + 60) + 7)}] * 2),
        ("powersgd", {"start_step": 1}, [{"values": 4092}, {"values": 4 * (35 + 60 + 7)}]),
        # Epoch 0 is critical.
        ("accordion_powersgd", {"rank_high": 2}, [{"values": 4 * (2 * 35 + 2 * 60 + 7)}] * 2),
        ("svd", {"rank": 2}, [{"values": 4 * (2 * 35 + 2 * 60 + 7), "scales": 4 * 4}] * 2),
        # All 8 and all 20 singular values, with certainty.
        (
            "atomo",
            {"rank": 20, "min_compression_rate": 0.0},
            [{"values": 4 * (8 * 35 + 20 * 60 + 7), "scales": 4 * 28, "sizes": 24 + 2 * 4}] * 2,
        ),
    ],
)
def test_the_payload_bytes_equal_those_counted_by_hand(
    name: str, options: dict[str, Any], expected: list[dict[str, int]]
) -> None:
    case = Case(registry.load("reducers", name), options, 2)
    for result in steps(case, case.gradient, count=2):
        booked = [{kind: size for kind, size in step.payload.items() if size} for step in result]
        assert booked == expected


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("powersgd", {"rank": 0}, r"rank=0: expected a rank, 1 or more"),
        ("powersgd", {"start_step": -1}, r"start_step=-1: expected a number of steps, 0 or more"),
        ("powersgd", {"iterations": 0}, r"iterations=0, half=False: expected 1 or more"),
        (
            "powersgd",
            {"iterations": 2, "half": True},
            r"iterations=2, half=True: expected 1 or more; with half, 1",
        ),
        ("powersgd", {"eps": -1e-8}, r"eps=-1e-08: expected a length far below 1, 0 or more"),
        ("powersgd", {"min_compression_rate": float("inf")}, r"min_compression_rate=inf: expected a finite"),
        ("svd", {"rank": -1}, r"rank=-1: expected a rank, 1 or more"),
        ("atomo", {"min_compression_rate": -1.0}, r"min_compression_rate=-1\.0: expected a finite number"),
        ("accordion_powersgd", {"rank": 4, "rank_high": 2}, r"rank_high=2: expected at least rank=4"),
        ("accordion_powersgd", {"switch_every": 0}, r"switch_every=0: expected 1 epoch or more"),
    ],
)
def test_an_option_out_of_range_is_refused_with_the_allowed_range(
    name: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        registry.load("reducers", name)(**options)


# PyTorch's hooks, on two gloo processes.


class Bucket:
    """The methods of DDP's bucket that a hook uses; it contains all parameters."""

    def __init__(self, grad_N: Tensor) -> None:
        self._grad_N = grad_N

    def buffer(self) -> Tensor:
        return self._grad_N

    def gradients(self) -> list[Tensor]:
        return [self._grad_N[span.start : span.stop].view(span.shape) for span in Layout.of(MIXED).spans]

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True


@cache
def beside_hooks() -> list[dict[str, tuple[list[Tensor], list[Tensor]]]]:
    """By rank and method: our means and PyTorch's, of the same six gradients."""

    def powersgd(wire: Wire, rank: int) -> tuple[list[Tensor], list[Tensor]]:
        feedback = ErrorFeedback(
            PowerSgd(rank=rank, start_step=2, min_compression_rate=1.0, eps=0.0), Layout.of(MIXED)
        )
        state = PowerSGDState(None, rank, start_powerSGD_iter=2, min_compression_rate=1)
        # Its first Q would be other normal draws; it gets ours and need not draw.
        state.q_memory_dict[0] = feedback.reducer.get_buffer("q_F").clone()
        state.p_memory_dict[0] = torch.zeros((12 + 8) * rank)
        ours, theirs = [], []
        for step in range(6):
            ours.append(feedback(gradient(wire.rank, step), wire).mean_N.clone())
            bucket: Any = Bucket(gradient(wire.rank, step))
            theirs.append(powerSGD_hook(state, bucket).wait().clone())
        assert feedback.residual_N is not None
        return [*ours, feedback.residual_N], [*theirs, state.error_dict[0]]

    def work(wire: Wire) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
        return {
            "powersgd-1": powersgd(wire, 1),
            "powersgd-2": powersgd(wire, 2),
            "powersgd-3": powersgd(wire, 3),  # from 3 on, the hook calls QR
            "fp16": half(wire, "fp16", default_hooks.fp16_compress_hook),
            "bf16": half(wire, "bf16", default_hooks.bf16_compress_hook),
        }

    return processes(2, work)


def half(
    wire: Wire, name: str, hook: Callable[..., Any], **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """The means of three steps by the reducer, and by the hook."""
    ours, theirs = [], []
    for step in range(3):
        reducer = registry.load("reducers", name)(**options)
        ours.append(reducer(gradient(wire.rank, step), None, wire).mean_N)
        bucket: Any = Bucket(gradient(wire.rank, step))
        theirs.append(hook(None, bucket).wait())
    return ours, theirs


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_powersgd_computes_what_pytorchs_hook_does(rank: int) -> None:
    for result in beside_hooks():
        (*ours, left_N), (*theirs, error_N) = result[f"powersgd-{rank}"]
        for our_N, their_N in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our_N, their_N, atol=1e-5, rtol=1e-4)
        # The hook also feeds back by how much a rank's own dense gradients differ from the mean, which comes
        # to nothing in the next mean.
        assert not left_N[DENSE].any()
        error_N[DENSE] = 0
        torch.testing.assert_close(left_N, error_N, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_half_steps_are_bitwise_equal_to_pytorchs_hook(name: str) -> None:
    for result in beside_hooks():
        for our_N, their_N in zip(*result[name], strict=True):
            assert same_bits(our_N, their_N)


def test_sums_in_half_precision_are_bitwise_equal_to_pytorchs_hook() -> None:
    # The hook divides after the cast. By four, the same bits result.
    hooks = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}
    for rank in processes(4, lambda wire: [half(wire, name, hooks[name], sums="half") for name in hooks]):
        for ours, theirs in rank:
            assert all(map(same_bits, ours, theirs))
