"""Tests of LQ-SGD: its codes, its bytes, and PowerSGD as the limit of many bits."""
# N = elements of the flat vector

import math
from typing import Any

import pytest
import torch
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sage.reducers.lqsgd import LqSgd, decode, encode
from sage.reducers.powersgd import PowerSgd
from sage.reduction.layout import Layout
from sage.testing.harness import Case, Step, steps

MIXED = (("w", (12, 9)), ("scale", (9,)), ("conv", (8, 3, 3)), ("small", (2, 2)))


def gradient(rank: int, step: int, shapes: Any = MIXED) -> Tensor:
    dice = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(Layout.of(shapes).numel, generator=dice)


@given(bits=st.integers(2, 8), alpha=st.floats(0.01, 100), seed=st.integers(0, 1000))
@settings(max_examples=examples(15), deadline=None)
def test_a_code_is_the_nearest_level_of_the_logarithm_and_its_value_that_of_the_formula(
    bits: int, alpha: float, seed: int
) -> None:
    x = 3 * torch.randn(20, 2, generator=torch.Generator().manual_seed(seed))
    codes, scale = encode(x, bits, alpha)
    top = 2 ** (bits - 1) - 1
    assert float(scale) == float(x.abs().max())
    values = decode(codes.view(20, 2), scale, bits, alpha)
    rows = zip(x.view(-1).tolist(), codes.tolist(), values.view(-1).tolist(), strict=True)
    for element, code, value in rows:
        q = math.log(1 + alpha * abs(element) / float(scale)) / math.log(1 + alpha)
        level = code - top
        assert abs(math.copysign(q, element) * top - level) <= 0.5 + 1e-4
        size = float(scale) * ((1 + alpha) ** (abs(level) / top) - 1) / alpha
        assert value == pytest.approx(math.copysign(size, level), rel=1e-4, abs=1e-6)
    assert float(values.abs().max()) == pytest.approx(float(scale), rel=1e-5)


def played(make: Any, options: dict[str, Any]) -> list[list[Step]]:
    return steps(Case(make, options, 3), gradient, count=3, shapes=MIXED)


def test_its_first_mean_is_powersgds_up_to_the_error_of_the_codes_which_the_bits_reduce() -> None:
    exact = played(PowerSgd, {"rank": 2})[0][0].mean_N
    off = [
        float((played(LqSgd, {"rank": 2, "bits_p": bits, "bits_q": bits})[0][0].mean_N - exact).norm())
        for bits in (2, 4, 6, 8)
    ]
    assert off[0] > 2 * off[1] > 4 * off[2] > 8 * off[3]
    assert off[3] < 0.02 * float(exact.norm())


def test_the_payload_bytes_equal_those_counted_by_hand() -> None:
    # Matrices of 12 × 9 and 8 × 9 to rank 2; scale, and small, which would not shrink, are dense.
    codes = -(-2 * (12 + 8) * 5 // 8) + -(-2 * (9 + 9) * 3 // 8)
    for result in played(LqSgd, {"rank": 2, "bits_p": 5, "bits_q": 3}):
        for step in result:
            assert step.payload == {"values": 4 * 13 + codes, "scales": 4 * 4}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"bits_p": 1}, r"bits_p=1: expected 2 to 8 bits"),
        ({"bits_q": 9}, r"bits_q=9: expected 2 to 8 bits"),
        ({"alpha": 0.0}, r"alpha=0\.0: expected a finite number above 0"),
        ({"rank": 0}, r"rank=0: expected a rank, 1 or more"),
    ],
)
def test_an_option_out_of_range_is_refused_with_the_allowed_range(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        LqSgd(**options)
