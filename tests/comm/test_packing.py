"""Tests of packed codes and indices: ops equal references, and decoding returns the input."""

import math
from typing import Any

import pytest
import torch
from vectors import assert_same, seeded

from sage import ops
from sage.ops import reference


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_codes_equal_the_reference_and_unpack_to_the_input(bits: int, device: str) -> None:
    for n in (0, 1, 7, 8, 9, 1001):
        torch.manual_seed(n)
        codes_N = torch.randint(256, (n,), dtype=torch.uint8, device=device)
        bytes_B = ops.pack(codes_N, bits)
        assert bytes_B.numel() == math.ceil(n * bits / 8)
        assert_same(bytes_B, reference.pack(codes_N, bits))
        assert_same(ops.unpack(bytes_B, bits, n), codes_N & (2**bits - 1))
        assert_same(reference.unpack(bytes_B, bits, n), codes_N & (2**bits - 1))


@pytest.mark.parametrize("density", [0.0, 0.0005, 0.01, 0.5, 1.0])
def test_coded_indices_equal_the_reference_and_decode_to_the_input(density: float, device: str) -> None:
    for case in range(8):
        n = seeded(case)
        at_K = (torch.rand(n) < density).nonzero().view(-1).int().to(device)
        gaps_B, bitmap_B = ops.encode_gaps(at_K), ops.encode_bitmap(at_K, n)
        assert_same(gaps_B, reference.encode_gaps(at_K))
        assert_same(bitmap_B, reference.encode_bitmap(at_K, n))
        for of in (ops, reference):
            assert_same(of.decode_gaps(gaps_B, at_K.numel()), at_K)
            assert_same(of.decode_bitmap(bitmap_B), at_K)


def test_the_largest_gaps_can_be_coded(device: str) -> None:
    at_K = torch.tensor([127, 128, 128 + 2**14, 2**30, 2**31 - 1], dtype=torch.int32, device=device)
    assert_same(ops.encode_gaps(at_K), reference.encode_gaps(at_K))
    assert_same(ops.decode_gaps(ops.encode_gaps(at_K), 5), at_K)


@pytest.mark.parametrize("of", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize(
    ("encoded", "num"),
    [([], 1), ([1], 0), ([1, 1], 1), ([1], 2), ([0x80], 1), ([0x80] * 5 + [1], 1), ([0xFF] * 4 + [0x7F], 1)],
)
def test_bytes_that_are_not_coded_gaps_are_refused(
    of: Any, encoded: list[int], num: int, device: str
) -> None:
    with pytest.raises(RuntimeError, match=rf"bytes: not those of {num} gaps|bytes cannot hold {num} gaps"):
        of.decode_gaps(torch.tensor(encoded, dtype=torch.uint8, device=device), num)
