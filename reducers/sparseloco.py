"""SparseLoCo: the 64 largest of each 4,096 elements, in 14 bits each (Sarfi et al., 2025)."""
# N = elements of the flat vector, K = elements this rank sends, M = all ranks together, U = of their union,
# G = groups, W = ranks

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sage.reduction import (
    Chunks,
    Layout,
    Reduced,
    Reducer,
    Wire,
    check_fraction,
    counts_of,
    ops,
    pack_positions,
    phase,
    unpack_positions,
)

from .topk import num_kept

BINS = 4
"""Values that an element of a group can take: codes of 2 bits."""
RANGE = 6.0
"""Width of the four bins in standard deviations."""


class SparseLoCo(Reducer):
    """Send the largest elements of each chunk of 4,096, as 12 bits of position and 2 bits of value.

    A chunk is a tile of 64 × 64 elements of a matrix whose sides are multiples of 64, else a run of 4,096
    elements of a tensor (`sage.reduction.chunks`); k = max(1, ⌊d·n⌋) of its n elements are sent. The values v
    that a group sends are coded by their mean μ and their standard deviation σ: with a step s = 6σ/4, the
    code is round((v − μ)/s + 2), at least 0 and at most 3. So the cuts are at μ − 2.25σ, μ − 0.75σ and
    μ + 0.75σ. A code stands for the mean of the group's values that have it. The residual keeps what was not
    sent, and the error of the codes.

    Payload bytes per rank, of K elements sent: ⌈K/4⌉ (`values`), K + ⌈K/2⌉ (`indices`) and, for the four
    means of each group, 16 (`scales`). With the default density a whole chunk takes 112 bytes, 0.219 bits per
    element, and each group 16 bytes more.

    The paper (arXiv 2508.15706; the equations are not numbered in what was read) sends this every H steps,
    in place of the outer momentum of DiLoCo, with a residual that decays: e ← βe + Δ, β = 0.95. Here β is an
    option of the memory (`--memory-beta`), 1 by default. The quantiser, and the aggregation `senders`, are
    those of the code with which it was deployed (tplr-ai/templar, `src/tplr/compress.py`), which differs in
    this: a tensor with one dimension is divided by 64 and is so sent whole; the sides of a tile are the
    largest divisors of a matrix's sides up to 64; each of the four means is sent as its distance from μ.

    Args:
        density: Share of each chunk's elements to send, in (0, 1]; the default is 64 of 4,096.
        mean: Mean over all ranks (`ranks`, the paper's), or over the ranks that sent the element after every
            rank's values of a group are scaled down to the median of the ranks' norms (`senders`). The median
            of an even number of norms is the lower of the two in the middle.

    Raises:
        ValueError: if an option is out of range.
    """

    memory = "residual"
    decides_by = "group"
    grouping = "layer"
    rounds = True
    chunks: Chunks
    group_K: Tensor

    def __init__(self, *, density: float = 0.015625, mean: Literal["ranks", "senders"] = "ranks") -> None:
        super().__init__()
        self.density = check_fraction("density", density)
        if mean not in ("ranks", "senders"):
            raise ValueError(f"mean={mean!r}: expected ranks or senders")
        self._of_senders = mean == "senders"
        self.conserves = not self._of_senders

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        self.chunks = Chunks(layout, partial(num_kept, self.density))
        sizes_G = torch.tensor(self.chunks.sizes, dtype=torch.int64)
        group_K = torch.arange(len(sizes_G), dtype=torch.int32).repeat_interleave(sizes_G)
        self.register_buffer("group_K", group_K, persistent=False)

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        num, sizes = self.chunks.num, self.chunks.sizes
        with phase("select"):
            signal_N = ops.accumulate(grad_N, residual_N)
            own_K, position_K = self.chunks.largest(signal_N)
            own_K, at_K = own_K.float(), self.chunks.indices(position_K)
            code_K, means_G4 = encode(own_K, self.group_K, sizes)
            if residual_N is not None:
                ops.keep_error(own_K, means_G4.view(-1).index_select(0, self.group_K * BINS + code_K))
                residual_N.index_copy_(0, at_K.long(), own_K.to(residual_N.dtype))
            parts = {
                "values": ops.pack(code_K, 2),
                "indices": pack_positions(position_K),
                "scales": means_G4.view(-1),
            }
        rows = zip(*wire.gather(**parts), strict=True)
        with phase("scatter"):
            values, at = zip(*(self._decode(*row) for row in rows), strict=True)
            at_M = torch.cat(at)
            if self._of_senders:
                mean_N = mean_of_senders(clipped(values, self.group_K, sizes), at_M, grad_N)
            else:
                counts = [num] * wire.world_size
                mean_N = ops.scatter_mean(torch.cat(values), at_M, counts, out_N=grad_N)
        return Reduced(mean_N, at[wire.rank], num / max(1, grad_N.numel()), at_M)

    def _decode(self, codes_B: Tensor, positions_B: Tensor, means_4G: Tensor) -> tuple[Tensor, Tensor]:
        """One rank's values (K) and their indices (int32, ascending)."""
        num = self.chunks.num
        code_K = ops.unpack(codes_B.contiguous(), 2, num)
        values_K = means_4G.index_select(0, self.group_K * BINS + code_K)
        at_K = self.chunks.indices(unpack_positions(positions_B, num))
        if self.chunks.ascends:
            return values_K, at_K
        at_K, order_K = at_K.sort()  # a tensor's elements stay together, and so do a group's
        return values_K[order_K], at_K

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        k = counts[rank]
        scales = 4 * BINS * len(self.layout.groups)
        return {"values": -(-k // 4), "indices": k + -(-k // 2), "scales": scales}

    def report(self) -> dict[str, float]:
        return {"density_asked": self.density}


def encode(x_K: Tensor, group_K: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Code each value by its distance from the mean of its group, in standard deviations.

    Args:
        x_K: The values (float32), group by group.
        group_K: The group of each (int32 or int64).
        sizes: Number of values of each group.

    Returns:
        The codes, 0 to 3 (uint8, K), and the mean of the values that have each of them (float32, G, 4), 0 if
        none has. If a value is not finite, neither is the mean of its code.
    """
    count_G = counts_of(sizes, x_K)
    # `index_select` is several times as fast as indexing.
    centred_K = x_K.double() - (_sums(x_K, sizes) / count_G).index_select(0, group_K)
    square_G = ops.statistics(centred_K.float(), None, sizes, ops.Kind.SQUARES).sum_G
    step_G = RANGE / BINS * (square_G / (count_G - 1).clamp_(min=1)).sqrt()
    # 0/0 where all values are equal: they are the mean, which has code 2.
    code_K = centred_K.div_(step_G.index_select(0, group_K)).nan_to_num_(0.0).add_(BINS // 2).round_()
    code_K = code_K.clamp_(0, BINS - 1).to(torch.uint8)
    num_G4 = torch.bincount(group_K * BINS + code_K, minlength=BINS * len(sizes)).view(-1, BINS)
    bits_K = x_K.view(torch.int32)  # `where` has no vector instructions for one zero beside a vector
    masked = (bits_K & (code_K == b).int().neg_() for b in range(BINS))
    sum_G4 = torch.stack([_sums(masked_K.view(torch.float32), sizes) for masked_K in masked], 1)
    return code_K, (sum_G4 / num_G4.clamp(min=1)).float()


def clipped(values: Sequence[Tensor], group_K: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Scale each rank's values of each group so that their norm is at most the median over the ranks."""
    norm_WG = torch.stack(
        [ops.statistics(values_K, None, sizes, ops.Kind.SQUARES).sum_G.sqrt() for values_K in values]
    )
    median_G = norm_WG.median(0).values
    factor_WG = torch.where(norm_WG > median_G, median_G / norm_WG, 1.0).float()
    return [values_K * factor_G[group_K] for values_K, factor_G in zip(values, factor_WG, strict=True)]


def mean_of_senders(values: Sequence[Tensor], at_M: Tensor, out_N: Tensor) -> Tensor:
    """Mean of each element over the ranks that sent it, added in the order of the ranks; else 0.

    Args:
        values: Values of each of the W ranks (K).
        at_M: Their indices (int32), rank by rank; no rank has one twice.
        out_N: Output; overwritten.
    """
    if not at_M.numel():
        return out_N.zero_()
    at_U, place_M = ops.unite(at_M, out_N.numel())
    sum_U = values[0].new_zeros(at_U.numel())
    for values_K, place_K in zip(values, place_M.view(len(values), -1), strict=True):
        sum_U.index_add_(0, place_K, values_K)
    mean_U = sum_U / torch.bincount(place_M, minlength=at_U.numel())
    return ops.scatter_mean(mean_U, at_U, [at_U.numel()], out_N=out_N)


def _sums(x_K: Tensor, sizes: Sequence[int]) -> Tensor:
    """Σx of each group (float64, G), in an order that does not depend on the device."""
    sums = ops.statistics(x_K, None, sizes, ops.Kind.SIDES)
    return sums.sum_G + sums.other_G


REDUCER = SparseLoCo
