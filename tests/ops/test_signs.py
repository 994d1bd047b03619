"""Tests of group statistics, signs and random bits: kernels against their references, bitwise."""
# N = elements of the vector, G = groups, W = payloads

import math
import random
from collections.abc import Iterator

import pytest
import torch
from vectors import assert_same, draw

from sage import ops
from sage.ops import native, reference_philox, reference_signs, reference_sums

needs_native = pytest.mark.skipif(native.MISSING is not None, reason=f"no extension: {native.MISSING}")

GROUPS = [0, 1, 5, 15, 16, 17, 31, 32, 33, 100, 1023, 1024, 1025, 5000, 70_001]


def seeded(case: int) -> list[int]:
    """Seed both generators and return the sizes of the case's groups."""
    random.seed(case)
    torch.manual_seed(case)
    return [random.choice(GROUPS) for _ in range(random.randint(0, 6))]


@pytest.fixture(params=[1, 2], ids=lambda threads: f"{threads} threads", autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("case", range(20))
def test_statistics_equal_the_reference(case: int) -> None:
    sizes = seeded(case)
    grad_N, residual_N = draw(sum(sizes)), draw(sum(sizes))
    for kind in ops.Kind:
        ours_N, theirs_N = residual_N.clone(), residual_N.clone()
        ours = ops.statistics(grad_N, ours_N, sizes, kind)
        theirs = reference_sums.statistics(theirs_N, grad_N.clone(), sizes, int(kind))
        assert_same(ours_N, theirs_N)
        for left_G, right_G in zip(ours, theirs, strict=True):
            assert torch.equal(left_G.nan_to_num(-1.0), right_G.nan_to_num(-1.0))


def test_statistics_are_computed_for_each_group() -> None:
    x_N = torch.tensor([3.0, -4.0, 0.0, -1.0, math.nan, -2.0])
    assert ops.statistics(x_N[:4], None, [3, 0, 1], ops.Kind.ABSOLUTE).sum_G.tolist() == [7.0, 0.0, 1.0]
    squares = ops.statistics(x_N[:4], None, [3, 0, 1], ops.Kind.SQUARES)
    assert squares.sum_G.tolist() == [25.0, 0.0, 1.0]
    assert squares.largest_G.tolist() == [4.0, 0.0, 1.0]
    sides = ops.statistics(x_N, None, [4, 2], ops.Kind.SIDES)
    assert sides.sum_G.tolist() == [-5.0, -2.0]
    assert sides.below_G.tolist() == [2.0, 1.0]
    assert sides.other_G[0] == 3.0
    assert sides.other_G[1].isnan()


@needs_native
@pytest.mark.parametrize("case", range(20))
def test_signs_and_residuals_equal_the_reference(case: int) -> None:
    sizes = seeded(case)
    x_N, low_G, high_G = draw(sum(sizes)), torch.randn(len(sizes)), torch.randn(len(sizes))
    for keep in (False, True):
        ours_N, theirs_N = x_N.clone(), x_N.clone()
        ours_B = ops.sign_bits(ours_N, sizes, low_G, high_G, keep=keep)
        theirs_B = reference_signs.sign_bits(theirs_N, sizes, low_G, high_G, keep=keep)
        assert torch.equal(ours_B, theirs_B)
        assert_same(ours_N, theirs_N)
        assert keep or torch.equal(ours_N.view(torch.int32), x_N.view(torch.int32))


@needs_native
@pytest.mark.parametrize("case", range(20))
@pytest.mark.parametrize("by_column", [False, True])
def test_words_of_signs_equal_the_reference_and_decode_to_the_signs(case: int, by_column: bool) -> None:
    sizes = seeded(case)
    zero_G = torch.zeros(len(sizes))
    bytes_B = ops.sign_bits(draw(sum(sizes)), sizes, zero_G, zero_G, keep=False)
    words_V = ops.sign_words(bytes_B, sizes, by_column=by_column)
    assert torch.equal(words_V, reference_signs.sign_words(bytes_B, sizes, by_column=by_column))
    any_V = torch.randint(-(2**31), 2**31 - 1, words_V.shape, dtype=torch.int32)  # padding bits may be set
    words_WV = torch.stack((words_V, any_V))
    bytes_WB = ops.sign_bytes(words_WV, sizes, by_column=by_column)
    assert torch.equal(bytes_WB[0], bytes_B)
    assert torch.equal(bytes_WB, reference_signs.sign_bytes(words_WV, sizes, by_column=by_column))


@needs_native
@pytest.mark.parametrize("case", range(20))
def test_the_mean_of_signs_equals_the_reference(case: int) -> None:
    sizes = seeded(case)
    num = random.randint(1, 5)
    zero_G = torch.zeros(len(sizes))
    rows = [ops.sign_bits(draw(sum(sizes)), sizes, zero_G, zero_G, keep=False) for _ in range(num)]
    low_WG, high_WG = torch.randn(num, len(sizes)), torch.randn(num, len(sizes))
    if sizes:
        low_WG[0, 0] = math.nan
    before_N = draw(sum(sizes))
    for added in (False, True):
        for votes in (False, True):
            means = []
            for mean_signs in (ops.mean_signs, reference_signs.mean_signs):
                out_N = before_N.clone()
                mean_signs(
                    out_N, torch.stack(rows), sizes, low_WG, high_WG, divisor=num, added=added, votes=votes
                )
                means.append(out_N)
            assert_same(*means)


@needs_native
@pytest.mark.parametrize("first", [0, 1])
def test_the_mean_of_signs_of_a_vector_longer_than_the_caches_equals_the_reference(first: int) -> None:
    torch.manual_seed(first)
    sizes = [1000, 2**20 + 16, 21]
    bytes_WB = torch.randint(256, (2, -(-sum(sizes) // 8)), dtype=torch.uint8)
    low_WG, high_WG = torch.randn(2, 3), torch.randn(2, 3)
    means = [torch.empty(first + sum(sizes))[first:] for _ in range(2)]
    for out_N, of in zip(means, (ops, reference_signs), strict=True):
        of.mean_signs(out_N, bytes_WB, sizes, low_WG, high_WG, divisor=2, added=False, votes=False)
    assert_same(*means)


@needs_native
@pytest.mark.parametrize("case", range(20))
def test_a_momentum_and_its_signs_equal_the_reference(case: int) -> None:
    n = sum(seeded(case))
    beta = random.choice([0.0, 0.9, 0.99, random.random()])
    ours_N, theirs_N = (torch.randn(n, generator=torch.Generator().manual_seed(case)) for _ in range(2))
    for _ in range(3):
        signal_N = draw(n)
        ours_B, ours_1 = ops.momentum_signs(ours_N, signal_N, beta)
        theirs_B, theirs_1 = reference_signs.momentum_signs(theirs_N, signal_N, beta)
        assert torch.equal(ours_B, theirs_B)
        assert torch.equal(ours_1.nan_to_num(-1.0), theirs_1.nan_to_num(-1.0))
        assert_same(ours_N, theirs_N)


@needs_native
@pytest.mark.parametrize("first", [0, 1, 127, 128, 1000])
def test_random_bits_equal_the_reference_at_any_offset(first: int) -> None:
    for n in (0, 1, 127, 128, 129, 3000):
        for starts, firsts in (((0,), (first,)), ((0, n // 2, n // 2), (first, 0, 7))):
            expected_N = torch.empty(n, dtype=torch.int32)
            reference_philox.random_bits_(expected_N, 2**62 + 9, starts, firsts)
            ours_N = ops.random_bits(n, 2**62 + 9, positions=ops.Positions(starts, firsts))
            assert torch.equal(ours_N, expected_N)


def test_the_generator_gives_the_published_numbers() -> None:
    # Random123's known answer for a key and a counter of zeros.
    words = reference_philox.philox(torch.tensor([0]), 0)[0].tolist()
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_random_bits_are_uniform_and_differ_by_key() -> None:
    bits_N = ops.random_bits(1 << 18, 3)
    assert int(bits_N.min()) >= 0
    assert int(bits_N.max()) < 1 << 16
    counts = torch.bincount(bits_N >> 8, minlength=256).double()
    expected = (1 << 18) / 256
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_squared - 255) < 5 * math.sqrt(2 * 255)
    assert int((ops.random_bits(1 << 18, 4) == bits_N).sum()) < 40
