"""Sums and maxima over the groups of a vector, in one pass that also accumulates the gradient.

The order of the additions is fixed (csrc/cpu/sums.h), so that every thread count and instruction set gives
the same bits.
"""
# N = elements of the flat vector, G = groups

from collections.abc import Sequence
from enum import IntEnum
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from sage.ops import native, reference_sums

_native = torch.ops.sage

native.register(
    "statistics_",
    lambda signal, grad, bounds, kind: signal.new_empty((4, len(bounds) - 1), dtype=torch.float64),
)


class Kind(IntEnum):
    """The statistics to compute for each group of the signal a."""

    ABSOLUTE = 0
    """Σ|a|."""
    SIDES = 1
    """Σ of the a below 0, Σ of the others (NaN among them), and the number of those below 0."""
    SQUARES = 2
    """Σ a² and max|a|."""
    LARGEST = 3
    """max|a|."""


class Statistics(NamedTuple):
    """Statistics of each group (float64, G each); those that are not of the kind are 0."""

    sum_G: Tensor
    other_G: Tensor
    largest_G: Tensor
    """Largest magnitude; NaN if any element is NaN."""
    below_G: Tensor


def statistics(grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], kind: Kind) -> Statistics:
    """Accumulate, and compute the statistics of each group.

    Args:
        grad_N: The gradient; without a residual it is the signal, and is not modified.
        residual_N: Accumulated into.
        sizes: Number of elements of each group; they sum to N.
        kind: What to compute.
    """
    signal_N, added_N = (grad_N, None) if residual_N is None else (residual_N, grad_N)
    if native.takes("statistics_", signal_N, added_N):
        rows = _native.statistics_.default(signal_N, added_N, bounds_of(sizes), int(kind))
    else:
        rows = reference_sums.statistics(signal_N, added_N, sizes, int(kind))
    return Statistics(*rows.unbind())


def bounds_of(sizes: Sequence[int]) -> list[int]:
    """First element of each group, and the number of all elements.

    >>> bounds_of([3, 2])
    [0, 3, 5]
    """
    return [0, *accumulate(sizes)]
