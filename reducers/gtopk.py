"""Global top-k: sends the k = max(1, ⌊d·n⌋) largest magnitudes of all layers (Agarwal et al., MLSys 2022)."""
# N = elements of the flat vector, K = elements that a rank selects, W = ranks, U = places of two selections,
# D = sums that a merge drops

from collections.abc import Sequence
from typing import Literal, Unpack

import torch
from torch import Tensor

from sage.reduction import Reduced, SparsifierOptions, Wire, ops, phase

from .topk import GroupTopK, num_kept


class GTopK(GroupTopK):
    """As `topk`, but over all layers together: large layers may take the whole budget.

    "Global" means over layers, as in the utility study's GlobalTopK (Agarwal et al., MLSys 2022): with
    `merge=gather` each rank's k largest elements are gathered and all of them are in the mean, up to W·k
    elements. This differs from gTop-k (Shi et al., ICDCS 2019), which keeps k elements over all ranks.

    `merge=published` is gTop-k. In each of ⌈log2 W⌉ rounds, ranks 0 and 1, 2 and 3, … (then 0 and 2, 4 and 6,
    …) add their selections on the first of the two, which keeps the k largest sums. Rank 0 broadcasts the
    last k sums; divided by W they are the mean. W need not be a power of two: a rank without a partner waits
    for the next round. A rank takes back into its residual what it selected at other indices than the last k.
    If a merge drops a sum although another branch brings its index into the result, gTop-k loses it; here the
    rank that drops it keeps it in its residual. Payload bytes per rank: 4 per value and 4 per index of its k
    elements (rank 0: of the result), and 8 for the number that remained.

    `merge=tree` is ours: every rank gathers all selections and computes the same tree, so the payload bytes
    are those of `gather`, and the mean is that of `published`. An element that a merge has dropped stays in
    the residual of the ranks it came from, even if another branch brings the same element into the result.

    Args:
        density: Share of the vector's elements to send, in (0, 1].
        merge: What the mean contains: every rank's selection (`gather`), or the k largest sums found by a
            tree of pairs, which all ranks compute (`tree`) or each pair by itself (`published`).

    Raises:
        ValueError: if an option is out of range.
    """

    grouping = "model"
    later = frozenset({"merge"})

    def __init__(
        self,
        *,
        density: float = 0.01,
        merge: Literal["gather", "tree", "published"] = "gather",
        **options: Unpack[SparsifierOptions],
    ) -> None:
        super().__init__(density=density, **options)
        if merge not in ("gather", "tree", "published"):
            raise ValueError(f"merge={merge!r}: expected gather, tree or published")
        if merge == "published" and (self.dtype != torch.float32 or self.codes_indices):
            raise ValueError(
                "merge='published' sends sums as fp32 values with int32 indices: expected values='fp32' and "
                "indices='int32', or merge='tree'"
            )
        self._merge = merge

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if self._merge == "gather":
            return super().forward(grad_N, residual_N, wire)
        if self._merge == "published":
            return self._in_pairs(grad_N, residual_N, wire)
        n = grad_N.numel()
        with phase("select"):
            own_K, own_at_K = self.take(grad_N, residual_N, wire)
        counts, values_M, at_M = self._gather(own_K, own_at_K, n, wire)
        with phase("scatter"):
            selections = zip(values_M.split(counts), at_M.long().split(counts), strict=True)
            values_K, at_K, left = merged(list(selections))
            mean_N = ops.scatter_mean(values_K / wire.world_size, at_K.int(), [at_K.numel()], out_N=grad_N)
            if residual_N is not None:
                dropped_K = ~torch.isin(own_at_K.long(), left[wire.rank], assume_unique=True)
                residual_N[own_at_K[dropped_K]] += own_K[dropped_K].nan_to_num(0.0, 0.0, 0.0)
        density = sum(at.numel() for at in left) / (len(left) * max(1, n))
        return Reduced(mean_N, left[wire.rank], density, torch.cat(left))

    def _in_pairs(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        rank, size = wire.rank, wire.world_size
        with phase("select"):
            own_K, own_at_K = self.take(grad_N, residual_N, wire)
        values_K, at_K, k = own_K.clone(), own_at_K, own_K.numel()
        dropped: list[tuple[Tensor, Tensor]] = []
        for step in (2**i for i in range((size - 1).bit_length())):
            counts = [[k if a - b == step == a % (2 * step) else 0 for b in range(size)] for a in range(size)]
            num = sum(counts[rank])  # k if this rank passes its sums on, else 0
            rows = wire.all_to_all_ragged(counts[rank], counts, values=values_K[:num], indices=at_K[:num])
            if rank % (2 * step) == 0 and rank + step < size:
                with phase("scatter"):
                    values_K, at_K, *rest = merge_two((values_K, at_K), rows[rank + step], k)
                    dropped.append((rest[0], rest[1]))
        values_K = wire.broadcast(values_K, root=0)
        at_K = wire.broadcast(at_K.clone(), root=0, kind="indices")
        with phase("scatter"):
            is_kept_K = torch.isin(own_at_K, at_K, assume_unique=True)
            if residual_N is not None:
                residual_N[own_at_K[~is_kept_K]] += own_K[~is_kept_K].nan_to_num(0.0, 0.0, 0.0)
                for sums_D, at_D in dropped:
                    is_lost_D = torch.isin(at_D, at_K, assume_unique=True)
                    residual_N[at_D[is_lost_D]] += sums_D[is_lost_D].nan_to_num(0.0, 0.0, 0.0)
            mean_N = ops.scatter_mean(values_K / size, at_K, [k], out_N=grad_N)
        (kept_W,) = wire.gather(sizes=is_kept_K.sum())
        return Reduced(mean_N, own_at_K[is_kept_K], int(kept_W.sum()) / (size * max(1, grad_N.numel())), at_K)

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if self._merge != "gather":  # a rank sends its whole selection, including elements that merges drop
            counts = [sum(num_kept(self.density, stop - start) for start, stop in self.layout.groups)] * len(
                counts
            )
        payload = super().payload(counts, rank)
        return {**payload, "sizes": 8} if payload and self._merge == "published" else payload


def merge_two(
    first: Sequence[Tensor], second: Sequence[Tensor], k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Add two selections, each values and ascending indices; the k largest sums, and those that are dropped.

    >>> one, other = ([5.0, -1.0], [0, 3]), ([2.0, 4.0], [3, 7])
    >>> sums = merge_two(*((torch.tensor(values), torch.tensor(at)) for values, at in (one, other)), 2)
    >>> [x.tolist() for x in sums]
    [[5.0, 4.0], [0, 7], [1.0], [3]]
    """
    at_U, place = torch.cat((first[1], second[1])).unique(return_inverse=True)
    sum_U = first[0].new_zeros(at_U.numel()).index_add_(0, place, torch.cat((first[0], second[0])))
    is_kept_U = torch.zeros_like(at_U, dtype=torch.bool)
    is_kept_U[ops.select_top(sum_U, k)] = True
    return sum_U[is_kept_U], at_U[is_kept_U], sum_U[~is_kept_U], at_U[~is_kept_U]


def merged(selections: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The k largest sums of the ranks' selections, found by a tree of pairs.

    Args:
        selections: Values and indices (int64, ascending) of k elements of each rank.

    Returns:
        Values and indices (ascending) of k sums, and for each rank the indices of its elements in them.
    """
    k = selections[0][0].numel()
    nodes = [(values_K.float(), at_K, [at_K]) for values_K, at_K in selections]
    while len(nodes) > 1:
        above = []
        for first, second in zip(nodes[::2], nodes[1::2], strict=False):
            sum_K, at_K, _, _ = merge_two(first[:2], second[:2], k)
            above.append((sum_K, at_K, [at[torch.isin(at, at_K)] for at in first[2] + second[2]]))
        nodes = above + nodes[2 * len(above) :]
    return nodes[0]


REDUCER = GTopK
