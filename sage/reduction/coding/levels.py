"""Unbiased stochastic rounding to levels between 0 and a scale.

Linear levels are those of QSGD (Alistarh et al., 2017); natural levels are those of natural dithering
(Horváth et al., 2019) as implemented in BytePS's dithering. The random number generator is our own
(`sage.rng`).
"""
# N = elements of the vector, P = buckets, G = groups, E = elements of a bucket

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["max", "l2"]
MANTISSA = 23
"""Bits of a float32 below its exponent."""


class Buckets:
    """Buckets of elements that share a scale; every group begins a new bucket, its last one being shorter.

    Operations run on views; adjacent buckets of equal size are processed as one matrix.

    Args:
        sizes: Number of elements of each group.
        bucket: Number of elements per bucket; None: every group is one bucket, even if it is empty.
    """

    def __init__(self, sizes: Sequence[int], bucket: int | None = None) -> None:
        self._runs: list[tuple[int, int]] = []  # (number of buckets, elements per bucket)
        for n in sizes:
            if bucket is None:
                self._add(1, n)
            else:
                self._add(n // bucket, bucket)
                self._add(1 if n % bucket else 0, n % bucket)

    def _add(self, num: int, size: int) -> None:
        if num and self._runs and self._runs[-1][1] == size:
            num += self._runs.pop()[0]
        if num:
            self._runs.append((num, size))

    def norms(self, x_N: Tensor, norm: Norm) -> Tensor:
        """Norm of each bucket (P), 0 for an empty one; NaN and infinity propagate."""
        largest_P = self._reduce(x_N, lambda x_PE: x_PE.abs().amax(1))
        if norm == "max":
            return largest_P
        # Divide by the largest first, so that the squares neither overflow nor underflow.
        ratio_N = self.ratios(x_N, largest_P)
        return largest_P * self._reduce(ratio_N, lambda x_PE: torch.linalg.vector_norm(x_PE, dim=1))

    def ratios(self, x_N: Tensor, scale_P: Tensor) -> Tensor:
        """x divided by the scale of its bucket; 0 where the scale is 0."""
        ratio_N = torch.empty_like(x_N)
        for x_PE, scale_P1, ratio_PE in self._each(x_N, torch.where(scale_P == 0, 1, scale_P), ratio_N):
            torch.div(x_PE, scale_P1, out=ratio_PE)
        return ratio_N

    def scale_(self, x_N: Tensor, scale_P: Tensor) -> Tensor:
        """Multiply every element by the scale of its bucket, in place."""
        for x_PE, scale_P1, _ in self._each(x_N, scale_P, x_N):
            x_PE.mul_(scale_P1)
        return x_N

    def clipped(self, x_N: Tensor, limit_P: Tensor) -> Tensor:
        """x clipped to ± the limit of its bucket."""
        clipped_N = torch.empty_like(x_N)
        for x_PE, limit_P1, clipped_PE in self._each(x_N, limit_P, clipped_N):
            torch.clamp(x_PE, -limit_P1, limit_P1, out=clipped_PE)
        return clipped_N

    def _each(self, x_N: Tensor, of_P: Tensor, out_N: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Buckets of x, one number per bucket, and buckets of the result: matrices with equal row counts."""
        numbers = of_P.view(-1, 1).split([num for num, _ in self._runs])
        return zip(self._views(x_N), numbers, self._views(out_N), strict=True)

    def _views(self, x_N: Tensor) -> Iterator[Tensor]:
        runs = x_N.split([num * size for num, size in self._runs])
        return (x.view(num, size) for x, (num, size) in zip(runs, self._runs, strict=True))

    def _reduce(self, x_N: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Reduce the rows of each matrix to one number per bucket (P)."""
        found = [of(x_PE) if x_PE.shape[1] else x_PE.sum(1) for x_PE in self._views(x_N)]
        return torch.cat([x_N.new_zeros(0), *found])


def num_buckets(sizes: Sequence[int], bucket: int | None) -> int:
    """Number of buckets that the groups are divided into."""
    return len(sizes) if bucket is None else sum(-(-n // bucket) for n in sizes)


def round_linear(ratio_N: Tensor, levels: int, uniform_N: Tensor) -> Tensor:
    """Round to one of the levels 0, ±1, … ±s (int8), evenly spaced, with s representing 1.

    The level is ⌊s·|x|⌋, or one more with probability s·|x| − ⌊s·|x|⌋, with x's sign. NaN becomes 0.

    Args:
        ratio_N: x, of magnitude 1 or less up to rounding.
        levels: Number of levels s, at most 127.
        uniform_N: Random numbers from [0, 1).
    """
    place_N = ratio_N.abs().mul_(levels).nan_to_num_(0.0, 0.0, 0.0)
    low_N = place_N.floor()
    more_N = place_N.sub_(low_N).gt_(uniform_N)  # 1 or 0 in place: faster than a bool mask
    return low_N.add_(more_N).clamp_(max=levels).copysign_(ratio_N).to(torch.int8)


def round_natural(ratio_N: Tensor, levels: int, uniform_N: Tensor) -> Tensor:
    """Round to one of the levels 0, ±1, … ±s (int8), where 1 to s represent 2^(1−s), …, 1/2, 1.

    Between two of them, and between 0 and the lowest, the probability of the higher one is linear in |x|, so
    that the expectation is x. NaN becomes 0. The arguments are those of `round_linear`.
    """
    place_N = ratio_N.abs().mul_(2.0 ** (levels - 1)).nan_to_num_(0.0, 0.0, 0.0)
    # Without its mantissa ⌊place⌋ is the power of two below, 2^(e−1), or 0; the exponent bits are e + 126.
    bits_N = place_N.floor().view(torch.int32).bitwise_right_shift_(MANTISSA)
    low_N = (bits_N << MANTISSA).view(torch.float32)
    exponent_N = bits_N.sub_(126).clamp_(min=0).float()
    more_N = place_N.sub_(low_N).gt_(low_N.clamp_(min=1).mul_(uniform_N))
    return exponent_N.add_(more_N).clamp_(max=levels).copysign_(ratio_N).to(torch.int8)


def natural_value(level_N: Tensor, levels: int) -> Tensor:
    """Values of natural levels (float32): 0, and 2^(level − s)."""
    return torch.where(level_N > 0, power_of_two(level_N.int() - levels), 0.0)


def power_of_two(exponent_N: Tensor) -> Tensor:
    """2^e (float32), exactly, for e (int32) from −126 to 127."""
    return (exponent_N + 127 << MANTISSA).view(torch.float32)


def power_below(x: Tensor) -> Tensor:
    """Largest power of two that does not exceed x ≥ 0, exactly; 0, NaN and infinity are unchanged."""
    mantissa = torch.frexp(x).mantissa
    return torch.where((x > 0) & x.isfinite(), x / (2 * mantissa), x)
