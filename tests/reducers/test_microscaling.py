"""MXFP8, MXFP4 and NVFP4 against a plain implementation in float64, and at the ends of their ranges."""
# N = elements of the vector, P = blocks, V = values of a format

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sage import ops
from sage.comm.threads import simulate
from sage.reducers.mxfp4 import MxFp4
from sage.reducers.mxfp8 import MxFp8
from sage.reducers.nvfp4 import NvFp4
from sage.reduction.quantise import Parts, Quantiser

Floats = NDArray[np.float64]
N = 700
SIZES = [677, 23]


def values(mantissa: int, bias: int, largest: int) -> Floats:
    """The values of the codes from 0 to the largest one, for these mantissa bits and this bias."""
    code_V = np.arange(largest + 1)
    exponent_V, fraction_V = code_V >> mantissa, (code_V & (1 << mantissa) - 1) / 2.0**mantissa
    return np.where(
        exponent_V > 0, (1 + fraction_V) * 2.0 ** (exponent_V - bias), fraction_V * 2.0 ** (1 - bias)
    )


E4M3, E5M2, E2M1 = values(3, 7, 126), values(2, 15, 123), values(1, 1, 7)


def nearest(y_N: Floats, value_V: Floats) -> NDArray[np.int64]:
    """The code of the value nearest to |y|: of two equally near the even one, and the last above all."""
    even_first = np.argsort(np.arange(len(value_V)) % 2, kind="stable")
    return even_first[np.abs(np.abs(y_N)[:, None] - value_V[even_first]).argmin(1)]


def drawn(spread: int) -> Tensor:
    """Numbers in blocks whose sizes differ by 2^±spread, halfway cases and zeros among them."""
    generator = torch.Generator().manual_seed(5)
    x_N = torch.randn(N, generator=generator) * torch.randint(-9, 10, (N,), generator=generator).exp2()
    x_N[::3] = torch.randint(-64, 65, (len(x_N[::3]),), generator=generator) / 8
    block_N = torch.arange(N).div(16, rounding_mode="floor")
    x_N *= (block_N * 7 % (2 * spread) - spread).float().exp2()
    x_N[64:96] = 0
    return x_N


def blocks(x_N: Tensor, block: int) -> list[Floats]:
    return [part.double().numpy() for group in x_N.split(SIZES) for part in group.split(block)]


def encoded(method: Quantiser, x_N: Tensor, sizes: list[int] = SIZES) -> Parts:
    return simulate(1, lambda wire: method.encode(x_N, sizes, wire))[0]


@pytest.mark.parametrize(
    ("method", "value_V"),
    [(MxFp8(), E4M3), (MxFp8(format="e5m2"), E5M2), (MxFp4(), E2M1)],
    ids=["mxfp8-e4m3", "mxfp8-e5m2", "mxfp4"],
)
def test_the_codes_are_those_of_the_mx_specification(method: Quantiser, value_V: Floats) -> None:
    x_N, sign = drawn(110), 8 if len(value_V) == 8 else 128
    parts = encoded(method, x_N)
    codes_N = (ops.unpack(parts["values"], 4, N) if sign == 8 else parts["values"]).numpy()
    decoded_N, start = method.decode(parts, SIZES).double().numpy(), 0
    for x, byte in zip(blocks(x_N, 32), parts["scales"].tolist(), strict=True):
        own = slice(start, start := start + len(x))
        largest = float(np.abs(x).max())
        assert byte == max(0, math.frexp(largest)[1] - math.frexp(value_V[-1])[1] + 127 if largest else 0)
        code = nearest(x / 2.0 ** (byte - 127), value_V)
        assert codes_N[own].tolist() == (code + sign * np.signbit(x)).tolist()
        assert decoded_N[own].tolist() == np.copysign(value_V[code] * 2.0 ** (byte - 127), x).tolist()


def test_nvfp4_has_a_float32_for_each_group_and_an_8_bit_float_for_each_16() -> None:
    x_N = drawn(5) * torch.cat([torch.full((n,), 2.0 ** (40 * g)) for g, n in enumerate(SIZES)])
    parts = encoded(NvFp4(), x_N)
    tensor_G = parts["scales"][:8].view(torch.float32)
    largest_G = torch.stack([x.abs().max() for x in x_N.split(SIZES)])
    assert torch.equal(tensor_G, largest_G / torch.tensor(2688.0))
    decoded_N, start = NvFp4().decode(parts, SIZES).double().numpy(), 0
    seen = zip(blocks(x_N, 16), parts["scales"][8:].tolist(), strict=True)
    for number, (x, byte) in enumerate(seen):
        own = slice(start, start := start + len(x))
        tensor = tensor_G[int(number >= 43)].numpy()
        share = np.float32(np.abs(x).max()) / np.float32(6) / tensor
        assert byte == nearest(np.array([share], np.float64), E4M3)[0]
        step = E4M3[byte] * float(tensor)
        best = np.abs(np.abs(x)[:, None] - E2M1 * step).min(1)
        assert np.all(np.abs(decoded_N[own] - x) <= best + 1e-6 * np.abs(x))


def test_what_is_above_the_largest_number_becomes_it_and_its_error_is_kept() -> None:
    x_N = torch.tensor([7.9, -7.0, 6.5, 0.2])  # in units of 1: 8 is 2^(2 + 1)
    assert MxFp4().decode(encoded(MxFp4(), x_N, [4]), [4]).tolist() == [6.0, -6.0, 6.0, 0.0]
    residual_N = torch.zeros(4)
    simulate(1, lambda wire: MxFp4().compress(x_N, residual_N, [4], wire))
    torch.testing.assert_close(residual_N, torch.tensor([1.9, -1.0, 0.5, 0.2]))
    assert MxFp8().decode(encoded(MxFp8(), x_N * 64, [4]), [4])[:2].tolist() == [448.0, -448.0]


@pytest.mark.parametrize("method", [MxFp8(), MxFp4(), NvFp4()], ids=str)
@pytest.mark.parametrize("spike", [math.nan, -math.inf])
def test_only_the_block_of_a_number_that_is_not_finite_is_nan(method: Quantiser, spike: float) -> None:
    x_N = torch.ones(96)
    x_N[40] = spike
    decoded_N = method.decode(encoded(method, x_N, [96]), [96])
    block = 16 if isinstance(method, NvFp4) else 32
    assert torch.equal(decoded_N.isnan(), torch.arange(96).div(block, rounding_mode="floor") == 40 // block)
    assert bool((decoded_N.nan_to_num(1.0) == 1).all())


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 3e38])
@pytest.mark.parametrize("method", [MxFp8(), MxFp8(format="e5m2"), MxFp4(), NvFp4()], ids=str)
def test_no_size_of_number_overflows(method: Quantiser, scale: float) -> None:
    x_N = torch.linspace(-1, 1, 64) * scale
    decoded_N = method.decode(encoded(method, x_N, [64]), [64])
    assert bool((decoded_N.abs() <= x_N.abs().max() * 1.21).all())
    if scale >= 1e-38:
        torch.testing.assert_close(decoded_N, x_N, rtol=0, atol=0.26 * scale)
