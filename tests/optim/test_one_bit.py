"""Tests of the 1-bit all-reduce against plain code, of its errors and of its bytes."""
# N = elements of the vector, C = elements of a chunk, W = ranks

from collections.abc import Sequence

import pytest
import torch
from fuzz import examples
from gloo import processes
from hypothesis import given, settings
from hypothesis import strategies as st
from one_bit_by_hand import Ranks, by_hand, vectors
from torch import Tensor

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.optim.one_bit import OneBitAllReduce, cut, share_of


def reduced(
    wire: Wire, steps: Ranks, sizes: Sequence[int]
) -> tuple[list[Tensor], Tensor, Tensor, dict[str, int], int]:
    """Means, worker error, server error, payload of a step by kind and bytes sent in a step of a rank."""
    numel = sum(sizes)
    worker_N = torch.zeros(numel)
    server_S = torch.zeros(share_of(numel, wire.rank, wire.world_size))
    all_reduce = OneBitAllReduce(sizes, worker_N, server_S, wire)
    means = [all_reduce(rows[wire.rank].clone()).clone() for rows in steps]
    payload = {kind: size // len(steps) for kind, size in wire.ledger.payload.items()}
    return means, worker_N, server_S, payload, wire.ledger.sent // len(steps)


@given(
    world_size=st.integers(1, 5),
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4).filter(any),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(25))
def test_it_is_the_formulas_of_the_paper_for_any_length_and_number_of_ranks(
    world_size: int, sizes: list[int], seed: int
) -> None:
    steps = vectors(seed, 3, world_size, sum(sizes))
    means, workers, server_N = by_hand(steps, sizes, world_size)
    outcomes = simulate(world_size, lambda wire: reduced(wire, steps, sizes))
    for (ours, worker_N, *_), expected_N in zip(outcomes, workers, strict=True):
        assert all(map(torch.equal, ours, outcomes[0][0]))
        torch.testing.assert_close(ours, means)
        torch.testing.assert_close(worker_N, expected_N)
    torch.testing.assert_close(torch.cat([server_S for _, _, server_S, _, _ in outcomes]), server_N)


def test_gloo_processes_get_the_bits_of_threads() -> None:
    steps = vectors(0, 2, 3, 100)
    threads = simulate(3, lambda wire: reduced(wire, steps, [60, 40]))
    for ours, theirs in zip(processes(3, lambda wire: reduced(wire, steps, [60, 40])), threads, strict=True):
        assert all(map(torch.equal, ours[0], theirs[0]))
        assert torch.equal(ours[1], theirs[1])
        assert torch.equal(ours[2], theirs[2])
        assert ours[3:] == theirs[3:]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_is_not_sent_stays_in_the_two_errors(world_size: int) -> None:
    sizes, steps = [37, 5], vectors(1, 20, world_size, 42)
    outcomes = simulate(world_size, lambda wire: reduced(wire, steps, sizes))
    given_N = sum(sum(rows) / world_size for rows in steps)
    got_N = sum(outcomes[0][0])
    worker_N = sum(worker_N for _, worker_N, _, _, _ in outcomes) / world_size
    server_N = torch.cat([server_S for _, _, server_S, _, _ in outcomes])
    assert isinstance(given_N, Tensor)
    torch.testing.assert_close(got_N + worker_N + server_N, given_N, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("numel", "world_size", "chunk"), [(64, 1, 64), (64, 2, 32), (65, 2, 40), (1000, 3, 336), (3, 4, 8)]
)
def test_the_ledger_counts_signs_both_ways_and_the_scales(numel: int, world_size: int, chunk: int) -> None:
    steps = vectors(2, 4, world_size, numel)
    for _, _, _, payload, sent in simulate(world_size, lambda wire: reduced(wire, steps, [numel])):
        assert payload == {"values": (world_size + 1) * chunk // 8, "scales": 8}
        assert sent == (world_size - 1) * (2 * chunk // 8 + 8)


def test_scales_are_counted_by_group_up_and_by_the_chunk_of_most_parts_down() -> None:
    sizes = [4, 4, 4, 20, 100]  # chunks of 48: five parts, one, one
    for _, _, _, payload, _ in simulate(3, lambda wire: reduced(wire, vectors(3, 1, 3, 132), sizes)):
        assert payload == {"values": 4 * 48 // 8, "scales": 4 * 5 + 4 * 5}
    assert cut(sizes, 48, 3)[1] == [[4, 4, 4, 20, 16], [48], [36]]
