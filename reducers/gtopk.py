"""Global top-k: sends the k = max(1, ⌊d·n⌋) largest magnitudes of all layers (Agarwal et al., MLSys 2022)."""
# N = elements of the flat vector, K = elements that a rank selects, W = ranks, U = places of two selections

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

    `merge=tree` makes gTop-k's selection. Ranks 0 and 1, 2 and 3, … add their selections and keep the k
    largest sums; pairs of pairs do the same, and so on. The last k sums divided by W are the mean. It differs
    from gTop-k in two points. Every rank computes the tree from all selections, so the payload bytes are
    those of `gather` and not gTop-k's k·log2 W. An element that a merge has dropped stays in the residual of
    the ranks it came from, even if another branch brings the same element into the result; gTop-k loses it in
    that case.

    Args:
        density: Share of the vector's elements to send, in (0, 1].
        merge: What the mean contains: every rank's selection (`gather`), or the k largest sums found by a
            tree of pairs (`tree`).

    Raises:
        ValueError: if an option is out of range.
    """

    grouping = "model"
    later = frozenset({"merge"})

    def __init__(
        self,
        *,
        density: float = 0.01,
        merge: Literal["gather", "tree"] = "gather",
        **options: Unpack[SparsifierOptions],
    ) -> None:
        super().__init__(density=density, **options)
        if merge not in ("gather", "tree"):
            raise ValueError(f"merge={merge!r}: expected gather or tree")
        self._merges = merge == "tree"

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if not self._merges:
            return super().forward(grad_N, residual_N, wire)
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

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if self._merges:  # a rank sends its whole selection, including elements that the merges drop
            counts = [sum(num_kept(self.density, stop - start) for start, stop in self.layout.groups)] * len(
                counts
            )
        return super().payload(counts, rank)


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
            at_U, place = torch.cat((first[1], second[1])).unique(return_inverse=True)
            sum_U = first[0].new_zeros(at_U.numel()).index_add_(0, place, torch.cat((first[0], second[0])))
            top_K = ops.select_top(sum_U, k)
            at_K = at_U[top_K]
            above.append((sum_U[top_K], at_K, [at[torch.isin(at, at_K)] for at in first[2] + second[2]]))
        nodes = above + nodes[2 * len(above) :]
    return nodes[0]


REDUCER = GTopK
