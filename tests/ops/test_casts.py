"""Tests of the casts for half precision: bitwise equal to their references and to torch's casts."""
# N = elements of the vector, S = elements of a row, W = ranks

import random

import pytest
import torch
from torch import Tensor
from vectors import SIZES, draw, seeded

from sage import ops
from sage.ops import native, reference_casts

HALVES = [torch.float16, torch.bfloat16]
WORLD_SIZES = [1, 2, 3, 4, 7, 8]

needs_native = pytest.mark.skipif(native.MISSING is not None, reason=f"no extension: {native.MISSING}")


def assert_same(left_N: Tensor, right_N: Tensor) -> None:
    """Assert that two vectors are bitwise identical; any NaN equals any NaN."""
    assert (left_N.dtype, left_N.shape) == (right_N.dtype, right_N.shape)
    assert torch.equal(left_N.isnan(), right_N.isnan())
    bits = torch.int32 if left_N.dtype is torch.float32 else torch.int16
    left_N, right_N = (x_N.masked_fill(x_N.isnan(), 0).view(bits) for x_N in (left_N, right_N))
    assert torch.equal(left_N, right_N)


@pytest.fixture(params=[1, 2], ids=lambda threads: f"{threads} threads", autouse=True)
def threads(request: pytest.FixtureRequest) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", range(2 * len(SIZES)))
def test_a_share_equals_the_reference(case: int, dtype: torch.dtype) -> None:
    n = seeded(case)
    world_size, scale = (
        random.choice(WORLD_SIZES),
        random.choice([1.0, 1e4]),
    )  # the latter is too large for fp16
    grad_N, residual_N = draw(n) * scale, draw(n)
    before_N, left_N, expected_N = grad_N.clone(), residual_N.clone(), residual_N.clone()
    for ours_N, theirs_N in ((left_N, expected_N), (None, None)):
        share_N = ops.cast_share(grad_N, ours_N, world_size, dtype)
        empty_N = torch.empty(n, dtype=dtype)
        assert_same(share_N, reference_casts.cast_share(empty_N, grad_N, theirs_N, world_size))
    assert_same(left_N, expected_N)
    assert_same(grad_N, before_N)


@needs_native
@pytest.mark.parametrize("dtype", HALVES)
def test_a_share_that_is_longer_than_the_caches_equals_the_reference(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    grad_N = torch.randn(2**20 + 17)
    for first in (0, 1):  # aligned, and not
        room_N = torch.zeros(grad_N.numel() + 1, dtype=dtype)
        share_N = room_N[first : first + grad_N.numel()]
        assert ops.cast_share(grad_N, None, 3, dtype, out_N=share_N) is share_N
        assert_same(share_N, reference_casts.cast_share(torch.empty_like(share_N), grad_N, None, 3))
        assert float(room_N[-1 if first == 0 else 0]) == 0


@needs_native
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_sum_of_casts_equals_the_reference(world_size: int, dtype: torch.dtype) -> None:
    for case in range(len(SIZES)):
        n = seeded(case)
        bits_WS = torch.randint(-(2**15), 2**15, (world_size, n))  # every number there is
        rows_WS = bits_WS.to(torch.int16).view(dtype)
        ours_S, theirs_S = (torch.empty(n, dtype=dtype) for _ in range(2))
        assert ops.sum_casts(rows_WS, ours_S) is ours_S
        assert_same(ours_S, reference_casts.sum_casts(rows_WS, theirs_S))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_and_every_value_between_two_is_rounded_as_by_torch(dtype: torch.dtype) -> None:
    every_N = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    every_N = every_N[every_N.isfinite()]
    following_N = every_N.sort().values.roll(-1)
    middle_N = every_N.sort().values.double().add(following_N.double()).div(2)[:-1].float()
    for x_N in (
        every_N,
        middle_N,
        middle_N.nextafter(torch.tensor(1e38)),
        middle_N.nextafter(torch.tensor(-1e38)),
    ):
        assert_same(ops.cast_share(x_N, None, 1, dtype), x_N.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_widened_as_by_torch(dtype: torch.dtype) -> None:
    every_N = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    for num, first in ((1, 0), (1, 3), (17, 0), (17, 5)):  # 17 times is past the caches, from 5 on unaligned
        x_N = every_N.repeat(num)[first:]
        room_N = torch.zeros(x_N.numel() + first + 1)
        out_N = room_N[first:-1]
        assert ops.widen(x_N, out_N) is out_N
        assert_same(out_N, x_N.float())
        assert not room_N[:first].any()
        assert float(room_N[-1]) == 0


@pytest.mark.parametrize("dtype", HALVES)
def test_the_unsent_part_of_a_share_stays_in_the_residual(dtype: torch.dtype) -> None:
    for world_size in WORLD_SIZES:
        seeded(world_size)
        grad_N, residual_N = torch.randn(1000), torch.randn(1000)
        signal_N = residual_N + grad_N
        share_N = ops.cast_share(grad_N, residual_N, world_size, dtype)
        assert torch.equal(share_N.float() * world_size + residual_N, signal_N)
        assert 0 < float(residual_N.abs().max()) < 2**-6 * float(signal_N.abs().max())
