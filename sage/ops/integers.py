"""Quantisation to integers of a table, which are added exactly and decoded once.

A vector is cut into parts, each of which has a step. An element's place is its value in steps plus g/2,
clipped to 0 … g, where g is the largest integer of the table. It becomes one of the two integers of the table
beside its place, at random and without bias. The sum Σ of W ranks' integers stands for (2·Σ − W·g)/(2·W)
steps.
"""
# N = elements of the vector, P = parts, L = levels, W = ranks or shares, S = elements of a share, B = bytes

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.ops import native, reference_integers
from sage.ops.philox import INDICES, Positions
from sage.ops.reference_integers import bytes_of_sums, code_bits

_native = torch.ops.sage


def _fake_quantise(
    signal: Tensor, bounds: object, steps: object, levels: Sequence[int], *rest: object
) -> Tensor:
    _, _, _, shares, packed, _ = rest
    assert isinstance(shares, int)
    length = (signal.numel() + shares - 1) // shares
    return signal.new_empty(
        (shares, (length * (code_bits(levels) if packed else 8) + 7) // 8), dtype=torch.uint8
    )


native.register("quantise_integers_", _fake_quantise)
native.register(
    "sum_integers",
    lambda bytes, levels, n: native.vector(
        bytes, bytes_of_sums(n, (bytes.shape[0] * levels[-1]).bit_length()), torch.uint8
    ),
)
native.register("average_integers_", lambda *_: None)


def quantise_integers(
    signal_N: Tensor,
    bounds_P: Tensor,
    step_P: Tensor,
    levels: Sequence[int],
    *,
    key: int,
    positions: Positions = INDICES,
    shares: int = 1,
    packed: bool = True,
    keep: bool,
) -> Tensor:
    """Round each element at random to an integer of the table (uint8, shares × B).

    A row has ⌈N/shares⌉ elements of the vector; behind the last element it has zeros.

    Args:
        signal_N: The signal; with `keep` it becomes the error: the signal minus the values of the integers,
            and 0 where that is not finite.
        bounds_P: First element of each part, and the number of all elements (int32, P + 1).
        step_P: The step of each part (float32).
        levels: The table: 2 to 256 integers that ascend from 0 to at most 255.
        key: Key of the random bits (`sage.ops.random_bits`).
        positions: Positions of the elements, for their random bits.
        shares: Number of rows.
        packed: Whether to write numbers of levels, ⌈log2 L⌉ bits each, or the integers, a byte each.
        keep: Whether to leave the error in the signal, or to leave the signal as it is.

    >>> step_P, bounds_P = torch.tensor([0.5]), torch.tensor([0, 3], dtype=torch.int32)
    >>> quantise_integers(
    ...     torch.tensor([-9.0, 1.0, 9.0]), bounds_P, step_P, (0, 3, 4), key=1, packed=False, keep=False
    ... )
    tensor([[0, 4, 4]], dtype=torch.uint8)
    """
    if native.takes("quantise_integers_", signal_N, step_P, bounds_P):
        runs = positions.starts, positions.firsts
        return _native.quantise_integers_.default(
            signal_N, bounds_P, step_P, levels, key, *runs, shares, packed, keep
        )
    return reference_integers.quantise(
        signal_N, bounds_P, step_P, levels, key, positions, shares=shares, packed=packed, keep=keep
    )


def sum_integers(bytes_WB: Tensor, levels: Sequence[int], n: int) -> Tensor:
    """Add the integers of W rows of n packed numbers of levels (uint8, B), as `pack_sums` packs them."""
    if native.takes("sum_integers", bytes_WB, dtype=torch.uint8):
        return _native.sum_integers.default(bytes_WB, levels, n)
    return reference_integers.sums(bytes_WB, levels, n)


def average_integers(
    out_N: Tensor, bytes_WB: Tensor, bits: int, bounds_P: Tensor, step_P: Tensor, *, most: int, num: int
) -> Tensor:
    """Decode sums of integers to the mean of the values.

    Args:
        out_N: Output; overwritten.
        bytes_WB: Sums of `bits` bits, packed as by `pack_sums`; a row has ⌈N/W⌉ of them, W being the number
            of rows.
        bits: Bits of a sum.
        bounds_P: As for `quantise_integers`.
        step_P: As for `quantise_integers`.
        most: The largest integer of the table.
        num: Number of integers in a sum.
    """
    if native.takes("average_integers_", out_N, step_P, bounds_P) and bytes_WB.is_contiguous():
        _native.average_integers_.default(out_N, bytes_WB, bits, bounds_P, step_P, most, num)
        return out_N
    return reference_integers.average(out_N, bytes_WB, bits, bounds_P, step_P, most=most, num=num)
