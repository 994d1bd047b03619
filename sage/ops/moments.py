"""Moments and order statistics of each group of a vector, in the pass that accumulates the gradient; samples.

A sum is defined by the positions of its elements in their group alone (csrc/cpu/sums.h): in chunks of 1,024
elements, 32 lanes add in float64, then the lanes by halving, then the chunks pairwise. So every thread count
and instruction set gives the same bits.
"""
# N = elements of the flat vector, G = groups, K = elements that reach a limit, S = sampled elements

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sage.ops import native, reference_moments

_native = torch.ops.sage


def _fake_above(signal: Tensor, grad: object, bounds: Sequence[int], limits: object) -> tuple[Tensor, ...]:
    num = len(bounds) - 1
    (above_K,) = native.unknown(signal, torch.float32)
    return (
        signal.new_empty((5, num), dtype=torch.float64),
        above_K,
        signal.new_empty((num,), dtype=torch.int64),
    )


native.register(
    "ranked_moments_",
    lambda signal, grad, bounds, ranks: (
        signal.new_empty((5, len(bounds) - 1), dtype=torch.float64),
        signal.new_empty((len(ranks),)),
    ),
)
native.register("moments_above_", _fake_above)
native.register("excess_", lambda magnitudes, limit: magnitudes.new_empty((4,), dtype=torch.float64))
native.register("sampled", lambda signal, grad, bounds, *_: signal.new_empty((len(bounds) - 1,)))


class Moments(NamedTuple):
    """Moments of a group of elements x, and the requested order statistics."""

    total: float
    """Σ x."""
    absolute: float
    """Σ |x|."""
    square: float
    """Σ x²."""
    nonzero: int
    """Number of elements that are not 0."""
    most: float
    """max |x|; NaN if an element is NaN, 0 if there is no element."""
    ranked: list[float]
    """Magnitudes of the requested ranks."""


class Excess(NamedTuple):
    """The excess of a list's K magnitudes over the smallest of them."""

    left_K: Tensor
    """The magnitudes."""
    least: float
    """The smallest magnitude; 0 if there is none."""
    total: float
    """Σ (|x| − least)."""
    square: float
    """Σ (|x| − least)²."""


def moments(
    grad_N: Tensor, residual_N: Tensor | None, bounds: Sequence[int], ranks: Sequence[Sequence[int]] = ()
) -> list[Moments]:
    """Accumulate, and compute the moments of each group; also find magnitudes by their rank, exactly.

    A threshold t is reached by r or more elements if, and only if, the r-th largest magnitude reaches t. So a
    search that compares counts with given numbers needs no further pass over the vector.

    Args:
        grad_N: The gradient; without a residual it is the signal, and is not modified.
        residual_N: Accumulated into.
        bounds: Group g is elements `[bounds[g], bounds[g + 1])`; together the groups are the whole vector.
        ranks: The ranks r of each group, the same number for each; the r-th largest magnitude is found. It is
            −1 if there are fewer elements, and infinite if r < 1.
    """
    signal_N, added_N = (grad_N, None) if residual_N is None else (residual_N, grad_N)
    num_ranks = len(ranks[0]) if ranks else 0
    sizes = [stop - start for start, stop in pairwise(bounds)]
    inside = [min(max(r, 1), max(n, 1)) for n, group in zip(sizes, ranks, strict=False) for r in group]
    op = _native.ranked_moments_.default if native.takes("ranked_moments_", signal_N, added_N) else None
    rows, ranked = (op or reference_moments.ranked_moments_)(signal_N, added_N, bounds, inside)
    magnitudes = ranked.tolist()
    for i, rank in enumerate(rank for group in ranks for rank in group):
        if rank < 1 or rank > sizes[i // num_ranks]:
            magnitudes[i] = math.inf if rank < 1 else -1.0
    return [
        _moments(column, magnitudes[group * num_ranks : (group + 1) * num_ranks])
        for group, column in enumerate(rows.t().tolist())
    ]


def moments_above(
    grad_N: Tensor, residual_N: Tensor | None, bounds: Sequence[int], limits: Sequence[float]
) -> tuple[list[Moments], list[Tensor]]:
    """Accumulate, and compute the moments of each group and the list of the magnitudes that reach its limit.

    Args:
        grad_N: The gradient; without a residual it is the signal, and is not modified.
        residual_N: Accumulated into.
        bounds: Group g is elements `[bounds[g], bounds[g + 1])`; together the groups are the whole vector.
        limits: A limit for each group; infinity if no list is needed.

    Returns:
        The moments, and the list |x| ≥ limit of each group, in the order of the indices; NaN reaches all.
    """
    signal_N, added_N = (grad_N, None) if residual_N is None else (residual_N, grad_N)
    op = _native.moments_above_.default if native.takes("moments_above_", signal_N, added_N) else None
    rows, above_K, counts_G = (op or reference_moments.moments_above_)(signal_N, added_N, bounds, limits)
    return [_moments(column, []) for column in rows.t().tolist()], list(above_K.split(counts_G.tolist()))


def excess(magnitudes_K: Tensor, limit: float) -> Excess:
    """Drop from a list the magnitudes that do not reach a limit; the list is overwritten.

    Args:
        magnitudes_K: A list that `moments_above` or `excess` returned.
        limit: Smallest magnitude to keep.

    >>> excess(torch.tensor([1.0, 5.0, 3.0, 4.0]), 2.5)
    Excess(left_K=tensor([5., 3., 4.]), least=3.0, total=3.0, square=5.0)
    """
    op = _native.excess_.default if native.takes("excess_", magnitudes_K) else None
    num, least, total, square = (op or reference_moments.excess_)(magnitudes_K, limit).tolist()
    return Excess(magnitudes_K[: int(num)], least, total, square)


def sampled(
    grad_N: Tensor,
    residual_N: Tensor | None,
    bounds: Sequence[int],
    sizes: Sequence[int],
    ranks: Sequence[int],
    draws_S: Tensor,
) -> list[float]:
    """The r-th largest magnitude of a random sample of each group of the signal, which is not accumulated.

    A group of n elements is cut into as many runs as its sample has elements, s runs of ⌊n/s⌋ or ⌊n/s⌋ + 1.
    One element of each is taken: number ⌊draw·length/65536⌋.

    Args:
        grad_N: The gradient; without a residual it is the signal.
        residual_N: Added to the gradient.
        bounds: Group g is elements `[bounds[g], bounds[g + 1])`; together the groups are the whole vector.
        sizes: Number s of sampled elements of each group, at most all.
        ranks: Rank r in each group's sample, from 1 to s.
        draws_S: Random integers from 0 to 65,535 (int32), one for each sampled element.

    Returns:
        The magnitudes; 0 for a group without sampled elements.
    """
    signal_N, added_N = (grad_N, None) if residual_N is None else (residual_N, grad_N)
    op = _native.sampled.default if native.takes("sampled", signal_N, added_N, draws_S) else None
    magnitudes: list[float] = (op or reference_moments.sampled)(
        signal_N, added_N, bounds, sizes, ranks, draws_S
    ).tolist()
    return magnitudes


def _moments(column: list[float], ranked: list[float]) -> Moments:
    total, absolute, square, nonzero, most = column
    return Moments(total, absolute, square, int(nonzero), most, ranked)
