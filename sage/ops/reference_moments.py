"""Plain-torch reference of `sage.ops.moments`, which documents each function."""
# N = elements of the flat vector, G = groups, K = elements that reach a limit, S = sampled elements
# C = chunks, L = lanes

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sage.ops import reference

CHUNK, LANES = 1024, 32


def ranked_moments_(
    signal_N: Tensor, added_N: Tensor | None, bounds: Sequence[int], ranks: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Accumulate, sum, and select each rank by itself."""
    if added_N is not None:
        signal_N.add_(added_N)
    groups = list(parts(signal_N, bounds))
    each = len(ranks) // len(groups) if groups else 0
    found = [kth_largest(x_N, ranks[g * each + i]) for g, x_N in enumerate(groups) for i in range(each)]
    return _rows(signal_N, groups), torch.stack(found) if found else signal_N.new_empty(0)


def moments_above_(
    signal_N: Tensor, added_N: Tensor | None, bounds: Sequence[int], limits: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Accumulate, sum, compare."""
    if added_N is not None:
        signal_N.add_(added_N)
    groups = list(parts(signal_N, bounds))
    above = [
        x_N[reference.is_above(x_N, limit)].abs() for x_N, limit in zip(groups, limits, strict=True)
    ]
    counts_G = torch.tensor([x_K.numel() for x_K in above], dtype=torch.int64)
    return _rows(signal_N, groups), torch.cat([signal_N.new_empty(0), *above]), counts_G


def excess_(magnitudes_K: Tensor, limit: float) -> Tensor:
    """Compare, move to the front, subtract, sum."""
    left_K = magnitudes_K[reference.is_above(magnitudes_K, limit)]
    num = left_K.numel()
    magnitudes_K[:num] = left_K
    least = magnitude_of(reference.magnitude_bits(left_K).min(), left_K) if num else left_K.new_zeros(())
    over_K = (left_K - least).double()
    sums = [left_K.new_tensor(num, dtype=torch.float64), least.double(), total(over_K), total(over_K**2)]
    return torch.stack(sums)


def sampled(
    signal_N: Tensor,
    added_N: Tensor | None,
    bounds: Sequence[int],
    sizes: Sequence[int],
    ranks: Sequence[int],
    draws_S: Tensor,
) -> Tensor:
    """Compute the indices, gather, select."""
    found = []
    for begin, end, size, rank, draws in zip(
        bounds, bounds[1:], sizes, ranks, draws_S.split(list(sizes)), strict=False
    ):
        edges = torch.arange(size + 1, device=signal_N.device) * (end - begin) // max(1, size)
        at_S = begin + edges[:-1] + (draws.long() * edges.diff() >> 16)
        x_S = signal_N[at_S] if added_N is None else signal_N[at_S] + added_N[at_S]
        found.append(kth_largest(x_S, rank))
    return torch.stack(found) if found else signal_N.new_empty(0)


def kth_largest(x_N: Tensor, k: int) -> Tensor:
    """The k-th largest magnitude, NaN the largest (no dimension); 0 if there are no elements."""
    if x_N.numel() == 0:
        return x_N.new_zeros(())
    return magnitude_of(torch.topk(reference.magnitude_bits(x_N), k, sorted=False).values.min(), x_N)


def magnitude_of(bits: Tensor, x_N: Tensor) -> Tensor:
    """The number of x's dtype with these bits."""
    return bits.view(x_N.dtype)


def total(x_N: Tensor) -> Tensor:
    """Σ x of float64 numbers, in the order that `sage.ops.moments` defines."""
    x_CRL = torch.nn.functional.pad(x_N, (0, -x_N.numel() % CHUNK)).view(-1, CHUNK // LANES, LANES)
    sum_CL = x_CRL.new_zeros(x_CRL.shape[0], LANES)
    for row in range(CHUNK // LANES):
        sum_CL = sum_CL + x_CRL[:, row]
    while sum_CL.shape[1] > 1:
        low_CL, high_CL = sum_CL.chunk(2, dim=1)
        sum_CL = low_CL + high_CL
    sum_C = sum_CL[:, 0]
    while sum_C.numel() > 1:  # pairs; a last chunk alone is kept as it is
        pairs = sum_C.numel() // 2
        sum_C = torch.cat((sum_C[: 2 * pairs : 2] + sum_C[1 : 2 * pairs : 2], sum_C[2 * pairs :]))
    return sum_C.sum()


def parts(x_N: Tensor, bounds: Sequence[int]) -> Iterator[Tensor]:
    """The groups of a vector."""
    return (x_N[begin:end] for begin, end in zip(bounds, bounds[1:], strict=False))


def _rows(signal_N: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """Five rows, as in `Moments`, with a column for each group (float64)."""
    columns = []
    for x_N in groups:
        wide_N = x_N.double()
        sums = [total(wide_N), total(wide_N.abs()), total(wide_N**2), (x_N != 0).sum().double()]
        columns.append(torch.stack([*sums, kth_largest(x_N, 1).double()]))
    return torch.stack(columns, 1) if columns else signal_N.new_empty((5, 0), dtype=torch.float64)
