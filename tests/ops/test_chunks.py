"""The largest of each chunk: the kernel and its reference against one selection after another."""
# N = elements of the vector, P = chunks, K = elements taken

import random

import pytest
import torch
from torch import Tensor
from vectors import assert_same, draw, team

from sage import ops
from sage.ops import native, reference, reference_chunks


def drawn(n: int, num_chunks: int, most: int) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Places, lengths and counts of tiles and runs in n elements, which may overlap."""
    places, lengths, counts = [], [], []
    for _ in range(num_chunks):
        length = random.choice([min(n, most), random.randint(1, min(n, most))])
        rows, rest = divmod(length - 1, 64)
        stride = random.choice([64, random.randint(64, (n - 1 - rest) // rows)]) if rows else 64
        places.append((random.randrange(n - rows * stride - rest), stride))
        lengths.append(length)
        counts.append(random.choice([0, 1, -(-length // 64), length // 2, length, random.randint(0, length)]))
    return places, lengths, counts


def expect_largest(
    found: tuple[Tensor, Tensor],
    x_N: Tensor,
    places: list[tuple[int, int]],
    lengths: list[int],
    counts: list[int],
) -> None:
    """Assert that these are the largest of each chunk, selected by `reference.select_top`."""
    values, positions = [x_N[:0]], [torch.empty(0, dtype=torch.int64)]
    for (first, stride), length, count in zip(places, lengths, counts, strict=True):
        at_C = torch.arange(length)
        chunk_C = x_N[first + at_C // 64 * stride + at_C % 64]
        positions.append(reference.select_top(chunk_C, count))
        values.append(chunk_C[positions[-1]])
    assert found[0].dtype is x_N.dtype
    assert_same(found[0].double(), torch.cat(values).double())
    assert_same(found[1], torch.cat(positions).int())


@pytest.mark.parametrize("case", range(8))
def test_the_largest_of_chunks_are_those_of_one_selection_after_another(case: int) -> None:
    random.seed(case)
    torch.manual_seed(case)
    n = [1, 60, 5000, 200_000][case % 4]
    x_N, chunks = draw(n), drawn(n, 40 if case > 1 else 0, most=4096)
    table_P4, num = ops.chunk_table(*chunks), sum(chunks[2])
    expect_largest(reference_chunks.largest_of_chunks(x_N, table_P4, num, 4096), x_N, *chunks)
    for threads in (1, 2) if native.MISSING is None else ():
        with team(threads):
            expect_largest(ops.largest_of_chunks(x_N, table_P4, num), x_N, *chunks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_and_longer_chunks_are_supported(dtype: torch.dtype) -> None:
    random.seed(0)
    torch.manual_seed(0)
    x_N, chunks = draw(20_000).to(dtype), drawn(20_000, 9, most=9000)
    found = ops.largest_of_chunks(x_N, ops.chunk_table(*chunks), sum(chunks[2]), longest=9000)
    expect_largest(found, x_N, *chunks)


def test_no_more_than_some_chunks_are_ranked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x_N = torch.randn(4096 * 7 + 5)
    chunks = [(at, 64) for at in range(0, x_N.numel(), 4096)], [4096] * 7 + [5], [64] * 7 + [1]
    monkeypatch.setattr(reference_chunks, "AT_ONCE", 3 * 4096)
    found = reference_chunks.largest_of_chunks(x_N, ops.chunk_table(*chunks), 449, 4096)
    expect_largest(found, x_N, *chunks)
