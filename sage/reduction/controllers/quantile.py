"""Quantile: the threshold is the signal's own quantile, searched near the last step's. The rule is ours."""
# N = elements of the vector, C = candidates, K = elements selected, S = sampled elements, B = bins

import math

import torch
from torch import Tensor

from sage import ops

from .base import Agree, Controller, local_only, num_wanted, signal_dtype

SAMPLED_FROM = 1 / 32
"""Density from which λ is estimated from a sample."""
HITS = 1024
"""Minimum number of wanted elements that the sample contains."""
SPARSEST = 128
"""Largest stride of the sample, in groups of elements."""
FADES, REACH, FARTHEST = 0.9, 1.5, 0.3
"""Decay, factor and limit of the bracket's half-width around the last λ, on a logarithmic scale.

The half-width is REACH times the largest recent move of λ, which decays by FADES at every step, but at most
FARTHEST.
"""

NARROW = 0.03
"""Half-width up to which the search begins with the bracket; otherwise it begins with a sample's.

With error feedback many elements are just below λ, so that a bracket of 0.1 takes up to twice the time.
"""

BINS = 16
"""Number of bins that agreeing ranks count at a time."""
FINE = 0.3
"""λ is interpolated within a bin that holds at most this share of the wanted elements."""


class Quantile(Controller):
    """λ is the magnitude of the k-th largest |a| of the signal, k = max(1, ⌊d·n⌋).

    Below d = 1/32, and if k < 2048, it is exact: the k largest elements are selected, of equal ones those of
    lower index. Zeros are never selected; all elements that are not finite are selected, even if there are
    more than k. Otherwise exactness would cost more than it gains, and λ is the same quantile of a sample of
    the current signal: one group of 32 elements in every min(128, ⌊k/1024⌋), different ones at each step. All
    |a| ≥ λ > 0 are then selected. The sample holds 1,024 or more of the wanted elements, so the count is off
    by 1/sqrt(1024) = 3 % or less (one standard deviation); by more if large elements are clustered.

    Accumulation and selection are one pass that sets aside all elements from the lower end of a bracket on.
    If the bracket misses, there is a second pass. The bracket is that of a small sample of the signal; where
    λ has moved little in the last steps, it is around the last λ. The choice changes no result.

    Agreement: λ is the quantile of all ranks' elements, or samples, together. The ranks average histograms:
    16 bins across the bracket, 64 bytes, and 16 more across a bin that holds more than three tenths of the
    wanted elements; within a bin that holds fewer, λ is interpolated. If the bracket misses, and at first,
    one bin per exponent (1,024 bytes) is used instead. The ranks together send the target number to within
    three tenths at worst (if all elements of a bin are at one of its ends), and mostly to within a hundredth.
    Equal elements are sent together if that is closer to the target, and at least one element is sent.
    """

    spread: Tensor

    def __init__(self, *, threshold: float | None = None, seed: int = 0) -> None:
        super().__init__(threshold=threshold, seed=seed)
        self.register_buffer("spread", torch.tensor(FARTHEST, dtype=torch.float64))

    def take(
        self, grad_N: Tensor, residual_N: Tensor | None, density: float, agree: Agree = local_only
    ) -> tuple[Tensor, Tensor]:
        n, dtype = grad_N.numel(), signal_dtype(grad_N, residual_N)
        if n == 0 or sampled_every(density, n) > 1:
            return super().take(grad_N, residual_N, density, agree)
        self.step += 1
        if agree is not local_only:
            return self._take_agreed(grad_N, residual_N, density * n, agree)
        counts = [min(n, num_wanted(density, n))]
        own_K, at_K = ops.take_top(grad_N, residual_N, [0, n], counts, dtype=dtype, near=self._near())
        least = ops.least_magnitude(own_K)
        threshold = self._move(least, dtype)
        if not 0 < least < math.inf:
            _put_back(residual_N, own_K, at_K)
            own_K, at_K = _take_accumulated(grad_N, residual_N, threshold)
        return own_K, at_K

    def decide(self, grad_N: Tensor, residual_N: Tensor | None, density: float, agree: Agree) -> float:
        every, dtype = sampled_every(density, grad_N.numel()), signal_dtype(grad_N, residual_N)
        sample_S = ops.sample(grad_N, residual_N, every=every, first=int(self.step) * 37 % every)
        if agree is local_only:
            return self._move(ops.threshold_from_sample(sample_S, density, self._near()), dtype)
        wanted = density * sample_S.numel()
        found = common(sample_S, wanted, agree, *self._bracket()) or common(sample_S, wanted, agree)
        assert found is not None
        return self._move(found, dtype)

    def _take_agreed(
        self, grad_N: Tensor, residual_N: Tensor | None, wanted: float, agree: Agree
    ) -> tuple[Tensor, Tensor]:
        """Take the candidates, agree on λ, and put back those below it."""
        low, high = self._bracket()
        dtype = signal_dtype(grad_N, residual_N)
        # Without a bracket only elements that are not finite are candidates.
        own_C, at_C = ops.take_above(grad_N, residual_N, low or math.inf, dtype=dtype)
        found = common(own_C, wanted, agree, low, high) if low > 0 else None
        if found is None:  # the same on all ranks
            _put_back(residual_N, own_C, at_C)
            found = common(grad_N if residual_N is None else residual_N, wanted, agree)
            assert found is not None
            threshold = self._move(found, dtype)
            return _take_accumulated(grad_N, residual_N, threshold)
        below_C = own_C.abs() < self._move(found, dtype)
        _put_back(residual_N, own_C[below_C], at_C[below_C])
        return own_C[~below_C], at_C[~below_C]

    def _bracket(self) -> tuple[float, float]:
        """Bracket (low, high) of the magnitudes in which λ should be; (0, 0) at first."""
        last, reach = float(self.threshold), math.exp(self._reach())
        return last / reach, last * reach

    def _near(self) -> tuple[float, float]:
        """The bracket if it is narrow, else (0, 0)."""
        return self._bracket() if self._reach() <= NARROW else (0.0, 0.0)

    def _reach(self) -> float:
        """Half-width of the bracket on a logarithmic scale."""
        return min(FARTHEST, REACH * float(self.spread))

    def _move(self, found: float, dtype: torch.dtype) -> float:
        """Store λ, which is kept above 0, and how far it has moved."""
        limits = torch.finfo(dtype)
        last, found = float(self.threshold), max(found, limits.smallest_normal * limits.eps)
        moved = abs(math.log(found / last)) if 0 < last < math.inf and found < math.inf else FARTHEST
        self.spread.fill_(min(FARTHEST, max(FADES * float(self.spread), moved)))
        self.threshold.fill_(found)
        return found


def sampled_every(density: float, n: int) -> int:
    """Stride of the sample in groups; 1 if λ is exact.

    >>> [sampled_every(0.1, n) for n in (10_000, 100_000, 1_000_000, 10_000_000)], sampled_every(0.01, 10**8)
    ([1, 9, 97, 128], 1)
    """
    return max(1, min(SPARSEST, num_wanted(density, n) // HITS)) if density >= SAMPLED_FROM else 1


def common(x_C: Tensor, wanted: float, agree: Agree, low: float = 0.0, high: float = 0.0) -> float | None:
    """Magnitude above 0 that `wanted` elements, on average over the ranks, reach or exceed.

    Args:
        x_C: Elements; with a bracket, all that are in it or above it.
        wanted: Wanted number of elements.
        agree: Mean over ranks.
        low: Lower end of the bracket; 0 if there is none.
        high: Upper end of the bracket.

    Returns:
        The magnitude, or None if it is not in the bracket.
    """
    bits_C, exponents = ops.magnitude_bits(x_C), exponent_shift(x_C.dtype)
    first, shift, num = 0, exponents, 1 << (torch.finfo(x_C.dtype).bits - 1 - exponents)
    bounded = low > 0
    if bounded:
        first, last = bits_of(low, x_C.dtype), bits_of(high, x_C.dtype)
        shift, num = ((last - first) // (BINS - 1)).bit_length(), BINS
    above = 0.0
    while True:
        counts_B = agree(histogram(bits_C, first, shift, num).float()).tolist()
        number = num - 1
        while number >= 0 and above + counts_B[number] < wanted:
            above += counts_B[number]
            number -= 1
        # The last bin of a bracket also holds everything above it.
        if bounded and number in (-1, num - 1):
            return None
        number = max(0, number)  # a float32 sum may fall slightly short of `wanted`
        inside, first = counts_B[number], first + (number << shift)
        if shift == 0 or inside <= FINE * wanted:
            break
        bits_C = bits_C[(bits_C >= first) & (bits_C < first + (1 << shift))]
        finer = min(shift, BINS.bit_length() - 1)
        shift, num, bounded = shift - finer, 1 << finer, False
    missing = wanted - above
    if shift > 0:
        found = first + int((1 << shift) * (1 - missing / inside)) if inside else first
    else:  # all equal: only those above, where that comes nearer, but never nothing
        found = first + int(above > 0 and inside - missing > missing)
    return ops.magnitude(min(max(1, found), bits_of(math.inf, x_C.dtype)), x_C.dtype)


def histogram(bits_C: Tensor, first: int, shift: int, num: int) -> Tensor:
    """Counts in `num` bins of 2^shift magnitudes from bits `first` on; the last bin includes all above it."""
    bin_C = (bits_C - first >> shift).clamp_(-1, num - 1) + 1  # 0: below the first
    return torch.bincount(bin_C, minlength=num + 1)[1:]


def bits_of(magnitude: float, dtype: torch.dtype) -> int:
    """Bits of a magnitude, as an integer with the same order."""
    return int(ops.magnitude_bits(torch.tensor(magnitude, dtype=dtype)))


def exponent_shift(dtype: torch.dtype) -> int:
    """Number of bits below the exponent of a floating-point dtype.

    >>> exponent_shift(torch.float32), exponent_shift(torch.bfloat16)
    (23, 7)
    """
    return round(-math.log2(torch.finfo(dtype).eps))


def _put_back(residual_N: Tensor | None, own_C: Tensor, at_C: Tensor) -> None:
    if residual_N is not None:
        residual_N[at_C] = own_C


def _take_accumulated(grad_N: Tensor, residual_N: Tensor | None, threshold: float) -> tuple[Tensor, Tensor]:
    """Take what reaches a threshold from a signal that an earlier pass has accumulated."""
    signal_N, keep = (grad_N, False) if residual_N is None else (residual_N, True)
    at_K = ops.select_above(signal_N, threshold).int()
    return ops.take(signal_N, at_K, dtype=signal_N.dtype, keep=keep), at_K
