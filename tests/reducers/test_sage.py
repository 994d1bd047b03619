"""Tests of SAGE with every controller and exchange: invariants, bytes by hand, and the sent elements."""
# N = elements of the flat vector, W = world size

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import processes
from torch import Tensor

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reducers.gtopk import GTopK
from sage.reducers.sage import Sage
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.exchange import EXCHANGES, TRIALS, Auto, capacity
from sage.reduction.layout import Layout
from sage.testing.conformance import (
    INVARIANTS,
    density_is_the_share_sent,
    ranks_agree,
    uneven_ranks_lose_nothing,
)
from sage.testing.harness import Case, same_bits

VARIANTS: list[dict[str, Any]] = [
    *({"exchange": exchange} for exchange in EXCHANGES),
    *(
        {"controller": controller, "agree": agree}
        for controller in ("sage", "feedback")
        for agree in (False, True)
    ),
    {"agree": True, "exchange": "uneven"},
    {"controller": "sage", "exchange": "chunks"},
    {"controller": "feedback", "exchange": "exclusive"},
    {"exchange": "union", "values": "fp16"},
    *({"density_schedule": schedule} for schedule in ("warmup", "linear", "cosine", "accordion")),
    {"density_schedule": "budget", "budget": 1e6},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: " ".join(map(str, options.values())))
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_variant_keeps_every_invariant(options: dict[str, Any], world_size: int) -> None:
    for invariant in INVARIANTS:
        invariant(Case(Sage, options, world_size, memory="residual"))


def test_every_variant_agrees_and_loses_nothing_on_gloo_processes() -> None:
    def work(wire: Wire) -> list[str]:
        def run(world_size: int, work: Callable[[Wire], Any]) -> list[Any]:
            own = work(wire)
            everybody: list[Any] = [None] * world_size
            dist.all_gather_object(everybody, own)
            return everybody

        complaints = []
        for options in VARIANTS:
            for invariant in (ranks_agree, uneven_ranks_lose_nothing, density_is_the_share_sent):
                try:
                    invariant(Case(Sage, options, wire.world_size, run, memory="residual"))
                except Exception as error:
                    complaints.append(f"{options}: {invariant.__name__}: {error}")
        return complaints

    assert processes(3, work, guard=True)[0] == []


def reduced(world_size: int, options: dict[str, Any], gradients: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
    """Mean and indices sent, by rank and step, of gradients of shape (steps, W, N)."""

    def work(wire: Wire) -> list[tuple[Tensor, Tensor]]:
        layout = Layout.of([("w", (gradients.shape[2],))])
        feedback = ErrorFeedback(Sage(**options), layout, memory="residual")
        seen = []
        for step in gradients:
            step_seen = feedback(step[wire.rank].clone(), wire)
            assert step_seen.sent is not None
            seen.append((step_seen.mean_N.clone(), step_seen.sent))
        return seen

    return simulate(world_size, work)


def heavy(steps: int, world_size: int, n: int) -> Tensor:
    """Gradients with heavy tails; each rank's are twice as large as those of the previous rank."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(steps, world_size, n, generator=generator).exp()
    x *= torch.randn(steps, world_size, n, generator=generator)
    return x * 2.0 ** torch.arange(world_size).view(1, -1, 1)


# Controllers, through the reducer.


def test_the_quantile_sends_what_top_k_sends() -> None:
    gradients = heavy(6, 2, 3000)

    def by_top_k(wire: Wire) -> list[Tensor]:
        feedback = ErrorFeedback(GTopK(density=0.01), Layout.of([("w", (3000,))]), memory="residual")
        return [feedback(step[wire.rank].clone(), wire).mean_N.clone() for step in gradients]

    expected = simulate(2, by_top_k)
    seen = reduced(2, {"density": 0.01}, gradients)
    for rank in range(2):
        for (mean_N, at_K), expected_N in zip(seen[rank], expected[rank], strict=True):
            assert at_K.numel() == 30
            assert same_bits(mean_N, expected_N)


def test_ranks_that_agree_send_the_largest_elements_of_all_of_them() -> None:
    gradients = heavy(8, 4, 5000)
    own = reduced(4, {"density": 0.01}, gradients)
    common = reduced(4, {"density": 0.01, "agree": True}, gradients)
    for step in range(8):
        counts = [common[rank][step][1].numel() for rank in range(4)]
        assert sum(counts) == pytest.approx(4 * 50, rel=0.03)
        assert counts == sorted(counts)
        assert counts[3] > 5 * counts[0]
        assert {own[rank][step][1].numel() for rank in range(4)} == {50}
    largest = gradients[0].abs().flatten().topk(200).values.min()
    least = gradients[0, 3][common[3][0][1]].abs().min()
    assert float(least) == pytest.approx(float(largest), rel=0.02)


@pytest.mark.parametrize(("controller", "step"), [("sage", 1), ("feedback", 0)])
def test_ranks_that_agree_have_the_geometric_mean_of_their_thresholds(controller: str, step: int) -> None:
    # The first step of the published rule is the same everywhere; ranks differ from the second one on.
    gradients = heavy(step + 1, 3, 3000)

    def thresholds(agree: bool) -> list[float]:
        def work(wire: Wire) -> float:
            reducer = Sage(density=0.01, controller=controller, agree=agree)  # type: ignore[arg-type]
            feedback = ErrorFeedback(reducer, Layout.of([("w", (3000,))]), memory="none")
            for each in gradients:
                feedback(each[wire.rank].clone(), wire)
            return reducer.report()["threshold"]

        return simulate(3, work)

    own, common = thresholds(agree=False), thresholds(agree=True)
    assert len(set(own)) == 3
    assert common == pytest.approx([math.prod(own) ** (1 / 3)] * 3)


def test_feedback_uses_the_density_of_all_ranks() -> None:
    # Rank 1 has zeros: if rank 0 used only its own density, it would send half as much.
    gradients = heavy(60, 2, 4000)
    gradients[:, 1] = 0
    seen = reduced(2, {"density": 0.01, "controller": "feedback", "threshold": 5.0}, gradients)
    late = [seen[0][step][1].numel() for step in range(40, 60)]
    assert 60 < sum(late) / len(late) < 100


# Exchanges.


@pytest.mark.parametrize("controller", ["quantile", "sage"])
def test_every_kind_of_gather_gives_a_bitwise_identical_mean(controller: str) -> None:
    gradients = heavy(2 * TRIALS + 3, 3, 2000)
    options = {"density": 0.02, "controller": controller, "agree": True}
    expected = reduced(3, options, gradients)
    for exchange in ("uneven", "auto"):
        for ours, theirs in zip(
            reduced(3, {**options, "exchange": exchange}, gradients), expected, strict=True
        ):
            for (mean_N, _), (expected_N, _) in zip(ours, theirs, strict=True):
                assert same_bits(mean_N, expected_N)


def test_auto_makes_the_same_choice_on_every_rank_and_keeps_it() -> None:
    def work(wire: Wire) -> tuple[list[float], dict[str, int], int | None]:
        exchange = Auto()
        result = []
        for step in range(2 * TRIALS + 4):
            before = wire.ledger.copy()
            exchange.gather(torch.ones(1 + wire.rank), torch.arange(1 + wire.rank).int(), wire, 0.1, 10)
            # By the clock of rank 1 the padded way, and by that of the others the uneven one, was slower.
            slow = (step % 2 == 0) == (wire.rank == 1)
            exchange._seconds[step % 2] = 2.0 - wire.rank / 2 if slow else 0.1
            result.append(float(wire.ledger.since(before).payload["padding"]))
        return result, dict(wire.ledger.calls), exchange.choice

    seen = simulate(3, work)
    # The slowest rank had 1.5 s for the padded way (rank 1), 2 s for the uneven one (rank 0).
    assert [choice for *_, choice in seen] == [0, 0, 0]
    assert seen[0][0] == [16.0, 0.0] * TRIALS + [16.0] * 4
    assert all(calls["gather_ragged"] == TRIALS for _, calls, _ in seen)


def test_a_chunk_has_room_for_the_density_and_sends_the_largest_if_more_are_selected() -> None:
    gradients = heavy(1, 2, 1000)
    seen = reduced(
        2, {"density": 0.05, "controller": "sage", "threshold": 1.0, "exchange": "chunks"}, gradients
    )
    assert capacity(0.05, 1000) == 51
    for rank in range(2):
        ((_, at_K),) = seen[rank]
        assert (gradients[0, rank].abs() >= 1.0).sum() > 51
        assert at_K.tolist() == gradients[0, rank].abs().topk(51).indices.sort().values.tolist()


def test_a_union_sends_all_ranks_values_where_any_rank_has_selected() -> None:
    gradients = heavy(1, 3, 1000)
    seen = reduced(3, {"density": 0.02, "exchange": "union"}, gradients)
    own = [set(gradients[0, rank].abs().topk(20).indices.tolist()) for rank in range(3)]
    union = sorted(own[0] | own[1] | own[2])
    for ((mean_N, at_U),) in seen:
        assert at_U.tolist() == union
        torch.testing.assert_close(mean_N[union], gradients[0].mean(0)[union])
        assert int(mean_N.count_nonzero()) == len(union)


def test_exclusive_parts_move_on_each_step() -> None:
    grad_N = torch.zeros(9)
    grad_N[:3] = torch.tensor([1.0, 2.0, 3.0])

    def work(wire: Wire) -> list[int]:
        layout = Layout.of([("w", (9,))])
        feedback = ErrorFeedback(Sage(density=1 / 3, exchange="exclusive"), layout, memory="none")
        indices = []
        for _ in range(4):
            before = wire.ledger.copy()
            sent = feedback(grad_N.clone(), wire).sent
            assert sent is not None
            assert sent.tolist() == [2]
            indices.append(wire.ledger.since(before).payload["indices"])
        return indices

    # The nonzero elements are in the first part, which is rank 0's, then rank 2's, rank 1's, rank 0's.
    assert simulate(3, work) == [[4, 0, 0, 4], [0, 0, 4, 0], [0, 4, 0, 0]]


# Targets, through the reducer.


def test_the_density_sent_follows_its_schedule() -> None:
    gradients = heavy(4, 1, 1000)
    options = {"density": 0.01, "density_schedule": "linear", "density_from": 0.1, "density_steps": 3}
    (seen,) = reduced(1, options, gradients)
    assert [at_K.numel() for _, at_K in seen] == [100, 70, 40, 10]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"threshold": 1.0}, "this controller has no initial threshold"),
        ({"exchange": "carrier pigeon"}, "expected padded, uneven, auto, chunks, union, exclusive"),
        ({"agree": True, "exchange": "exclusive"}, "use only one of the two"),
        ({"density_schedule": "sine"}, "expected constant, warmup, linear, cosine, accordion, budget"),
        ({"density_schedule": "warmup", "density_from": 0.001}, r"expected at least density=0\.01"),
        ({"density_steps": 0}, "expected 1 step or more"),
        ({"density_schedule": "budget"}, "requires a budget above 0"),
        ({"density_schedule": "budget", "budget": -1.0}, "requires a budget above 0"),
        ({"budget": 1.0}, "other schedules take none"),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Sage(**options)


def test_agreeing_on_a_quantile_takes_the_bytes_that_the_option_documents() -> None:
    gradients = heavy(2, 2, 3000)

    def work(wire: Wire) -> list[int]:
        feedback = ErrorFeedback(Sage(agree=True), Layout.of([("w", (3000,))]), memory="none")
        scales = []
        for step in gradients:
            before = wire.ledger.copy()
            feedback(step[wire.rank].clone(), wire)
            scales.append(wire.ledger.since(before).payload["scales"])
        return scales

    first, second = simulate(2, work)[0]
    # At first one bin for each exponent, then 16 for the bins that are too coarse.
    assert first in [1024 + 64 * finer for finer in range(1, 6)]
    assert second in [64, 128]
