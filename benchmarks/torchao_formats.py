"""Compares mxfp8, mxfp4 and nvfp4 with torchao's MX formats: how many scales and codes differ.

torchao is no dependency: install it beside this environment, for instance by

    pip install --no-deps --target /tmp/torchao torchao
    PYTHONPATH=/tmp/torchao .venv/bin/python benchmarks/torchao_formats.py

The numbers are drawn: normal, times powers of two that differ by block of 32 (synthetic data).
"""
# N = elements, P = blocks

import argparse

import torch
from torch import Tensor
from torchao.prototype.mx_formats.mx_tensor import to_mx  # pyright: ignore[reportMissingImports]
from torchao.prototype.mx_formats.nvfp4_tensor import (  # pyright: ignore[reportMissingImports]
    nvfp4_quantize,
    per_tensor_amax_to_scale,
)

from sage import ops
from sage.comm.threads import simulate
from sage.reducers.mxfp4 import MxFp4
from sage.reducers.mxfp8 import MxFp8
from sage.reducers.nvfp4 import NvFp4
from sage.reduction.quantise import Parts, Quantiser


def encoded(method: Quantiser, x_N: Tensor) -> Parts:
    """The parts of a vector as one group."""
    return simulate(1, lambda wire: method.encode(x_N, [x_N.numel()], wire))[0]


def drawn(n: int, spread: int) -> Tensor:
    """Normal numbers times powers of two from −spread to spread, one for each 32."""
    generator = torch.Generator().manual_seed(0)
    power_P = torch.randint(-spread, spread + 1, (n // 32, 1), generator=generator).float().exp2()
    return (torch.randn(n // 32, 32, generator=generator) * power_P).view(-1)


def main() -> None:
    """Print a row for each format and spread."""
    parser = argparse.ArgumentParser(description="Compare the formats with those of torchao.")
    parser.add_argument("--elements", type=int, default=1_048_576, help="a multiple of 32")
    n = parser.parse_args().elements
    print("| format | spread of powers | scales that differ | codes that differ | of elements |")
    print("|---|---:|---:|---:|---:|")
    for name, method, dtype in (
        ("mxfp8 e4m3", MxFp8(), torch.float8_e4m3fn),
        ("mxfp8 e5m2", MxFp8(format="e5m2"), torch.float8_e5m2),
        ("mxfp4", MxFp4(), torch.float4_e2m1fn_x2),
    ):
        for spread in (0, 40):
            x_N = drawn(n, spread)
            parts = encoded(method, x_N)
            scale_P, data = to_mx(x_N, dtype, 32)
            show(name, spread, parts["values"], data, parts["scales"], scale_P, n)
    for spread in (0, 4, 8):
        x_N = drawn(n, spread)
        parts = encoded(NvFp4(), x_N)
        tensor = per_tensor_amax_to_scale(x_N.abs().max())
        assert torch.equal(parts["scales"][:4].view(torch.float32)[0], tensor)
        scale_P, data = nvfp4_quantize(x_N.view(1, -1), 16, tensor)
        show("nvfp4", spread, parts["values"], data, parts["scales"][4:], scale_P, n)


def show(
    name: str, spread: int, ours: Tensor, theirs: Tensor, scale: Tensor, their_scale: Tensor, n: int
) -> None:
    """Print how many scales and codes differ."""
    values, other = ours, theirs.reshape(-1).view(torch.uint8)
    if values.numel() < n:  # two 4-bit codes in a byte, the first one low
        values, other = ops.unpack(values, 4, n), ops.unpack(other, 4, n)
    scales = int((scale != their_scale.reshape(-1).view(torch.uint8)).sum())
    print(f"| {name} | {spread} | {scales} of {scale.numel()} | {int((values != other).sum())} | {n} |")


if __name__ == "__main__":
    main()
