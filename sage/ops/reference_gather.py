"""Plain-torch reference of the ops that take given or random elements; the kernels match it to the bit."""
# N = elements of the flat vector, K = elements taken, D = draws

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.ops import reference
from sage.ops.reference_philox import WORD, philox

TILE = 64
"""Draws from the 16 counters of a tile; see csrc/cpu/distinct.h for their order."""


def gather_(signal_N: Tensor, added_N: Tensor | None, at_K: Tensor, *, keep: bool) -> Tensor:
    """Add, gather and zero, in separate passes."""
    if added_N is not None:
        signal_N.add_(added_N)
    return reference.take(signal_N, at_K, keep=keep)


def draw_indices(
    beside_N: Tensor,
    bounds: Sequence[int],
    counts: Sequence[int],
    key: int,
    *,
    distinct: bool,
    numbers: Sequence[int],
) -> Tensor:
    """Draw from each group in turn."""
    groups = zip(bounds, bounds[1:], counts, numbers, strict=False)
    drawn = [_drawn(stop - start, k, key, number, distinct) + start for start, stop, k, number in groups]
    none = torch.empty(0, dtype=torch.int64)
    return torch.cat([none, *drawn]).int().to(beside_N.device)


def _drawn(n: int, k: int, key: int, group: int, distinct: bool) -> Tensor:
    """Indices of k random elements of a group of n (int64, ascending)."""
    if k == 0 or (distinct and k == n):
        return torch.arange(k)
    if not distinct or k <= n - k:
        return _first(n, k, key, group, distinct)
    left_N = torch.ones(n, dtype=torch.bool)
    left_N[_first(n, n - k, key, group, distinct)] = False
    return left_N.nonzero().view(-1)


def _first(n: int, num: int, key: int, group: int, distinct: bool) -> Tensor:
    """Elements of the first `num` draws, or of those up to the `num`-th distinct one (int64, ascending)."""
    skipped, tiles = (2**32 - n) % n, 1 + 2 * num // TILE
    while True:
        counter = torch.arange(16 * tiles) + (group << 32)
        word_D = philox(counter, key).view(-1, 16, 4).permute(0, 2, 1).reshape(-1)
        scaled_D = word_D * n
        at_D = (scaled_D >> 32)[(scaled_D & WORD) >= skipped]
        if not distinct and at_D.numel() >= num:
            return at_D[:num].unique()
        sorted_D, order_D = at_D.sort(stable=True)
        first = order_D[sorted_D.diff(prepend=sorted_D.new_full((1,), -1)) != 0].sort().values
        if distinct and first.numel() >= num:
            return at_D[first[:num]].sort().values
        tiles *= 2
