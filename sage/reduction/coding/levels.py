"""Stochastic rounding to levels between 0 and a scale, so that the mean is the number itself.

Linear levels are those of QSGD (Alistarh et al., 2017), natural ones those of natural dithering (Horváth et
al., 2019) as BytePS's dithering has them. The random numbers are our own (`sage.rng`).
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
    """Elements that share a scale: every group is cut anew, its last bucket being the rest of it.

    What is done to them runs over views, one of all buckets of equal size that lie one after another.

    Args:
        sizes: Elements of each group.
        bucket: Elements of a bucket; None: every group is one, also where it is empty.
    """

    def __init__(self, sizes: Sequence[int], bucket: int | None = None) -> None:
        self._runs: list[tuple[int, int]] = []  # so many buckets of so many elements
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
        """The norm of each bucket (P), 0 of an empty one; NaN and infinity are seen in it."""
        largest_P = self._reduce(x_N, lambda x_PE: x_PE.abs().amax(1))
        if norm == "max":
            return largest_P
        # Divided by the largest first: squares would overflow, or vanish.
        ratio_N = self.ratios(x_N, largest_P)
        return largest_P * self._reduce(ratio_N, lambda x_PE: torch.linalg.vector_norm(x_PE, dim=1))

    def ratios(self, x_N: Tensor, scale_P: Tensor) -> Tensor:
        """x over the scale of its bucket; 0 where that is 0."""
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
        """x, or where that is larger, the limit of its bucket with x's sign."""
        clipped_N = torch.empty_like(x_N)
        for x_PE, limit_P1, clipped_PE in self._each(x_N, limit_P, clipped_N):
            torch.clamp(x_PE, -limit_P1, limit_P1, out=clipped_PE)
        return clipped_N

    def _each(self, x_N: Tensor, of_P: Tensor, out_N: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The buckets of x, a number of each, and the buckets of the result: matrices of as many rows."""
        numbers = of_P.view(-1, 1).split([num for num, _ in self._runs])
        return zip(self._views(x_N), numbers, self._views(out_N), strict=True)

    def _views(self, x_N: Tensor) -> Iterator[Tensor]:
        runs = x_N.split([num * size for num, size in self._runs])
        return (x.view(num, size) for x, (num, size) in zip(runs, self._runs, strict=True))

    def _reduce(self, x_N: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        """One number for each bucket (P), of the rows of a matrix."""
        found = [of(x_PE) if x_PE.shape[1] else x_PE.sum(1) for x_PE in self._views(x_N)]
        return torch.cat([x_N.new_zeros(0), *found])


def num_buckets(sizes: Sequence[int], bucket: int | None) -> int:
    """How many buckets the groups are cut into."""
    return len(sizes) if bucket is None else sum(-(-n // bucket) for n in sizes)


def round_linear(ratio_N: Tensor, levels: int, uniform_N: Tensor) -> Tensor:
    """Which of the levels 0, ±1, … ±s (int8), evenly apart, s being worth 1: ⌊s·|x|⌋, or one more.

    It is one more with the probability of what ⌊⌋ cut off, and has x's sign. NaN becomes 0.

    Args:
        ratio_N: x, of magnitude 1 or less, but for rounding.
        levels: s, at most 127.
        uniform_N: Drawn from [0, 1).
    """
    place_N = ratio_N.abs().mul_(levels).nan_to_num_(0.0, 0.0, 0.0)
    low_N = place_N.floor()
    more_N = place_N.sub_(low_N).gt_(uniform_N)  # 1 or 0 in place, sooner than a bool mask
    return low_N.add_(more_N).clamp_(max=levels).copysign_(ratio_N).to(torch.int8)


def round_natural(ratio_N: Tensor, levels: int, uniform_N: Tensor) -> Tensor:
    """Which of the levels 0, ±1, … ±s (int8), of which 1 to s are worth 2^(1−s), …, 1/2, 1.

    Between two of them, as between 0 and the lowest, the higher is as likely as |x| is near to it, so that
    the mean is x. NaN becomes 0. Arguments are those of `round_linear`.
    """
    place_N = ratio_N.abs().mul_(2.0 ** (levels - 1)).nan_to_num_(0.0, 0.0, 0.0)
    # Less its mantissa ⌊place⌋ is the power of two below, 2^(e−1), or 0; the exponent's bits say e + 126.
    bits_N = place_N.floor().view(torch.int32).bitwise_right_shift_(MANTISSA)
    low_N = (bits_N << MANTISSA).view(torch.float32)
    exponent_N = bits_N.sub_(126).clamp_(min=0).float()
    more_N = place_N.sub_(low_N).gt_(low_N.clamp_(min=1).mul_(uniform_N))
    return exponent_N.add_(more_N).clamp_(max=levels).copysign_(ratio_N).to(torch.int8)


def natural_value(level_N: Tensor, levels: int) -> Tensor:
    """What natural levels are worth (float32): 0, and 2^(level − s)."""
    return torch.where(level_N > 0, power_of_two(level_N.int() - levels), 0.0)


def power_of_two(exponent_N: Tensor) -> Tensor:
    """2^e (float32), exactly, e (int32) from −126 to 127."""
    return (exponent_N + 127 << MANTISSA).view(torch.float32)


def power_below(x: Tensor) -> Tensor:
    """The power of two that is not above x ≥ 0, exactly; 0, NaN and infinity as they are."""
    mantissa = torch.frexp(x).mantissa
    return torch.where((x > 0) & x.isfinite(), x / (2 * mantissa), x)
