"""The threshold of the first step, estimated from the magnitudes of the first signal."""
# N = elements of the vector

import math
from typing import Literal

import torch
from torch import Tensor

from sage import ops
from sage.comm.wire import Wire
from sage.reduction.controllers.base import num_wanted
from sage.reduction.controllers.feedback import own_quantile
from sage.reduction.controllers.quantile import HITS, SPARSEST

Start = Literal["gradient", "published"]
"""Whether the first threshold follows from the first signal, or is a paper's formula."""


def check_start(start: str) -> None:
    """Check the option `start`.

    Raises:
        ValueError: if it is not one of its choices.
    """
    if start not in ("gradient", "published"):
        raise ValueError(f"start={start!r}: expected gradient or published")


def dutta_threshold(density: float, n: int) -> float:
    """1/(2·sqrt(k)) with k = max(1, density·n), for gradients of norm 1 (Dutta et al., AAAI 2020)."""
    return 1 / (2 * math.sqrt(max(1.0, density * n)))


def estimated_quantile(grad_N: Tensor, residual_N: Tensor | None, density: float) -> float:
    """Magnitude that about max(1, ⌊density·n⌋) elements of a non-empty signal reach.

    It is exact for fewer than 2,048 elements, and otherwise that of a sample, which has one group
    of 32 elements in every min(128, ⌊k/1024⌋): the number of elements is then off by 3 % or less (one
    standard deviation), by more if large elements are clustered.

    Returns:
        The magnitude; 0 if fewer elements differ from 0, infinity if so many are not finite.
    """
    interval = min(SPARSEST, num_wanted(density, grad_N.numel()) // HITS)
    if interval <= 1:
        return own_quantile(grad_N, residual_N, density)
    return ops.threshold_from_sample(ops.sample(grad_N, residual_N, every=interval), density)


def common_quantile(grad_N: Tensor, residual_N: Tensor | None, density: float, wire: Wire) -> float:
    """Mean over the ranks of their estimated quantiles, the same on every rank; 8 bytes (`scales`)."""
    quantile = torch.tensor([estimated_quantile(grad_N, residual_N, density)], dtype=torch.float64)
    return float(wire.mean(quantile.to(grad_N.device), kind="scales"))
