"""Integers of a table: what is decoded is the mean of what was sent, for every number of shares."""
# N = elements of the vector, P = parts, W = ranks

import random

import pytest
import torch
from torch import Tensor
from vectors import draw

from sage import ops
from sage.ops.reference_integers import CHUNK, unpack_sums

LEVELS = [(0, 1), (0, 255), (0, 1, 3, 4, 8, 12, 13, 15, 16), tuple(range(256)), (0, 5, 17)]


def parts(n: int) -> tuple[Tensor, Tensor]:
    """Bounds of parts of all lengths, and a step for each."""
    bounds = [0, *sorted(random.choices(range(n + 1), k=random.choice([0, 3, n // 16]))), n]
    step_P = torch.rand(len(bounds) - 1)
    step_P[::5] = random.choice([0.0, 1e-41, 1e38, float("inf"), float("nan")])
    return torch.tensor(bounds, dtype=torch.int32), step_P


def test_sums_of_more_than_8_bits_are_packed_without_gaps() -> None:
    number_N = torch.tensor([0, 1, 255, 256, 1023, 77], dtype=torch.int32)
    packed_B = ops.pack_sums(number_N, 10)
    assert len(packed_B) == ops.bytes_of_sums(6, 10) == 6 + 2
    assert torch.equal(unpack_sums(packed_B, 10, 6, 0, 6), number_N)


@pytest.mark.parametrize("levels", LEVELS[::2])
def test_what_is_decoded_is_the_mean_and_the_rest_is_the_error(levels: tuple[int, ...]) -> None:
    random.seed(levels[-1])
    n, num, most = CHUNK + 1003, 3, levels[-1]
    bounds_P = torch.tensor([0, 17, 4000, n], dtype=torch.int32)
    step_P = torch.tensor([0.5, 2.0, 0.25])
    signal_WN = torch.randn(num, n) * most / 4
    error_WN = signal_WN.clone()
    rows_WSB = torch.stack(
        [
            ops.quantise_integers(error_N, bounds_P, step_P, levels, key=w, shares=2, keep=True)
            for w, error_N in enumerate(error_WN)
        ]
    )
    length = -(-n // 2)
    sum_SB = torch.stack([ops.sum_integers(rows_WSB[:, s].contiguous(), levels, length) for s in range(2)])
    bits = (num * most).bit_length()
    mean_N = ops.average_integers(torch.empty(n), sum_SB, bits, bounds_P, step_P, most=most, num=num)
    torch.testing.assert_close(mean_N, (signal_WN - error_WN).mean(0))


def test_numbers_and_integers_and_all_numbers_of_shares_say_the_same() -> None:
    random.seed(3)
    levels, x_N = LEVELS[2], draw(5003)
    bounds_P, step_P = parts(5003)
    integer_N = ops.quantise_integers(x_N, bounds_P, step_P, levels, key=4, packed=False, keep=False)[0]
    for shares in (1, 2, 7):
        rows = ops.quantise_integers(x_N, bounds_P, step_P, levels, key=4, shares=shares, keep=False)
        length = -(-5003 // shares)
        number_N = torch.cat([ops.unpack(row_B, 4, length) for row_B in rows])[:5003]
        assert torch.equal(torch.tensor(levels)[number_N.int()], integer_N.long())
