"""Given or random elements of a vector: accumulate and take them in one pass; the union of indices."""
# N = elements of the flat vector, K = elements taken, M = indices of all ranks, U = their union

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.ops import native, reference_gather

_native = torch.ops.sage
native.register("take_at_", lambda signal, grad, indices, keep: signal.new_empty(indices.shape))
native.register(
    "unite",
    lambda indices, n: (*native.unknown(indices, torch.int32), indices.new_empty(indices.shape)),
)
native.register("is_among", lambda indices, *_: native.vector(indices, indices.numel(), torch.uint8))
native.register("draw_indices", lambda beside, *_: native.unknown(beside, torch.int32)[0])


def gather_(signal_N: Tensor, added_N: Tensor | None, at_K: Tensor, *, keep: bool) -> Tensor:
    """Add a vector to the signal, and return the values at these indices; with `keep` they become 0."""
    if native.takes("take_at_", signal_N, added_N, at_K):
        return _native.take_at_.default(signal_N, added_N, at_K.int(), keep)
    return reference_gather.gather_(signal_N, added_N, at_K, keep=keep)


def draw_indices(
    beside_N: Tensor,
    bounds: Sequence[int],
    counts: Sequence[int],
    key: int,
    *,
    distinct: bool,
    numbers: Sequence[int] | None = None,
) -> Tensor:
    """Random elements of each group: indices (int32, K, ascending).

    Where a group's elements are, relative to its first, depends on the key, its size and its number alone.

    Args:
        beside_N: A vector, on whose device the indices are drawn.
        bounds: Group g is elements `[bounds[g], bounds[g + 1])`, from 0 on.
        counts: Number of elements to draw from each group.
        key: Key, at least 0 and below 2^63, such as `sage.rng.seed_at` gives.
        distinct: Whether elements are drawn without replacement; every set is then equally likely. Otherwise
            an element that is drawn twice is returned once.
        numbers: Number of each group, at least 0 and below 2^31; by default they are counted from 0.

    >>> draw_indices(torch.empty(9), [0, 4, 9], [4, 2], 7, distinct=True).tolist()[:4]
    [0, 1, 2, 3]
    """
    numbers = range(len(counts)) if numbers is None else numbers
    if native.takes("draw_indices", beside_N):
        return _native.draw_indices.default(beside_N, bounds, counts, list(numbers), key, distinct)
    return reference_gather.draw_indices(beside_N, bounds, counts, key, distinct=distinct, numbers=numbers)


def unite(at_M: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The different indices among these (int32, in any order, below n), and the place of each in that list.

    Returns:
        The different indices (int32, U, ascending), and for each of the M its place among them (int32, M).

    >>> unite(torch.tensor([3, 8, 1, 3], dtype=torch.int32), 9)
    (tensor([1, 3, 8], dtype=torch.int32), tensor([1, 2, 0, 1], dtype=torch.int32))
    """
    if native.takes("unite", at_M, dtype=torch.int32):
        at_U, place_M = _native.unite.default(at_M, n)
        return at_U, place_M
    at_U, place_M = at_M.unique(return_inverse=True)
    return at_U, place_M.int()


def union(at_M: Tensor, n: int) -> Tensor:
    """The different indices (int32, ascending) among these (int32, in any order), all below n."""
    return unite(at_M, n)[0]


def is_among(at_K: Tensor, at_M: Tensor, n: int) -> Tensor:
    """Whether each of the indices at_K is among at_M (bool, K); all are int32 and below n.

    >>> is_among(torch.tensor([1, 2]).int(), torch.tensor([3, 8, 1]).int(), 9).tolist()
    [True, False]
    """
    if native.takes("is_among", at_K, at_M, dtype=torch.int32):
        return _native.is_among.default(at_K, at_M, n).view(torch.bool)
    return torch.isin(at_K, at_M)
