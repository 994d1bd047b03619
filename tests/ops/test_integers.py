"""Integers of a table: what is decoded is the mean of what was sent, for every number of shares."""
# N = elements of the vector, P = parts, W = ranks

import random

import pytest
import torch
from torch import Tensor
from vectors import assert_same, draw, team

from sage import ops
from sage.ops import native, reference_integers
from sage.ops.reference_integers import CHUNK, unpack_sums

LEVELS = [(0, 1), (0, 255), (0, 1, 3, 4, 8, 12, 13, 15, 16), tuple(range(256)), (0, 5, 17)]


def parts(n: int, num: int) -> tuple[Tensor, Tensor]:
    """Bounds of parts of all lengths, and a step for each."""
    bounds = [0, *sorted(random.choices(range(n + 1), k=num - 1)), n]
    step_P = torch.rand(len(bounds) - 1)
    step_P[::5] = random.choice([0.0, 1e-41, 1e38, float("inf"), float("nan")])
    return torch.tensor(bounds, dtype=torch.int32), step_P


@pytest.mark.skipif(native.MISSING is not None, reason=f"no extension: {native.MISSING}")
@pytest.mark.parametrize("levels", LEVELS)
def test_the_kernels_equal_the_reference(levels: tuple[int, ...]) -> None:
    for case, n in enumerate((0, 5, 1003, 140_001)):
        random.seed(case)
        torch.manual_seed(case)
        x_N, (bounds_P, step_P), shares = draw(n), parts(n, (1, 3, 60, 200)[case]), (2, 3, 4, 1)[case]
        positions = ops.Positions((0, n // 3), (7, 1 << 40))
        most, length = levels[-1], -(-n // shares)
        bits = (3 * most).bit_length()
        packed, keep = case % 2 == 0, case != 1
        left_N = x_N.clone()
        rows = reference_integers.quantise(
            left_N, bounds_P, step_P, levels, 3, positions, shares=shares, packed=packed, keep=keep
        )
        number_WN = torch.randint(len(levels), (3, length)).to(torch.uint8)
        given_WB = torch.stack(
            [ops.pack(number_N, reference_integers.code_bits(levels)) for number_N in number_WN]
        )
        sum_B = reference_integers.sums(given_WB, levels, length)
        sum_WB = torch.randint(256, (shares, len(sum_B))).to(torch.uint8)
        mean_N = torch.empty(n)
        reference_integers.average(mean_N, sum_WB, bits, bounds_P, step_P, most=most, num=3)
        for threads in (1, 2):
            own_N, out_N = x_N.clone(), torch.empty(n)
            with team(threads):
                given = ops.quantise_integers(
                    *(own_N, bounds_P, step_P, levels),
                    key=3,
                    positions=positions,
                    shares=shares,
                    packed=packed,
                    keep=keep,
                )
                assert_same(given, rows)
                assert_same(own_N, left_N)
                assert_same(ops.sum_integers(given_WB, levels, length), sum_B)
                ops.average_integers(out_N, sum_WB, bits, bounds_P, step_P, most=most, num=3)
                assert_same(out_N, mean_N)


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
    bounds_P, step_P = parts(5003, 300)
    integer_N = ops.quantise_integers(x_N, bounds_P, step_P, levels, key=4, packed=False, keep=False)[0]
    for shares in (1, 2, 7):
        rows = ops.quantise_integers(x_N, bounds_P, step_P, levels, key=4, shares=shares, keep=False)
        length = -(-5003 // shares)
        number_N = torch.cat([ops.unpack(row_B, 4, length) for row_B in rows])[:5003]
        assert torch.equal(torch.tensor(levels)[number_N.int()], integer_N.long())
