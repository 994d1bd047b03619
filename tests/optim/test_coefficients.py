"""Tests of the selection of coefficients, of their format, and of the mean over the ranks that sent them."""

from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vectors import KINDS

from sage import ops
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.optim.coefficients import (
    Exchange,
    extract_,
    largest,
    num_bits,
    num_packed,
    pack_positions,
    unpack_positions,
)
from sage.optim.tiles import Tiling

SHAPES = [(96, 130), (7,), (100,), (8, 3, 5), (12, 12), ()]


@settings(max_examples=examples(40))
@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 80), st.sampled_from(KINDS), st.integers(0, 99))
def test_the_largest_of_a_tile_are_chosen_and_of_equal_ones_the_first(
    num_tiles: int, size: int, k: int, kind: Callable[[int], Tensor], seed: int
) -> None:
    torch.manual_seed(seed)
    c_TE = kind(num_tiles * size).float().view(num_tiles, size)
    chosen_Tk = largest(c_TE, k)
    assert chosen_Tk.tolist() == [ops.reference.select_top(row, k).tolist() for row in c_TE]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_sent_and_what_stays_are_together_what_was_there_to_the_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    before_TE = torch.randn(9, 64) * torch.randn(9, 64).exp()
    left_TE = before_TE.clone()
    values_Tk, at_Tk = extract_(left_TE, 5, dtype)
    assert values_Tk.dtype is dtype
    assert torch.equal(left_TE.scatter_add(1, at_Tk, values_Tk.float()), before_TE)
    untouched_TE = torch.ones_like(before_TE, dtype=torch.bool).scatter(1, at_Tk, False)
    assert torch.equal(left_TE[untouched_TE], before_TE[untouched_TE])


@pytest.mark.parametrize("bits", range(1, 17))
def test_positions_are_packed_in_the_bits_that_they_need(bits: int) -> None:
    torch.manual_seed(bits)
    at_K = torch.cat([torch.tensor([0, 2**bits - 1]), torch.randint(2**bits, (35,))])
    packed_B = pack_positions(at_K, bits)
    assert packed_B.numel() == num_packed(bits, 37)
    assert 8 * packed_B.numel() - 37 * bits < 8
    assert torch.equal(unpack_positions(packed_B, bits, 37), at_K)


def test_a_tile_of_64_by_64_takes_112_bytes() -> None:
    exchange = Exchange([Tiling.of((64, 64), edge=64)], 32, torch.bfloat16, torch.device("cpu"))
    assert sum(exchange.payload().values()) == 112
    assert num_bits(4096, 32) == 12


def drawn(rank: int) -> list[Tensor]:
    """Coefficients of each parameter, of which ranks send partly the same ones."""
    common, own = torch.Generator().manual_seed(9), torch.Generator().manual_seed(rank)
    found = []
    for tiling in tilings():
        shape = (tiling.num_tiles, tiling.size)
        found.append(3 * torch.randn(shape, generator=common) + torch.randn(shape, generator=own))
    return found


def tilings() -> list[Tiling]:
    return [Tiling.of(shape, edge=16) for shape in SHAPES]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("k", [1, 8, 300])
def test_the_mean_of_a_coefficient_is_over_its_senders(k: int, dtype: torch.dtype) -> None:
    def work(wire: Wire) -> tuple[list[Tensor], dict[str, int]]:
        exchange = Exchange(tilings(), k, dtype, torch.device("cpu"))
        values_K, packed_B = exchange.extract_(drawn(wire.rank))
        means = exchange.mean(values_K, packed_B, wire)
        sent = {kind: size for kind, size in exchange.payload().items() if size}
        assert wire.ledger.payload == sent
        return means, sent

    results = simulate(3, work)
    for number, tiling in enumerate(tilings()):
        sent: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        for rank in range(3):
            values_Tk, at_Tk = extract_(drawn(rank)[number], k, dtype)
            for tile, (values_k, at_k) in enumerate(zip(values_Tk.tolist(), at_Tk.tolist(), strict=True)):
                for value, at in zip(values_k, at_k, strict=True):
                    sent[tile, at].append(value)
        wanted_TE = torch.zeros(tiling.num_tiles, tiling.size)
        for (tile, at), values in sent.items():
            wanted_TE[tile, at] = sum(values) / len(values)
        torch.testing.assert_close(results[0][0][number], wanted_TE)
        assert all(torch.equal(means[number], results[0][0][number]) for means, _ in results)
    assert ("indices" in results[0][1]) == (k < 256)
