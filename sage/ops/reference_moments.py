"""Plain-torch reference of `sage.ops.moments`, which documents each function."""
# N = elements of the flat vector, G = groups, K = elements that reach a limit, S = sampled elements

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sage.ops import reference, reference_sums


def ranked_moments_(
    signal_N: Tensor, added_N: Tensor | None, bounds: Sequence[int], ranks: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Accumulate, sum, and select each rank by itself."""
    if added_N is not None:
        signal_N.add_(added_N)
    groups = list(parts(signal_N, bounds))
    num_ranks = len(ranks) // len(groups) if groups else 0
    magnitudes = [
        kth_largest(x_N, ranks[g * num_ranks + i]) for g, x_N in enumerate(groups) for i in range(num_ranks)
    ]
    return _rows(signal_N, bounds), torch.stack(magnitudes) if magnitudes else signal_N.new_empty(0)


def moments_above_(
    signal_N: Tensor, added_N: Tensor | None, bounds: Sequence[int], limits: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Accumulate, sum, compare."""
    if added_N is not None:
        signal_N.add_(added_N)
    groups = list(parts(signal_N, bounds))
    above = [x_N[reference.is_above(x_N, limit)].abs() for x_N, limit in zip(groups, limits, strict=True)]
    counts_G = torch.tensor([x_K.numel() for x_K in above], dtype=torch.int64)
    return _rows(signal_N, bounds), torch.cat([signal_N.new_empty(0), *above]), counts_G


def excess_(magnitudes_K: Tensor, limit: float) -> Tensor:
    """Compare, move to the front, subtract, sum."""
    left_K = magnitudes_K[reference.is_above(magnitudes_K, limit)]
    num = left_K.numel()
    magnitudes_K[:num] = left_K
    least = magnitude_of(reference.magnitude_bits(left_K).min(), left_K) if num else left_K.new_zeros(())
    over_K = (left_K - least).double()
    total, square = (reference_sums.sums(each_K, [num])[0] for each_K in (over_K, over_K.square()))
    return torch.stack([total.new_tensor(num), least.double(), total, square])


def sampled(
    signal_N: Tensor,
    added_N: Tensor | None,
    bounds: Sequence[int],
    sizes: Sequence[int],
    ranks: Sequence[int],
    draws_S: Tensor,
) -> Tensor:
    """Compute the indices, gather, select."""
    magnitudes = []
    for begin, end, size, rank, draws in zip(
        bounds, bounds[1:], sizes, ranks, draws_S.split(list(sizes)), strict=False
    ):
        edges = torch.arange(size + 1, device=signal_N.device) * (end - begin) // max(1, size)
        at_S = begin + edges[:-1] + (draws.long() * edges.diff() >> 16)
        x_S = signal_N[at_S] if added_N is None else signal_N[at_S] + added_N[at_S]
        magnitudes.append(kth_largest(x_S, rank))
    return torch.stack(magnitudes) if magnitudes else signal_N.new_empty(0)


def kth_largest(x_N: Tensor, k: int) -> Tensor:
    """The k-th largest magnitude, NaN the largest (no dimension); 0 if there are no elements."""
    if x_N.numel() == 0:
        return x_N.new_zeros(())
    return magnitude_of(torch.topk(reference.magnitude_bits(x_N), k, sorted=False).values.min(), x_N)


def magnitude_of(bits: Tensor, x_N: Tensor) -> Tensor:
    """The number of x's dtype with these bits."""
    return bits.view(x_N.dtype)


def parts(x_N: Tensor, bounds: Sequence[int]) -> Iterator[Tensor]:
    """The groups of a vector."""
    return (x_N[begin:end] for begin, end in pairwise(bounds))


def _rows(signal_N: Tensor, bounds: Sequence[int]) -> Tensor:
    """Five rows, as in `Moments`, with a column for each group (float64)."""
    wide_N, sizes = signal_N.double(), [stop - start for start, stop in pairwise(bounds)]
    groups = list(parts(signal_N, bounds))
    nonzero = [float(x_N.count_nonzero()) for x_N in groups]
    most = [float(kth_largest(x_N, 1)) for x_N in groups]
    rows = [reference_sums.sums(each_N, sizes) for each_N in (wide_N, wide_N.abs(), wide_N.square())]
    return torch.stack([*rows, wide_N.new_tensor(nonzero), wide_N.new_tensor(most)])
