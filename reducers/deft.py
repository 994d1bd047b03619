"""DEFT: top-k within layers assigned to ranks by gradient norm (Yoon & Oh, ICPP 2023)."""
# N = elements of the flat vector, K = elements selected, P = pieces, W = world size

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor

from sage.reduction import ExclusiveSparsifier, Wire, ops
from sage.validate import LATER

from .topk import num_kept


class Deft(ExclusiveSparsifier):
    """Each rank selects the largest elements of the layers that are assigned to it at this step.

    Layers of more than n/W elements are split into pieces. Pieces are visited in the order of decreasing norm
    ‖a_l‖. Piece l receives k_l = ⌊k·‖a_l‖/Σ‖a‖⌋ elements, at least one and at most all; k and the sum are
    what remains for the pieces not yet visited. The cost of a piece is |l|·log2 k_l (|l| for one element).
    Rank t mod W packs the pieces into W bins, in order of decreasing cost, each into the bin with the lowest
    total cost, and broadcasts the bins (`sizes`, 4 bytes per piece). Bin b is assigned to rank (b + t) mod W,
    so every rank selects from every layer in turn. A rank computes the numbers k_l from its own norms.
    Density 1 selects everything.

    This is the paper's method except for the number of pieces. `pieces="fit"` (ours) splits a layer into
    ⌈size·W/n⌉ pieces, the smallest number for which none is longer than n/W. `pieces="world"` splits it into
    W pieces, as the authors do. On 4 ranks, layers of 6 and 2 elements become 2, 2, 2, 2 or 2, 2, 1, 1, 2.

    Args:
        pieces: How a long layer is split: into as few pieces as fit (`fit`), or one per rank (`world`).

    Raises:
        ValueError: if an option is out of range.
    """

    grouping = "layer"
    later = frozenset({"pieces"})
    step: Tensor

    def __init__(
        self,
        *,
        density: float = 0.01,
        pieces: Literal["fit", "world"] = "fit",
        values: Literal["fp32", "fp16"] = "fp32",
        mask: Annotated[Literal["signal", "momentum"], LATER] = "signal",
        mask_beta: Annotated[float, LATER] = 0.9,
    ) -> None:
        super().__init__(density=density, values=values, mask=mask, mask_beta=mask_beta)
        if pieces not in ("fit", "world"):
            raise ValueError(f"pieces={pieces!r}: expected fit or world")
        self._is_by_world = pieces == "world"
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def accumulate(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Tensor:
        n, world_size = grad_N.numel(), wire.world_size
        pieces = split(self.layout.groups, n / world_size, world_size if self._is_by_world else None)
        self._sizes = [stop - start for start, stop in pieces]
        self._norms = norms(grad_N, residual_N, self._sizes)
        return grad_N if residual_N is None else residual_N

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        step, world_size, n = int(self.step), wire.world_size, signal_N.numel()
        self.step += 1
        sizes = counts = self._sizes
        if self.density < 1:
            counts = allocate(num_kept(self.density, n), sizes, self._norms)
        bins = pack([size * math.log2(max(2, k)) for size, k in zip(sizes, counts, strict=True)], world_size)
        bin_P = torch.tensor(bins, dtype=torch.int32, device=signal_N.device)
        wire.broadcast(bin_P, root=step % world_size, kind="sizes")
        bin = (wire.rank - step) % world_size
        mine = [k if bin_ == bin else 0 for k, bin_ in zip(counts, bin_P.tolist(), strict=True)]
        _, at_K = ops.take_top(signal_N, None, ops.bounds_of(sizes), mine, dtype=signal_N.dtype)
        return at_K


def split(
    layers: Sequence[tuple[int, int]], longest: float, num_pieces: int | None = None
) -> list[tuple[int, int]]:
    """(start, stop) of each non-empty layer, with the longer layers split into pieces of about equal size.

    Args:
        layers: (start, stop) of each layer.
        longest: A layer with more elements than this is split.
        num_pieces: Number of pieces of a split layer; the first pieces have one element more if it does not
            divide evenly. By default, as few pieces as fit into `longest`.

    >>> split([(0, 2), (2, 2), (2, 12)], 4)
    [(0, 2), (2, 5), (5, 8), (8, 12)]
    >>> split([(0, 6), (6, 8)], 2, num_pieces=4)
    [(0, 2), (2, 4), (4, 5), (5, 6), (6, 8)]
    """
    pieces: list[tuple[int, int]] = []
    for start, stop in layers:
        size = stop - start
        num = math.ceil(size / max(1, longest))
        if num_pieces is None or num <= 1:
            pieces += pairwise(start + size * i // max(1, num) for i in range(num + 1))
        else:
            num = min(num_pieces, size)
            pieces += pairwise(start + size // num * i + min(i, size % num) for i in range(num + 1))
    return pieces


def norms(grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int]) -> list[float]:
    """Accumulate; the norm of each piece, the largest float32 instead of one that is not finite."""
    norm_P = ops.statistics(grad_N, residual_N, sizes, ops.Kind.SQUARES).sum_G.sqrt()
    largest = torch.finfo(torch.float32).max
    finite_P: list[float] = norm_P.nan_to_num_(largest, largest).tolist()
    return finite_P


def allocate(k: int, sizes: Sequence[int], norms: Sequence[float]) -> list[int]:
    """Number of elements to select from each piece.

    >>> allocate(10, [100, 100, 4, 4], [4.0, 2.0, 3.0, 1.0])
    [4, 2, 3, 1]
    >>> allocate(10, [100, 100, 4, 4], [1.0, 0.0, 9.0, 0.0])
    [6, 1, 4, 1]
    """
    order = sorted(range(len(sizes)), key=lambda piece: -norms[piece])
    # Suffix sums, added from the smallest norm, so that the last norm equals its suffix sum exactly.
    remaining = list(accumulate(norms[piece] for piece in reversed(order)))[::-1]
    counts = [0] * len(sizes)
    for piece, total in zip(order, remaining, strict=True):
        num = int(round(k * norms[piece] / total, 9)) if total > 0 else 0
        counts[piece] = min(sizes[piece], max(1, num))
        k -= counts[piece]
    return counts


def pack(costs: Sequence[float], num_bins: int) -> list[int]:
    """Bin of each piece: pieces in order of decreasing cost, each into the bin with the lowest total cost.

    >>> pack([5.0, 3.0, 3.0, 1.0], 2)
    [0, 1, 1, 0]
    """
    filled = [0.0] * num_bins
    bins = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        bins[piece] = min(range(num_bins), key=filled.__getitem__)
        filled[bins[piece]] += costs[piece]
    return bins


REDUCER = Deft
