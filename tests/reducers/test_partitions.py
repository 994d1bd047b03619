"""Tests of deft, cltk, oktopk, micro and exdyna: selection per rank, payload, and no build-up of elements."""
# N = elements of the flat vector, W = world size, k = elements that the density asks for

import itertools
import math
from collections.abc import Callable
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
from sage.reducers.cltk import Cltk
from sage.reducers.deft import Deft, allocate, pack, split
from sage.reducers.exdyna import ExDyna, balanced
from sage.reducers.micro import Micro, factor
from sage.reducers.oktopk import OkTopk
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.reduction.reducer import Reduced
from sage.testing.conformance import INVARIANTS
from sage.testing.harness import SHAPES, Case, same_bits, steps

EXCLUSIVE: list[type[Micro] | type[Deft]] = [Micro, ExDyna, Deft]
N = 4096


def normal(rank: int, step: int, n: int = N) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(1000 * step + rank))


def play(
    make: Callable[[], Any],
    world_size: int,
    count: int,
    gradient: Callable[[int, int], Tensor] = normal,
    *,
    see: Callable[[ErrorFeedback, Reduced, Wire], Any],
    memory: Any = None,
    shapes: Any = (("w", (N,)),),
) -> list[list[Any]]:
    """`see(feedback, reduced, wire)` after each of `count` steps, by rank."""

    def work(wire: Wire) -> list[Any]:
        reducer = make()
        feedback = ErrorFeedback(reducer, Layout.of(shapes, reducer.grouping), memory=memory)
        seen = []
        for step in range(count):
            reduced = feedback(gradient(wire.rank, step).clone(), wire)
            seen.append(see(feedback, reduced, wire))
        return seen

    return simulate(world_size, work)


# Exclusive parts.


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("make", EXCLUSIVE)
def test_the_number_of_elements_does_not_grow_if_each_rank_selects_in_its_own_part(
    make: Any, world_size: int
) -> None:
    selected: list[list[int]] = [[] for _ in range(world_size)]

    class Watched(make):  # type: ignore[misc]
        def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
            at_K: Tensor = super().select(signal_N, wire)
            selected[wire.rank].append(at_K.numel())
            return at_K

        def take(
            self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire
        ) -> tuple[Tensor, Tensor]:  # of those that do not select first
            values_K, at_K = super().take(grad_N, residual_N, wire)
            selected[wire.rank].append(at_K.numel())
            return values_K, at_K

    seen = play(
        lambda: Watched(density=0.05),
        world_size,
        6,
        shapes=SHAPES,
        see=lambda f, r, w: round(r.density * 1023),
        gradient=lambda rank, step: normal(rank, step, 1023),
    )
    assert seen[0] == [sum(counts) for counts in zip(*selected, strict=True)]
    assert min(seen[0]) > 0


@pytest.mark.parametrize("make", EXCLUSIVE)
def test_every_rank_sends_and_clears_its_values_where_any_rank_has_selected(make: Any) -> None:
    def see(feedback: ErrorFeedback, reduced: Reduced, wire: Wire) -> tuple[Tensor, Tensor, Tensor]:
        assert feedback.residual_N is not None
        assert reduced.sent is not None
        return reduced.sent.clone(), reduced.mean_N.clone(), feedback.residual_N.clone()

    ranks = play(lambda: make(density=0.05), 3, 1, see=see)
    ((sent, mean_N, _),) = ranks[0]
    expected_N = torch.stack([normal(rank, 0) for rank in range(3)]).mean(0)
    assert torch.allclose(mean_N[sent], expected_N[sent], atol=1e-6)
    assert int(mean_N.count_nonzero()) == sent.numel()
    for rank, ((_, _, residual_N),) in enumerate(ranks):
        left_N = normal(rank, 0)
        left_N[sent] = 0
        assert same_bits(residual_N, left_N)


# MiCRO.


def test_micro_selects_in_the_current_part() -> None:
    def see(feedback: ErrorFeedback, reduced: Reduced, wire: Wire) -> tuple[int, int]:
        micro = feedback.reducer
        assert isinstance(micro, Micro)
        return micro.part(8, wire)

    # After a step the next one's: ranks 0, 1, 2 move on by a part, of 8/3 elements, each.
    parts = [(0, 2), (2, 5), (5, 8)]
    assert play(lambda: Micro(density=0.1), 3, 3, see=see) == [
        [parts[(step + 1 + rank) % 3] for step in range(3)] for rank in range(3)
    ]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(1.2, 1.005), (1.1, 1.00125), (1.01, 1.00125), (1.0, 1.0), (0.95, 0.99875), (0.9, 0.995), (0.0, 0.995)],
)
def test_the_threshold_moves_by_the_density_s_error(error: float, expected: float) -> None:
    assert factor(error) == expected


def test_micro_starts_at_the_threshold_given_or_at_the_published_one() -> None:
    for threshold, expected in ((None, 1 / (2 * 40**0.5)), (0.3, 0.3)):
        reducer = Micro(density=0.01, threshold=threshold, start="published")
        reducer.bind(Layout.of([("w", (4096,))]))
        assert reducer.report() == {"density_asked": 0.01, "threshold": pytest.approx(expected)}


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("make", [Micro, ExDyna])
def test_the_first_threshold_is_the_mean_of_the_ranks_own_quantiles(make: Any, scale: float) -> None:
    def see(feedback: ErrorFeedback, reduced: Reduced, wire: Wire) -> tuple[float, float, int]:
        result = feedback.reducer.report()["threshold"]
        return result, reduced.density, wire.ledger.payload["scales"]

    ranks = play(lambda: make(density=0.05), 2, 2, lambda r, s: (r + 1) * scale * normal(r, s), see=see)
    own = [float((rank + 1) * scale * normal(rank, 0).abs().topk(204).values.min()) for rank in range(2)]
    for rank in ranks:
        threshold, density, booked = rank[0]
        assert threshold == pytest.approx(sum(own) / 2)
        assert density == pytest.approx(0.05, rel=0.5)  # their scales are 1 and 2
        assert booked == rank[1][2] == 8  # the quantile is gathered once
        assert rank[1][0] == threshold * factor(density / (204 / 4096))


@pytest.mark.parametrize("first", [0.0, float("inf")])
@pytest.mark.parametrize("make", [Micro, ExDyna])
def test_a_first_gradient_without_a_threshold_sends_little_and_the_next_one_is_used(
    make: Any, first: float
) -> None:
    def gradient(rank: int, step: int) -> Tensor:
        if step:
            return normal(rank, step)
        grad_N = torch.zeros(N)
        grad_N[:300] = first  # more than the target of 204
        grad_N[0] = 1.0
        return grad_N

    seen = play(
        lambda: make(density=0.05),
        2,
        2,
        gradient,
        memory="none",
        see=lambda f, r, w: (r.density * N, float(f.reducer.get_buffer("threshold"))),
    )
    # All elements that are not finite, or else the only element that is not 0.
    assert [step[0] for step in seen[0]][0] == (299 if first else 1)
    expected = sum(float(normal(rank, 1).abs().topk(204).values.min()) for rank in range(2)) / 2
    assert seen[0][1][0] == pytest.approx(204, rel=0.3)
    assert seen[0][1][1] == pytest.approx(expected, rel=0.006)  # the threshold has changed once


@pytest.mark.parametrize("make", [Micro, ExDyna])
def test_the_reported_threshold_is_the_one_that_the_step_used(make: Any) -> None:
    result = play(
        lambda: make(density=0.5, threshold=1.0),
        1,
        2,
        lambda rank, step: torch.tensor([2.0, 1.5]),
        memory="none",
        shapes=(("w", (2,)),),
        see=lambda f, r, w: f.reducer.report()["threshold"],
    )[0]
    assert result == [1.0, pytest.approx(1.005)]


@pytest.mark.parametrize("make", [Micro, ExDyna])
def test_the_density_settles_at_the_target(make: Any) -> None:
    # Of N(0, 1), without memory, |x| ≥ 1.96 is the right threshold.
    had = play(
        lambda: make(density=0.05, threshold=2.1), 2, 200, memory="none", see=lambda f, r, w: r.density
    )[0]
    assert sum(had[40:]) / 160 == pytest.approx(0.05, rel=0.03)


def test_a_threshold_recovers_after_many_zero_gradients() -> None:
    reducer = Micro(density=0.5)
    reducer.bind(Layout.of([("w", (64,))]))
    reducer.threshold.fill_(1e-37)
    mean_N, wire = torch.zeros(64), Wire(0, 2)
    for _ in range(5000):
        reducer.learn([0, 0], mean_N, wire)
    assert float(reducer.threshold) > 0
    silent = float(reducer.threshold)
    reducer.learn([32, 32], mean_N, wire)
    assert float(reducer.threshold) > silent


# ExDyna.


def parts_of(feedback: ErrorFeedback, reduced: Reduced, wire: Wire) -> tuple[int, int]:
    exdyna = feedback.reducer
    assert isinstance(exdyna, ExDyna)
    return exdyna.part(feedback.reducer.layout.numel, wire)


@pytest.mark.parametrize("n", [4, 5, 31, 1023, 1025, 40_000])
@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_exdynas_parts_are_never_empty_and_cover_the_vector(world_size: int, n: int) -> None:
    def lopsided(rank: int, step: int) -> Tensor:
        return normal(rank, step, n) * torch.linspace(0, 10, n)

    ranks = play(lambda: ExDyna(density=0.1), world_size, 12, lopsided, shapes=(("w", (n,)),), see=parts_of)
    for step in zip(*ranks, strict=True):
        parts = sorted(step)
        assert parts[0][0] == 0
        assert parts[-1][1] == n
        assert all(stop == start for (_, stop), (start, _) in zip(parts, parts[1:], strict=False))
        assert all(start < stop for start, stop in parts)


def test_exdyna_repartitions_if_a_run_resumes_with_another_number_of_ranks() -> None:
    reducer = ExDyna()
    reducer.bind(Layout.of([("w", (N,))]))
    for world_size in (4, 2, 3):
        parts = sorted(reducer.part(N, Wire(rank, world_size)) for rank in range(world_size))
        assert parts[-1][1] == N
        # As many blocks, of 4 elements, each as it can be.
        assert [start for start, _ in parts] == [
            4 * (1024 * part // world_size) for part in range(world_size)
        ]


def test_exdynas_blocks_have_32_elements_or_the_given_number() -> None:
    sizes = {}
    for n in (10, 1024, 32_768, 70_001, 1024 * 100):
        reducer = ExDyna()
        reducer.bind(Layout.of([("w", (n,))]))
        sizes[n] = reducer._size, reducer.owner_B.numel()
    assert sizes == {
        10: (1, 10),
        1024: (1, 1024),
        32_768: (32, 1024),
        70_001: (64, 1024),
        102_400: (96, 1024),
    }


def test_neighbours_move_a_block_until_their_loads_are_equal() -> None:
    assert balanced([8, 8, 8, 8], [40, 10, 10, 10]) == [7, 9, 8, 8]
    assert balanced([8, 8, 8, 8], [10, 10, 10, 40]) == [8, 8, 9, 7]
    assert balanced([8, 8], [104, 96]) == [8, 8]  # both within the band
    assert balanced([8, 8], [106, 94]) == [7, 9]
    assert balanced([8, 8, 8], [20, 10, 0]) == [7, 8, 9]
    assert balanced([2, 14], [100, 0]) == [2, 14]  # a quarter of an equal share is left
    assert balanced([8, 8], [0, 0]) == [8, 8]


def test_exdyna_balances_the_selections_of_the_ranks() -> None:
    # All of the weight lies in the first quarter, that is, in the first of three parts.
    scale_N = torch.where(torch.arange(N) < N // 4, 1.0, 0.01)
    loads: list[list[int]] = [[], [], []]

    class Watched(ExDyna):
        def learn(self, counts: list[int], mean_N: Tensor, wire: Wire) -> None:
            step = int(self.step) - 1
            for rank, count in enumerate(counts):
                loads[(step + rank) % 3].append(count)
            super().learn(counts, mean_N, wire)

    play(
        lambda: Watched(density=0.05, threshold=1.3, blocks=64),
        3,
        60,
        lambda rank, step: normal(rank, step) * scale_N,
        memory="none",
        see=lambda f, r, w: None,
    )
    means = [sum(load[-60:]) / 60 for load in loads]  # each rank has the counts of all: 180 entries per part
    assert loads[0][0] > 150
    assert loads[2][0] == 0
    assert max(means) < 1.3 * min(means)


# DEFT.


def test_layers_longer_than_an_equal_share_are_split() -> None:
    assert split([(0, 2), (2, 2), (2, 12)], 4) == [(0, 2), (2, 5), (5, 8), (8, 12)]
    assert split([(0, 9)], 9) == [(0, 9)]
    # Layers of 6 and 2 on 4 ranks: ours, and the authors' one piece a rank.
    assert [b - a for a, b in split([(0, 6), (6, 8)], 2)] == [2, 2, 2, 2]
    assert [b - a for a, b in split([(0, 6), (6, 8)], 2, num_pieces=4)] == [2, 2, 1, 1, 2]
    assert [b - a for a, b in split([(0, 6), (6, 8)], 1, num_pieces=8)] == [1] * 8
    assert split([], 1) == []


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 9), st.booleans())
def test_pieces_cover_every_layer_in_order_and_none_is_empty(sizes: list[int], world: int, by: bool) -> None:
    stops = list(itertools.accumulate(sizes))
    layers = list(zip([0, *stops], stops, strict=False))
    longest = sum(sizes) / world
    pieces = split(layers, longest, world if by else None)
    assert [stop for _, stop in pieces[:-1]] == [start for start, _ in pieces[1:]]
    assert all(start < stop for start, stop in pieces)
    assert sum(stop - start for start, stop in pieces) == sum(sizes)
    for start, stop in layers:
        inside = [piece for piece in pieces if start <= piece[0] < stop]
        assert not inside or (inside[0][0], inside[-1][1]) == (start, stop)
        if by and stop - start > max(1, longest):
            assert len(inside) == min(world, stop - start)


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.__name__)
def test_deft_keeps_the_invariants_with_as_many_pieces_as_ranks(invariant: Any) -> None:
    invariant(Case(Deft, {"density": 0.05, "pieces": "world"}, 3, memory="residual"))


def test_the_budget_of_a_piece_depends_on_its_norm() -> None:
    assert allocate(10, [100, 100, 4, 4], [4.0, 2.0, 3.0, 1.0]) == [4, 2, 3, 1]
    # 9 of 10 are more than the third has: the rest goes to the next.
    assert allocate(10, [100, 100, 4, 4], [1.0, 0.0, 9.0, 0.0]) == [6, 1, 4, 1]
    assert allocate(10, [5, 5], [0.0, 0.0]) == [1, 1]


def test_pieces_are_assigned_by_decreasing_cost_to_the_bin_of_least_cost() -> None:
    assert pack([5.0, 3.0, 3.0, 1.0], 2) == [0, 1, 1, 0]
    assert pack([1.0, 1.0, 1.0], 3) == [0, 1, 2]
    assert pack([], 2) == []


def test_deft_sends_more_of_the_layer_with_the_larger_norm_and_the_ranks_alternate() -> None:
    shapes = tuple((name, (100,)) for name in "abcd")
    scale_N = torch.tensor([8.0, 4.0, 2.0, 1.0]).repeat_interleave(100)
    layers: list[list[list[int]]] = [[], []]

    class Watched(Deft):
        def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
            at_K = super().select(signal_N, wire)
            layers[wire.rank].append(torch.bincount(at_K // 100, minlength=4).tolist())
            return at_K

    play(
        lambda: Watched(density=0.1),
        2,
        2,
        lambda rank, step: scale_N,
        shapes=shapes,
        memory="none",
        see=lambda f, r, w: None,
    )
    # 40 elements over norms 8 : 4 : 2 : 1 come to 21, 10, 6, 3; costs 439, 332, 258, 158 to bins a d and b c.
    assert layers[0] == [[21, 0, 0, 3], [0, 10, 6, 0]]
    assert layers[1] == [[0, 10, 6, 0], [21, 0, 0, 3]]


def test_deft_uses_the_bins_of_the_current_rank() -> None:
    # Separately, the ranks would assign the layers in opposite ways and select the same ones twice.
    shapes = (("a", (100,)), ("b", (100,)))

    def gradient(rank: int, step: int) -> Tensor:
        return torch.tensor([9.0, 1.0] if rank == 0 else [1.0, 9.0]).repeat_interleave(100)

    def see(feedback: ErrorFeedback, reduced: Reduced, wire: Wire) -> list[int]:
        assert reduced.sent is not None
        return torch.bincount(reduced.sent // 100, minlength=2).tolist()

    seen = play(lambda: Deft(density=0.1), 2, 2, gradient, shapes=shapes, memory="none", see=see)
    # By rank 0's bins a is its own and b rank 1's; each finds 18 by its own norms. Then the same again.
    assert seen[0] == [[18, 18], [18, 18]]


# CLT-k.


def test_the_ranks_alternate_in_selecting_for_all_ranks() -> None:
    def see(feedback: ErrorFeedback, reduced: Reduced, wire: Wire) -> tuple[list[int], dict[str, int]]:
        assert reduced.sent is not None
        return reduced.sent.tolist(), dict(wire.ledger.payload)

    ranks = play(lambda: Cltk(density=0.01), 3, 4, memory="none", see=see)
    for step in range(4):
        top = normal(step % 3, step).abs().topk(40).indices.sort().values.tolist()
        assert [rank[step][0] for rank in ranks] == [top] * 3
    # Four bytes for each of 40 values a step, and for as many indices when it is one's turn: rank 0 twice.
    assert [rank[-1][1] for rank in ranks] == [
        {"values": 640, "indices": indices} for indices in (320, 160, 160)
    ]


# Ok-Topk.


def words(wire: Wire) -> int:
    return (wire.ledger.payload["values"] + wire.ledger.payload["indices"]) // 4


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("kind", ["alike", "growing", "lopsided"])
def test_oktopk_sends_at_most_6k_values_per_step(kind: str, world_size: int) -> None:
    def gradient(rank: int, step: int) -> Tensor:
        grad_N = normal(rank, step)
        if kind == "growing":  # far beyond the thresholds that are kept
            grad_N *= 10.0**step
        if kind == "lopsided":  # each rank's largest elements are in its own region
            grad_N[rank * 500 : rank * 500 + 200] *= 100
        return grad_N

    def see(feedback: ErrorFeedback, reduced: Reduced, wire: Wire) -> int:
        return words(wire)

    for rank in play(lambda: OkTopk(density=0.01, evaluate_every=4), world_size, 10, gradient, see=see):
        each = [after - before for before, after in zip([0, *rank], rank, strict=False)]
        assert max(each) <= 6 * 40
        assert min(each) > 0


def test_oktopk_receives_as_much_as_its_paper_states_for_balanced_regions() -> None:
    # 6k (W − 1)/W values, and the numbers of elements and the regions' places besides.
    def see(feedback: ErrorFeedback, reduced: Reduced, wire: Wire) -> int:
        return wire.ledger.received

    for rank in play(lambda: OkTopk(density=0.05, evaluate_every=8), 4, 9, see=see, memory="none"):
        for before, after in zip(rank, rank[1:7], strict=False):
            assert after - before <= 4 * 6 * 204 * 3 / 4 + 300


def test_oktopk_takes_the_global_top_k_of_the_selected_elements_when_it_evaluates() -> None:
    def see(feedback: ErrorFeedback, reduced: Reduced, wire: Wire) -> tuple[Tensor, Tensor, Tensor]:
        assert feedback.residual_N is not None
        assert reduced.sent is not None
        return reduced.mean_N.clone(), reduced.sent.clone(), feedback.residual_N.clone()

    ranks = play(lambda: OkTopk(density=0.01), 3, 1, see=see)
    selected = torch.zeros(3, N)
    for rank in range(3):
        signal_N = normal(rank, 0)
        top = signal_N.abs().topk(40).indices
        selected[rank, top] = signal_N[top]
    mean_N = selected.mean(0)
    mean_N[mean_N.abs() < mean_N.abs().topk(40).values.min()] = 0
    for rank, ((seen_N, sent, residual_N),) in enumerate(ranks):
        assert torch.allclose(seen_N, mean_N, atol=1e-6)
        # An element has left the rank if the rank had selected it and all of them together did, and else not.
        assert sent.tolist() == ((mean_N != 0) & (selected[rank] != 0)).nonzero().view(-1).tolist()
        left_N = normal(rank, 0)
        left_N[sent] = 0
        assert same_bits(residual_N, left_N)


def test_oktopk_keeps_its_thresholds_and_regions_for_the_given_number_of_steps() -> None:
    def see(feedback: ErrorFeedback, reduced: Reduced, wire: Wire) -> list[float]:
        ok = feedback.reducer
        assert isinstance(ok, OkTopk)
        return [float(ok.local_threshold), float(ok.global_threshold), *ok.edge_Q.tolist()]

    seen = play(lambda: OkTopk(density=0.01, evaluate_every=3), 2, 7, see=see)[0]
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[4] == seen[5] != seen[6]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.1, 5.0, math.inf])
def test_oktopk_selects_everything_above_its_threshold_or_the_largest_up_to_its_limit(scale: float) -> None:
    n, k = 4000, 200
    ok = OkTopk(density=k / n, evaluate_every=100)
    ok.bind(Layout.of((("w", (n,)),)))
    ok.select(normal(0, 0, n), Wire(0, 1))
    threshold = float(ok.local_threshold)
    signal_N = normal(0, 1, n) * scale
    signal_N[::7] = threshold  # ties
    before_N = signal_N.clone()
    above = [i for i, x in enumerate(signal_N.abs().tolist()) if not x < threshold]
    largest = sorted(above, key=lambda i: (-math.inf if math.isnan(x := float(signal_N[i])) else -abs(x), i))
    assert ok.select(signal_N, Wire(0, 1)).tolist() == sorted(largest[: 3 * k // 2])
    assert same_bits(signal_N.nan_to_num(7.0), before_N.nan_to_num(7.0))


def test_oktopks_regions_have_equal_numbers_of_selected_elements() -> None:
    # The selected elements are in the last tenth of the vector.
    scale_N = torch.where(torch.arange(N) < N * 9 // 10, 1.0, 5.0)

    def see(feedback: ErrorFeedback, reduced: Reduced, wire: Wire) -> list[int]:
        ok = feedback.reducer
        assert isinstance(ok, OkTopk)
        assert reduced.sent is not None
        bounds_W = torch.tensor(ok._bounds(N, 4))
        return torch.searchsorted(reduced.sent, bounds_W).diff().tolist()

    for (counts,) in play(lambda: OkTopk(density=0.05), 4, 1, lambda r, s: normal(r, s) * scale_N, see=see):
        assert max(counts) < 2.5 * min(counts)


# Bytes by hand, and options.


def spiked(rank: int) -> Tensor:
    """Rank 0 has 3 elements above a half, rank 1 has 5, all of them in the first half."""
    grad_N = torch.randn(1023, generator=torch.Generator().manual_seed(rank)) / 100
    grad_N[: 3 + 2 * rank] = 1.0 - rank / 10
    return grad_N


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # Rank 0's half has its three, rank 1's has none of its own; both send values there.
        (
            "micro",
            {"threshold": 0.5},
            ({"values": 12, "indices": 12, "sizes": 8}, {"values": 12, "sizes": 8}),
        ),
        (
            "micro",
            {"threshold": 0.5, "values": "fp16"},
            ({"values": 6, "indices": 12, "sizes": 8}, {"values": 6, "sizes": 8}),
        ),
        (
            "exdyna",
            {"threshold": 0.5},
            ({"values": 12, "indices": 12, "sizes": 8}, {"values": 12, "sizes": 8}),
        ),
        # wide is more than half of the vector, and split: rank 0 gets a half and conv, rank 1 the other and
        # bias. Rank 0 broadcasts the bins of the four.
        (
            "deft",
            {"density": 1.0},
            (
                {"values": 4092, "indices": 4 * 616, "sizes": 8 + 16},
                {"values": 4092, "indices": 4 * 407, "sizes": 8},
            ),
        ),
        # 2 of conv, 8 of wide, 1 of bias.
        ("cltk", {}, ({"values": 44, "indices": 44}, {"values": 44})),
        ("cltk", {"values": "fp16"}, ({"values": 22, "indices": 44}, {"values": 22})),
    ],
)
def test_the_payload_bytes_equal_those_counted_by_hand(
    name: str, options: dict[str, Any], expected: tuple[dict[str, int], ...]
) -> None:
    case = Case(registry.load("reducers", name), options, 2)
    seen = steps(case, lambda rank, step: spiked(rank), count=1)
    nonzero = [{kind: size for kind, size in step.payload.items() if size} for (step,) in seen]
    assert tuple(nonzero) == expected


def test_oktopks_bytes_equal_those_counted_by_hand() -> None:
    # k = 4 of 400; both ranks' largest are elements 0, 100, 200, 300, and the regions' border is at 200.
    grad_N = torch.zeros(400)
    grad_N[[0, 100, 200, 300]] = torch.tensor([4.0, 3.0, 2.0, 1.0])

    def see(feedback: ErrorFeedback, reduced: Reduced, wire: Wire) -> dict[str, int]:
        result = dict(wire.ledger.payload)
        wire.ledger.payload.clear()
        return result

    ranks = play(
        lambda: OkTopk(density=0.01),
        2,
        2,
        lambda r, s: grad_N.clone(),
        memory="none",
        see=see,
        shapes=(("w", (400,)),),
    )
    # 4 elements are sent to the regions, 2 gathered; at first the values of 2 means too, and the regions.
    # Sizes: 8·W for the first, 3·8 + 8 for the second, and at first 8 and 257·8.
    assert (
        ranks
        == [
            [
                {"values": 32, "indices": 24, "sizes": 16 + 32 + 8 + 2056},
                {"values": 24, "indices": 24, "sizes": 16 + 32},
            ]
        ]
        * 2
    )


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("micro", {"density": 0.0}, r"density=0\.0: expected a share of the elements"),
        ("micro", {"threshold": -1.0}, r"threshold=-1\.0: expected a finite number above 0"),
        ("micro", {"values": "int8"}, r"values='int8': expected fp32 or fp16"),
        ("micro", {"start": "zero"}, "start='zero': expected gradient or published"),
        ("exdyna", {"blocks": 0}, r"blocks=0: expected 1 block or more"),
        ("deft", {"density": 1.1}, r"density=1\.1: expected a share"),
        ("deft", {"pieces": "all"}, "pieces='all': expected fit or world"),
        ("cltk", {"density": 2.0}, r"density=2\.0: expected a share"),
        ("oktopk", {"evaluate_every": 0}, r"evaluate_every=0: expected 1 step or more"),
    ],
)
def test_an_option_out_of_range_is_refused_with_the_allowed_range(
    name: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        registry.load("reducers", name)(**options)


# An all-to-all of rows of different lengths, as Ok-Topk uses.


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_rank_receives_its_row_from_each_rank_whatever_their_lengths(world_size: int) -> None:
    def work(wire: Wire) -> tuple[list[list[Any]], int, int]:
        counts = [(wire.rank + 2 * to) % 4 for to in range(wire.world_size)]
        ids = torch.tensor([10 * wire.rank + to for to, count in enumerate(counts) for _ in range(count)])
        before = wire.ledger.copy()
        rows = wire.all_to_all_ragged(counts, values=ids.double(), indices=ids.int())
        booked = wire.ledger.since(before)
        assert booked.payload["values"] == 8 * sum(counts)
        assert booked.payload["indices"] == 4 * sum(counts)
        assert all((x.dtype, at.dtype) == (torch.float64, torch.int32) for x, at in rows)
        sizes = 8 * wire.world_size * (wire.world_size - 1)
        return [[x.tolist(), at.tolist()] for x, at in rows], booked.sent - sizes, booked.received - sizes

    for to, (rows, sent, received) in enumerate(simulate(world_size, work, guard=False)):
        lengths = [(origin + 2 * to) % 4 for origin in range(world_size)]
        assert rows == [[[10 * origin + to] * n] * 2 for origin, n in enumerate(lengths)]
        assert received == 12 * (sum(lengths) - lengths[to])
        assert sent == 12 * sum((to + 2 * other) % 4 for other in range(world_size) if other != to)
