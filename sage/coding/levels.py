"""Levels between 0 and a scale, rounded to at random so that the mean is the number itself."""
# N = elements of the vector, P = buckets, G = groups, E = elements of a bucket

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["max", "l2"]


class Buckets:
    """Elements that share a scale: every group is cut anew, its last bucket being the rest of it.

    Args:
        sizes: Elements of each group.
        bucket: Elements of a bucket; None: every group is one, also where it is empty.
    """

    def __init__(self, sizes: Sequence[int], bucket: int | None, device: torch.device) -> None:
        self._sizes, self._bucket = list(sizes), bucket
        sizes_G = torch.tensor(self._sizes, dtype=torch.int64, device=device)
        if bucket is None:
            self._sizes_P = sizes_G
            return
        full_G, rest_G = sizes_G // bucket, sizes_G % bucket
        num_G = full_G + (rest_G > 0)
        self._sizes_P = sizes_G.new_full((num_buckets(sizes, bucket),), bucket)
        self._sizes_P[num_G.cumsum(0)[rest_G > 0] - 1] = rest_G[rest_G > 0]

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
        return x_N / self.spread(torch.where(scale_P == 0, 1, scale_P))

    def spread(self, scale_P: Tensor) -> Tensor:
        """Each bucket's number, once for every element of it (N)."""
        return scale_P.repeat_interleave(self._sizes_P, output_size=sum(self._sizes))

    def _reduce(self, x_N: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        """One number for each bucket (P), of the rows of a matrix."""
        found = [x_N.new_zeros(0)]
        for x in x_N.split(self._sizes):
            if x.numel() == 0:
                found.append(x.new_zeros(1 if self._bucket is None else 0))
                continue
            size = self._bucket or x.numel()
            full = x.numel() // size * size
            found += [of(part.view(-1, width)) for part, width in _rows(x, full, size)]
        return torch.cat(found)


def _rows(x: Tensor, full: int, size: int) -> list[tuple[Tensor, int]]:
    rest = x.numel() - full
    parts = [(x[:full], size), (x[full:], rest)]
    return [(part, width) for part, width in parts if part.numel()]


def num_buckets(sizes: Sequence[int], bucket: int | None) -> int:
    """How many buckets the groups are cut into."""
    return len(sizes) if bucket is None else sum(-(-n // bucket) for n in sizes)


def round_linear(ratio_N: Tensor, levels: int, uniform_N: Tensor) -> Tensor:
    """Which of the levels 0, 1, … s (int64), evenly apart, s being worth 1: ⌊s·|x|⌋, or one more.

    It is one more with the probability of what ⌊⌋ cut off. NaN becomes 0.

    Args:
        ratio_N: x, of magnitude 1 or less, but for rounding.
        levels: s.
        uniform_N: Drawn from [0, 1).
    """
    place_N = (ratio_N.abs() * levels).nan_to_num_(0.0, 0.0, 0.0)
    low_N = place_N.floor()
    return (low_N + (uniform_N < place_N - low_N)).clamp_(max=levels).long()


def round_natural(ratio_N: Tensor, levels: int, uniform_N: Tensor) -> Tensor:
    """Which of the levels 0, 1, … s (int64), of which 1 to s are worth 2^(1−s), …, 1/2, 1.

    Between two of them, as between 0 and the lowest, the higher is as likely as |x| is near to it, so that
    the mean is |x|. NaN becomes 0. Arguments are those of `round_linear`.
    """
    place_N = (ratio_N.abs() * 2.0 ** (levels - 1)).nan_to_num_(0.0, 0.0, 0.0)
    # e where the place is in [2^(e−1), 2^e), and 0 where it is below 1.
    exponent_N = torch.frexp(place_N).exponent.clamp_(min=0)
    low_N = torch.where(exponent_N > 0, power_of_two(exponent_N - 1), 0.0)
    more_N = uniform_N * low_N.clamp(min=1) < place_N - low_N
    return (exponent_N + more_N).clamp_(max=levels).long()


def natural_worth(level_N: Tensor, levels: int) -> Tensor:
    """What natural levels are worth (float32): 0, and 2^(level − s)."""
    return torch.where(level_N > 0, power_of_two(level_N.int() - levels), 0.0)


def power_of_two(exponent_N: Tensor) -> Tensor:
    """2^e (float32), exactly, e (int32) from −126 to 127."""
    return (exponent_N + 127 << 23).view(torch.float32)


def power_below(x: Tensor) -> Tensor:
    """The power of two that is not above x ≥ 0, exactly; 0, NaN and infinity as they are."""
    mantissa = torch.frexp(x).mantissa
    return torch.where((x > 0) & x.isfinite(), x / (2 * mantissa), x)
