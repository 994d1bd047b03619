"""Laws of a flat gradient that is reduced on two levels, for every reducer, on four threads."""
# N = elements of the flat gradient, P = of a rank's part

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sage import registry
from sage.comm.ledger import KINDS, Ledger
from sage.comm.levels import KIND, levels
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.mount.flat import Flat
from sage.mount.state import by_parameter, restore
from sage.reduction.reducer import Memory, Reducer
from sage.testing.harness import same_bits

SHAPES = (("conv", (8, 3, 3, 3)), ("wide", (40, 20)), ("bias", (7,)), ("deep", (12, 12)))
NODES = [[0, 1], [2, 3]]
CPU = torch.device("cpu")
NAMES = registry.names("reducers")
WITHOUT_SQUARES = [name for name in NAMES if not registry.load("reducers", name)().needs_squares]


@dataclass
class Seen:
    """What a rank saw in its steps."""

    means: list[Tensor]
    means_P: list[Tensor]
    """Its part of each mean."""
    signals_P: list[Tensor]
    """Residual before + mean of the node's gradients, of its part."""
    residuals_P: list[Tensor]
    """Residual after each step; empty without one."""
    density: float
    ledger: Ledger
    numel: int
    """Elements of its part."""


def gradient(rank: int, step: int, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(n, generator=generator) * torch.randn(n, generator=generator).exp()


def flat_on(
    wire: Wire,
    reducer: Reducer,
    nodes: list[list[int]] = NODES,
    min_compress: int = 8,
    memory: Memory | None = None,
) -> Flat:
    return Flat(
        SHAPES,
        reducer,
        dtype=torch.float32,
        device=CPU,
        memory=memory,
        min_compress=min_compress,
        levels=levels(wire, nodes, CPU),
    )


def steps(name: str, count: int = 3) -> list[Seen]:
    """Reduce three gradients on two nodes of two ranks."""

    def work(wire: Wire) -> Seen:
        reducer = registry.load("reducers", name)()
        flat = flat_on(wire, reducer, memory="residual" if reducer.conserves else None)
        flat.begin_epoch(0, 0.1, wire)
        seen = Seen([], [], [], [], 0.0, wire.ledger, flat.own.layout.numel)
        node = next(ranks for ranks in NODES if wire.rank in ranks)
        start = 0 if wire.rank == node[0] else flat.layout.numel - seen.numel
        own = slice(start, start + seen.numel)
        for step in range(count):
            residual_P = flat.feedback.residual_N
            ours = [gradient(rank, step, flat.layout.numel)[own] for rank in node]
            signal_P = (ours[0] + ours[1]) / 2
            if residual_P is not None:
                signal_P[: residual_P.numel()] += residual_P
            flat.grad_N.copy_(gradient(wire.rank, step, flat.layout.numel))
            flat(wire, 0.1)
            seen.means.append(flat.grad_N.clone())
            seen.means_P.append(flat.grad_N[own].clone())
            seen.signals_P.append(signal_P)
            if residual_P is not None:
                seen.residuals_P.append(residual_P.clone())
        seen.density = flat.density
        return seen

    return simulate(4, work)


@pytest.mark.parametrize("name", WITHOUT_SQUARES)
def test_every_rank_has_the_same_mean_and_sent_and_residual_are_the_signal(name: str) -> None:
    ranks = steps(name)
    assert sum(seen.numel for seen in ranks[:2]) == sum(torch.Size(shape).numel() for _, shape in SHAPES)
    for other in ranks[1:]:
        assert all(same_bits(a, b) for a, b in zip(ranks[0].means, other.means, strict=True))
        assert other.density == ranks[0].density
    reducer = registry.load("reducers", name)()
    if not reducer.conserves:
        return
    for part in (0, 1):  # of the ranks `part` and `part + 2`, one on each node
        pair = ranks[part], ranks[part + 2]
        for step, mean_P in enumerate(pair[0].means_P):
            sent = []
            for seen in pair:
                left_P = seen.residuals_P[step]
                sent_P = seen.signals_P[step].clone()
                sent_P[: left_P.numel()] -= left_P  # small tensors have no residual
                sent.append(sent_P)
            largest = max(float(seen.signals_P[step].abs().max()) for seen in pair)
            error = ((sent[0] + sent[1]) / 2 - mean_P).abs().max()
            assert error <= max(2 * reducer.precision, 1e-6) * largest


def test_the_error_feedback_of_a_rank_has_the_elements_of_its_part() -> None:
    def work(wire: Wire) -> int:
        feedback = flat_on(wire, registry.load("reducers", "sage")(), min_compress=0).feedback
        assert feedback.residual_N is not None
        return feedback.residual_N.numel()

    total = sum(torch.Size(shape).numel() for _, shape in SHAPES)
    assert simulate(4, work) == [-(-total // 2), total // 2] * 2


@pytest.mark.parametrize("world_size", [4, 6])
def test_exact_on_two_levels_is_the_flat_mean(world_size: int) -> None:
    nodes = [list(range(first, first + 2)) for first in range(0, world_size, 2)]

    def work(wire: Wire) -> list[tuple[Tensor, Tensor]]:
        flat = flat_on(wire, registry.load("reducers", "exact")(), nodes)
        found = []
        for step in range(2):
            x_N = gradient(wire.rank, step, flat.layout.numel)
            if step == 0:
                x_N = (x_N * 64).round() / 64  # a dyadic grid, on which sums of a few ranks are exact
            flat.grad_N.copy_(x_N)
            flat(wire)
            in_order = wire.gather(values=x_N)[0].sum(0) / wire.world_size
            found.append((flat.grad_N.clone(), in_order))
        return found

    for (mean_N, expected_N), (rough_N, in_order_N) in simulate(world_size, work):
        if world_size == 4:
            assert same_bits(mean_N, expected_N)
        torch.testing.assert_close(mean_N, expected_N, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(rough_N, in_order_N, rtol=1e-6, atol=1e-6)


def test_the_ledger_has_the_bytes_within_a_node_and_between_nodes_apart() -> None:
    def work(wire: Wire) -> tuple[Ledger, int]:
        flat = flat_on(wire, registry.load("reducers", "exact")())
        before = wire.ledger.copy()
        flat(wire)
        return wire.ledger.since(before), flat.own.layout.numel

    first, second = 584, 583  # of 1,167 elements
    for rank, (ledger, numel) in enumerate(simulate(4, work)):
        own, other = (first, second) if rank % 2 == 0 else (second, first)
        assert numel == own
        # Within the node: its other part to its owner, its own part to the other, and 8 bytes of the density.
        assert ledger.payload[KIND] == 4 * (first + second) + 4 * own
        assert ledger.sent_in_node == 4 * other + 4 * own + 8
        assert ledger.received_in_node == 4 * own + 4 * other + 8
        # Between nodes: a ring all-reduce of its part between two ranks.
        assert ledger.payload["values"] == 4 * own
        assert ledger.sent - ledger.sent_in_node == 4 * own
        assert ledger.received - ledger.received_in_node == 4 * own


@pytest.mark.parametrize("name", ["sage", "topk", "powersgd", "exact"])
def test_between_nodes_the_results_and_the_bytes_are_those_of_the_reducer_on_the_part_alone(
    name: str,
) -> None:
    reducer = registry.load("reducers", name)()

    def work(wire: Wire) -> tuple[Tensor, dict[str, int], Tensor, Flat]:
        flat = flat_on(wire, copy.deepcopy(reducer))
        n, numel, node = flat.layout.numel, flat.own.layout.numel, 2 * (wire.rank // 2)
        own = slice(0, numel) if wire.rank % 2 == 0 else slice(n - numel, n)
        flat.grad_N.copy_(gradient(wire.rank, 0, n))
        before = wire.ledger.copy()
        flat(wire)
        sent = {kind: size for kind, size in wire.ledger.since(before).payload.items() if kind in KINDS}
        mean_P = (gradient(node, 0, n)[own] + gradient(node + 1, 0, n)[own]) / 2
        return flat.grad_N[own].clone(), sent, mean_P, flat.own

    results = simulate(4, work)
    for part in (0, 1):
        of_part = results[part], results[part + 2]
        spans, compressed = of_part[0][3].layout.spans, of_part[0][3].compressed
        origins = {s.name: at for s, at in zip(compressed.spans, compressed.origins, strict=True)}

        def alone(wire: Wire) -> tuple[Tensor, dict[str, int]]:
            flat = Flat(
                [(span.name, span.shape) for span in spans],  # noqa: B023
                copy.deepcopy(reducer),
                dtype=torch.float32,
                device=CPU,
                min_compress=8,
                origins=origins,  # noqa: B023
            )
            flat.grad_N.copy_(of_part[wire.rank][2])  # noqa: B023
            flat(wire)
            return flat.grad_N.clone(), dict(wire.ledger.payload)

        for (found_P, sent, _, _), (mean_P, payload) in zip(of_part, simulate(2, alone), strict=True):
            assert same_bits(found_P, mean_P)
            assert sent == {kind: size for kind, size in payload.items() if kind in sent}


def test_the_state_of_a_rank_by_parameter_is_restored_to_the_bit() -> None:
    def work(wire: Wire) -> list[bool]:
        found = []
        for name in ("sage", "topk", "powersgd"):
            flat, again = (flat_on(wire, registry.load("reducers", name)()) for _ in range(2))
            for step in range(2):
                flat.grad_N.copy_(gradient(wire.rank, step, flat.layout.numel))
                flat(wire)
            restore(again, by_parameter(flat))
            for each in (flat, again):
                each.grad_N.copy_(gradient(wire.rank, 2, flat.layout.numel))
                each(wire)
            found.append(same_bits(flat.grad_N, again.grad_N))
        return found

    assert simulate(4, work) == [[True] * 3] * 4


def test_parts_without_tensors_are_reduced_too() -> None:
    def work(wire: Wire) -> list[tuple[int, Tensor]]:
        found = []
        for name in ("topk", "powersgd", "exact", "sage"):
            flat = Flat(
                [("one", (3, 2))],
                registry.load("reducers", name)(),
                dtype=torch.float32,
                device=CPU,
                levels=levels(wire, [[0, 1, 2], [3, 4, 5]], CPU),
            )
            flat.grad_N.copy_(torch.full((6,), 1.0 + wire.rank))
            flat(wire)
            found.append((flat.own.layout.numel, flat.grad_N.clone()))
        return found

    ranks = simulate(6, work)
    assert [[numel for numel, _ in found] for found in ranks[:3]] == [
        [6, 6, 2, 2],
        [0, 0, 2, 2],
        [0, 0, 2, 2],
    ]
    assert all(same_bits(a, b) for found in ranks for (_, a), (_, b) in zip(found, ranks[0], strict=True))
    assert ranks[0][2][1].tolist() == [3.5] * 6


def test_a_reducer_that_needs_squares_is_refused() -> None:
    with pytest.raises(ValueError, match="variance needs the squares .* use the hierarchy flat"):
        simulate(2, lambda wire: flat_on(wire, registry.load("reducers", "variance")(), [[0, 1]]))
