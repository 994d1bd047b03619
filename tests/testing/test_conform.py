"""Tests that each invariant is broken by a reducer with one fault, and that `sage conform` reports it."""
# N = elements of the flat vector, K = elements sent, W = world size

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sage import registry
from sage.comm.transport import WireError
from sage.comm.wire import Wire
from sage.reducers.exact import Exact
from sage.reducers.gtopk import GTopK
from sage.reducers.sage import Sage
from sage.reducers.threshold import Threshold
from sage.reducers.topk import TopK
from sage.reduction.reducer import Reduced, Reducer, Sparsifier
from sage.testing import conformance
from sage.testing.conformance import INVARIANTS
from sage.testing.harness import Broken, Case


class RanksDisagree(TopK):
    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        reduced = super().forward(grad_N, residual_N, wire)
        return Reduced(reduced.mean_N + 1e-7 * wire.rank, reduced.sent, reduced.density)


class RanksReportDifferentDensities(Threshold):
    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        reduced = super().forward(grad_N, residual_N, wire)
        assert reduced.sent is not None
        return Reduced(reduced.mean_N, reduced.sent, reduced.sent.numel() / grad_N.numel())


class AddsWhatItSent(TopK):
    """The residual has the wrong sign: a + sent instead of a − sent."""

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        assert residual_N is not None
        signal_N = residual_N + grad_N
        reduced = super().forward(grad_N, residual_N, wire)
        residual_N[reduced.sent] = 2 * signal_N[reduced.sent]
        return reduced


class DoesNotDivide(TopK):
    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        reduced = super().forward(grad_N, residual_N, wire)
        return Reduced(reduced.mean_N * wire.world_size, reduced.sent, reduced.density)


class DropsDuplicates(TopK):
    """If two ranks send the same element, the later one overwrites the earlier."""

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        assert residual_N is not None
        values_K, at_K = self.take(grad_N, residual_N, wire)
        values_WK, at_WK = wire.gather(values=values_K, indices=at_K)
        grad_N.zero_()[at_WK.view(-1).long()] = values_WK.view(-1)
        return Reduced(grad_N / wire.world_size, at_K, at_K.numel() / grad_N.numel())


class SplitsEvenly(Threshold):
    """As if all ranks had sent equal numbers of elements: the last few are dropped."""

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        assert residual_N is not None
        values_K, at_K = self.take(grad_N, residual_N, wire)
        counts, (values_M, at_M) = wire.gather_uneven(values=values_K, indices=at_K)
        even = wire.world_size * (sum(counts) // wire.world_size)
        grad_N.zero_().index_add_(0, at_M[:even], values_M[:even])
        return Reduced(grad_N / wire.world_size, at_K, sum(counts) / wire.world_size / grad_N.numel())


class ShortIndices(TopK):
    """Indices are sent as 16 bits."""

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        assert residual_N is not None
        values_K, at_K = self.take(grad_N, residual_N, wire)
        values_WK, at_WK = wire.gather(values=values_K, indices=at_K.to(torch.uint16))
        grad_N.zero_().index_add_(0, at_WK.view(-1).int(), values_WK.view(-1))
        return Reduced(grad_N / wire.world_size, at_K, at_K.numel() / grad_N.numel())


class OmitsGroupStarts(GTopK):
    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        values_K, at_K = super().take(grad_N, residual_N, wire)
        starts_G = torch.tensor([start for start, _ in self.layout.groups] or [0], dtype=torch.int32)
        return values_K, at_K - starts_G[torch.bucketize(at_K, starts_G, right=True) - 1]


class DividesByTheNorm(TopK):
    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        reduced = super().forward(grad_N, residual_N, wire)
        norm = reduced.mean_N.norm()
        return Reduced(reduced.mean_N / norm * norm, reduced.sent, reduced.density)


class NeverSendsEverything(TopK):
    def bind(self, layout: Any) -> None:
        super().bind(layout)
        self.density_G.clamp_(max=0.9)


class ReportsTheTargetDensity(Sage):
    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        reduced = super().forward(grad_N, residual_N, wire)
        return Reduced(reduced.mean_N, reduced.sent, self.density)


class ReportsAnIndexTwice(TopK):
    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        reduced = super().forward(grad_N, residual_N, wire)
        assert reduced.sent is not None
        return Reduced(reduced.mean_N, torch.cat((reduced.sent, reduced.sent[:1])), reduced.density)


class OmitsPadding(Threshold):
    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return {"values": 4 * counts[rank], "indices": 4 * counts[rank], "sizes": 8}


class OmitsIndices(TopK):
    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return {"values": 4 * counts[rank]}


class CountsItsOwnBytes(Exact):
    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        wire.ledger.add("sum", {}, (8, 8))
        return super().forward(grad_N, residual_N, wire)


class ComparesWithSign(Sparsifier):
    """x ≥ λ instead of |x| ≥ λ."""

    even = False

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        return (signal_N >= 0.1).nonzero().view(-1)


class IgnoresNan(Sparsifier):
    """No NaN is above a threshold."""

    even = False

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        return (signal_N.abs() >= 0.1).nonzero().view(-1)


class KeepsNan(TopK):
    """What was sent is subtracted from the residual, but NaN − NaN is NaN."""

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        assert residual_N is not None
        signal_N = residual_N + grad_N
        reduced = super().forward(grad_N, residual_N, wire)
        residual_N[reduced.sent] = signal_N[reduced.sent] - signal_N[reduced.sent]
        return reduced


class NeverRecovers(TopK):
    """After one NaN, every mean is NaN."""

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        reduced = super().forward(grad_N, residual_N, wire)
        self.seen = getattr(self, "seen", 0.0) + float(reduced.mean_N.sum()) * 0
        return Reduced(reduced.mean_N + self.seen, reduced.sent, reduced.density)


class KeepsItsStepOutOfTheState(Sparsifier):
    """Sends the even elements, then the odd ones; which of them is missing from the state."""

    step = 0

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        self.step += 1
        return torch.arange(signal_N.numel())[self.step % 2 :: 2]


class Reseeds(TopK):
    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        return super().take(grad_N, residual_N, wire)


class DrawsFromNumpy(TopK):
    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        np.random.rand()
        return super().take(grad_N, residual_N, wire)


class DrawsFromPython(TopK):
    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        random.random()
        return super().take(grad_N, residual_N, wire)


class SendsAllAndReportsAQuarter(Exact):
    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        return Reduced(super().forward(grad_N, residual_N, wire).mean_N, density=0.25)


BREAKS: list[tuple[Callable[[Case], None], type[Reducer]]] = [
    (conformance.ranks_agree, RanksDisagree),
    (conformance.ranks_agree, RanksReportDifferentDensities),
    (conformance.nothing_is_lost, AddsWhatItSent),
    (conformance.nothing_is_lost, DoesNotDivide),
    (conformance.nothing_is_lost, DropsDuplicates),
    (conformance.uneven_ranks_lose_nothing, SplitsEvenly),
    (conformance.far_elements_keep_their_indices, ShortIndices),
    (conformance.every_grouping_keeps_the_invariants, OmitsGroupStarts),
    (conformance.edge_cases_are_handled, DividesByTheNorm),
    (conformance.density_one_is_all_reduce, NeverSendsEverything),
    (conformance.density_is_the_share_sent, ReportsTheTargetDensity),
    (conformance.density_is_the_share_sent, ReportsAnIndexTwice),
    (conformance.density_is_the_share_sent, SendsAllAndReportsAQuarter),
    (conformance.ledger_equals_bytes_by_hand, OmitsPadding),
    (conformance.ledger_equals_bytes_by_hand, OmitsIndices),
    (conformance.one_rank_sends_nothing, CountsItsOwnBytes),
    (conformance.negative_values_are_sent, ComparesWithSign),
    (conformance.nan_reaches_every_mean, IgnoresNan),
    (conformance.nan_reaches_every_mean, KeepsNan),
    (conformance.nan_reaches_every_mean, NeverRecovers),
    (conformance.resumed_equals_uninterrupted, KeepsItsStepOutOfTheState),
    (conformance.global_random_state_is_unchanged, Reseeds),
    (conformance.global_random_state_is_unchanged, DrawsFromNumpy),
    (conformance.global_random_state_is_unchanged, DrawsFromPython),
]


@pytest.mark.parametrize(("invariant", "mutant"), BREAKS, ids=lambda part: part.__name__)
def test_a_reducer_with_one_fault_breaks_the_invariant_for_it(
    invariant: Callable[[Case], None], mutant: type[Reducer]
) -> None:
    # Indices that occur twice are refused by error feedback, before the invariant sees them.
    expected = ValueError if mutant is ReportsAnIndexTwice else Broken
    with pytest.raises(expected):
        invariant(Case(mutant, {}, 3, memory="residual"))


def test_every_invariant_has_a_reducer_that_breaks_it() -> None:
    assert {invariant for invariant, _ in BREAKS} == set(INVARIANTS)


class CallsACollectiveOnSomeRanks(TopK):
    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if wire.rank == 0:
            wire.mean(torch.zeros(1))
        return super().forward(grad_N, residual_N, wire)


@pytest.mark.parametrize(
    "invariant",
    [invariant for invariant in INVARIANTS if invariant is not conformance.one_rank_sends_nothing],
)
def test_a_collective_that_only_some_ranks_call_is_an_error_and_does_not_hang(
    invariant: Callable[[Case], None],
) -> None:
    with pytest.raises(WireError, match=r"the ranks' collectives differ|for ranks that have ended"):
        invariant(Case(CallsACollectiveOnSomeRanks, {}, 3))


# The command.


def row(output: str, invariant: Callable[[Case], None]) -> list[str]:
    """The verdicts on an invariant in the table."""
    (line,) = [
        line for line in output.splitlines() if invariant.__name__.replace("_", " ") in line and "│" in line
    ]
    return [cell.strip() for cell in line.split("│")[2:-1]]


def conformed(
    make: type[Reducer],
    world_sizes: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[int, str]:
    """The exit status and the output for an external reducer."""
    monkeypatch.setattr(registry, "load", lambda kind, name: make)
    status = conformance.main("mine", {}, world_sizes)
    return status, capsys.readouterr().out


def test_conform_reports_which_invariants_were_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main("gtopk", {"density": 0.05}, [1, 2]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"gtopk: {len(INVARIANTS)} invariants: {len(INVARIANTS)} kept\n")
    for invariant in INVARIANTS:
        assert row(output, invariant) == ["n/a" if invariant is conformance.ranks_agree else "kept", "kept"]
    assert "not checked: agreement needs two or more ranks (ranks agree)" in output


def test_conform_reports_what_was_observed_if_an_invariant_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, output = conformed(DoesNotDivide, [1, 2], capsys, monkeypatch)
    assert status == 1
    num_broken = sum("broken" in row(output, invariant) for invariant in INVARIANTS)
    assert output.startswith(f"mine: {len(INVARIANTS)} invariants: {num_broken} broken, ")
    assert num_broken > 1
    assert (
        "broken: nothing_is_lost, W = 2, memory residual: Broken: step 0: the mean of what was sent is off by"
        in output
    )
    assert "W = 1, memory" not in output


@pytest.mark.parametrize("part", [1e-7, 1.0])
def test_a_mean_that_differs_between_ranks_is_reported_whatever_the_difference(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, part: float
) -> None:
    class Differs(Exact):
        conserves = False

        def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
            reduced = super().forward(grad_N, residual_N, wire)
            return Reduced(reduced.mean_N * (1 + part * wire.rank))

    status, output = conformed(Differs, [1, 2], capsys, monkeypatch)
    assert status == 1
    assert row(output, conformance.ranks_agree) == ["n/a", "broken"]


class StatesLittle(GTopK):
    """Keeps every invariant that can be checked, and states nothing for the others."""

    conserves = False
    rounds = True

    def payload(self, counts: list[int], rank: int) -> None:
        return None


def test_unchecked_invariants_are_not_reported_as_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, output = conformed(StatesLittle, [2], capsys, monkeypatch)
    assert status == 0
    assert output.startswith(f"mine: {len(INVARIANTS)} invariants: 5 in part, 6 kept, 1 not stated, 2 n/a\n")
    assert row(output, conformance.ledger_equals_bytes_by_hand) == ["not stated"]
    assert (
        row(output, conformance.nothing_is_lost)
        == row(output, conformance.density_one_is_all_reduce)
        == ["n/a"]
    )
    assert row(output, conformance.uneven_ranks_lose_nothing) == ["in part"]
    for reason in ("payload() states no bytes", "conserves = False", "rounds = True"):
        assert f"not checked: {reason}" in output or f"the reducer states {reason}" in output


def test_a_quantiser_without_memory_is_checked_in_part(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert conformance.main("efsignsgd", {}, [2]) == 0
    output = capsys.readouterr().out
    assert row(output, conformance.nothing_is_lost) == ["in part"]
    assert row(output, conformance.density_one_is_all_reduce) == ["n/a"]


def test_conform_reports_wrong_options_as_the_users_error() -> None:
    with pytest.raises(ValueError, match=r"density=2\.0: expected a share"):
        conformance.main("topk", {"density": 2.0}, [2])
    with pytest.raises(ValueError, match=r"world_sizes is \[0, 2\]; allowed are"):
        conformance.main("topk", {}, [0, 2])
