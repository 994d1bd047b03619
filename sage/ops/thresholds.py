"""Estimates of the threshold that a density needs: from a histogram of the magnitudes, or from a sample."""
# N = elements of the flat vector, S = elements of the sample

import math

import torch
from torch import Tensor

from sage.ops import native, reference
from sage.ops.reference import NUM_BINS
from sage.ops.select import least_magnitude, take_top

_native = torch.ops.sage
native.register("histogram_", lambda bins, x, every: None)


def histogram(x_N: Tensor, *, every: int = 1) -> Tensor:
    """Number of magnitudes in each of NUM_BINS bins (int32), in one of `every` groups of 64 elements.

    A bin is 1.1 to 1.6 % wide: the exponent and the first 6 bits of the mantissa as a number.
    """
    bins = torch.zeros(NUM_BINS, dtype=torch.int32, device=x_N.device)
    if native.takes("histogram_", x_N):
        _native.histogram_.default(bins, x_N, every)
    else:
        reference.histogram(bins, x_N, every)
    return bins


def threshold_from_histogram(bins: Tensor, density: float) -> float:
    """Threshold that a share `density` of the counted magnitudes reaches, interpolated within its bin.

    Returns:
        The threshold; infinity if nothing was counted.
    """
    falling = bins.flip(0).cumsum(0, dtype=torch.int64)
    num = int(falling[-1])
    wanted = density * num
    if num == 0:
        return float("inf")
    bin_ = NUM_BINS - 1 - int(torch.searchsorted(falling, wanted))
    here = int(bins[bin_])
    above = int(falling[NUM_BINS - 1 - bin_]) - here
    edges = torch.tensor([bin_, bin_ + 1]) << reference.BIN_SHIFT
    low, high = edges.int().view(torch.float32).tolist()
    return low + (high - low) * (1 - (wanted - above) / here) if high < float("inf") else low


def sample(grad_N: Tensor, residual_N: Tensor | None, *, every: int, first: int = 0) -> Tensor:
    """The signal's elements in one of `every` groups of 32 (two cache lines), starting at group `first`.

    Neighbouring elements are similar in magnitude, so many short groups are more informative than few long
    ones.
    """
    rows = [x_N[32 * first :].unfold(0, 32, 32 * every) for x_N in (grad_N, residual_N) if x_N is not None]
    return (rows[1] + rows[0] if len(rows) == 2 else rows[0]).flatten()


def threshold_from_sample(sample_S: Tensor, density: float, near: tuple[float, float] = (0.0, 0.0)) -> float:
    """Largest magnitude that a share `density` of a sample, or more, reaches; `near` as in `take_top`."""
    num = sample_S.numel()
    k = min(num, max(1, math.ceil(density * num)))
    return least_magnitude(take_top(sample_S, None, [0, num], [k], near=near)[0])
