"""Ok-Topk: sparse all-reduce of the largest sums, at most 6k values and indices (Li & Hoefler, PPoPP '22)."""
# N = elements of the flat vector, K = elements this rank selects, W = world size, Q = quantiles
# U = elements that any rank sent to this rank's region, G = the globally largest of these

from typing import Literal

import torch
from torch import Tensor

from sage.reduction import Reduced, Sparsifier, Wire, check_fraction, ops, phase

from .topk import num_kept

QUANTILES = 256
"""Number of quantiles of the selection that ranks average to find the regions, for any number of ranks."""


class OkTopk(Sparsifier):
    """Send the largest elements to the rank that owns their region, then gather the largest sums.

    This is Algorithm 1 of the paper. Each rank owns one region of the vector. A rank selects |a| ≥ its own
    threshold and sends each selected element to the owner of the element's region, which sums what it
    receives. The means above a global threshold are gathered. An element that is not selected, or whose mean
    is not gathered, stays in the residual. Every τ steps the thresholds are recomputed as the k-th largest
    magnitudes of the rank's signal and of all means, with k = ⌊d·n⌋. The regions are recomputed too, so that
    on average over the ranks each contains an equal part of the selected elements.

    Three points are ours. The regions follow from 256 averaged quantiles of the selections. They and the
    thresholds have one period τ, where the paper has one for each. If more than 3k/2 elements exceed a
    threshold, only the 3k/2 largest are sent, so that the paper's bound holds for all data. The
    implementation was not compared with the authors' code.

    Payload bytes per rank: 8 (6 with fp16) per element that it selects and per element of its region that it
    gathers, each at most 3k/2; every τ steps 4 for each of up to k means of its region. This is at most 6k
    values and indices in all. In addition, 8·W and 32 for counts, and every τ steps 8 and 2,056 for the
    regions.

    Args:
        density: Share of the vector's elements to send, in (0, 1].
        evaluate_every: Steps τ between recomputations of thresholds and regions, 1 or more.

    Raises:
        ValueError: if an option is out of range.
    """

    serves = False  # its ranks select from the sums already
    even = False
    step: Tensor
    local_threshold: Tensor
    global_threshold: Tensor
    edge_Q: Tensor

    def __init__(
        self,
        *,
        density: float = 0.01,
        evaluate_every: int = 32,
        values: Literal["fp32", "fp16"] = "fp32",
    ) -> None:
        super().__init__(values=values)
        self.density = check_fraction("density", density)
        if evaluate_every < 1:
            raise ValueError(f"evaluate_every={evaluate_every!r}: expected 1 step or more")
        self._every = evaluate_every
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("local_threshold", torch.zeros((), dtype=torch.float64))
        self.register_buffer("global_threshold", torch.zeros((), dtype=torch.float64))
        self.register_buffer("edge_Q", torch.zeros(QUANTILES + 1, dtype=torch.float64))

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        return self._select(signal_N, None)[1]

    def _select(self, grad_N: Tensor, residual_N: Tensor | None) -> tuple[Tensor, Tensor]:
        """Accumulate and select, in one pass: values and indices (int64), removed from the residual."""
        n, exact, threshold = grad_N.numel(), self._evaluates(), float(self.local_threshold)
        k = num_kept(self.density, n)
        self.step += 1
        num = k if exact else min(n, 3 * k // 2)
        dtype = (grad_N if residual_N is None else residual_N).dtype
        own_K, at_K = ops.take_top(grad_N, residual_N, [0, n], [num], dtype=dtype)
        if exact:
            self.local_threshold.fill_(least(own_K))
            return own_K, at_K.long()
        above_K = ops.select_above(own_K, threshold)
        if residual_N is not None and above_K.numel() < num:
            residual_N.index_copy_(0, at_K.long(), own_K.index_fill(0, above_K, 0))
        return own_K.index_select(0, above_K), at_K.index_select(0, above_K).long()

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        n, exact = grad_N.numel(), self._evaluates()
        with phase("select"):
            own_K, at_K = self._select(grad_N, residual_N)
            signal_N = grad_N if residual_N is None else residual_N
            values_K = ops.rounded(signal_N, own_K, at_K, dtype=self.dtype, keep=False)
        if exact:
            self._balance(at_K, n, wire)
        bounds = self._bounds(n, wire.world_size)
        rows = self._send(values_K, at_K, bounds, wire)
        with phase("scatter"):
            start, stop = bounds[wire.rank], bounds[wire.rank + 1]
            counts = [values.numel() for values, _ in rows]
            at_M = torch.cat([at for _, at in rows]) - start
            values_M = torch.cat([values for values, _ in rows])
            at_U, place_M = ops.unite(at_M, stop - start)
            mean_U = ops.scatter_mean(values_M, place_M, counts, out_N=grad_N.new_empty(at_U.numel()))
        if exact:
            self._update_global_threshold(mean_U, n, wire)
        chosen_G = largest_above(mean_U, float(self.global_threshold), 3 * num_kept(self.density, n) // 2)
        regions = wire.gather_streams(
            values=mean_U.index_select(0, chosen_G).to(self.dtype),
            indices=at_U.index_select(0, chosen_G) + start,
            # How many elements of the ranks are in what is gathered.
            sizes=torch.zeros_like(at_U).index_fill_(0, chosen_G, 1).index_select(0, place_M).sum().view(1),
        )
        with phase("scatter"):
            at_M = torch.cat([at for _, at, _ in regions])
            values_M = torch.cat([values for values, _, _ in regions])
            mean_N = ops.scatter_mean(values_M, at_M, [at_M.numel()], out_N=grad_N)
            is_sent_K = ops.is_among(at_K.int(), at_M, n)
            sent = at_K.masked_select(is_sent_K)
            if residual_N is not None:
                residual_N.index_copy_(0, at_K, own_K.masked_fill(is_sent_K, 0))
                ops.rounded(residual_N, own_K.masked_select(is_sent_K), sent, dtype=self.dtype, keep=True)
        times = sum(int(times) for _, _, times in regions)
        return Reduced(mean_N, sent, times / (wire.world_size * max(1, n)), at_M)

    def _evaluates(self) -> bool:
        return int(self.step) % self._every == 0 or self.density == 1

    def _balance(self, at_K: Tensor, n: int, wire: Wire) -> None:
        """Average the quantiles of the ranks' selections, from which the regions follow."""
        place_Q = torch.arange(QUANTILES, device=at_K.device) * at_K.numel() // QUANTILES
        self.edge_Q[:-1] = at_K[place_Q] if n else 0
        self.edge_Q[0], self.edge_Q[-1] = 0, n
        wire.mean(self.edge_Q, kind="sizes")

    def _bounds(self, n: int, world_size: int) -> list[int]:
        """Start of each rank's region, followed by n (W + 1 numbers)."""
        place_W = torch.arange(1, world_size, dtype=torch.float64) * QUANTILES / world_size
        edge_Q, low_W = self.edge_Q.cpu(), place_W.long()
        between_W = torch.lerp(edge_Q[low_W], edge_Q[low_W + 1], place_W - low_W)
        return [0, *between_W.long().tolist(), n]

    def _send(
        self, values_K: Tensor, at_K: Tensor, bounds: list[int], wire: Wire
    ) -> list[tuple[Tensor, ...]]:
        """Values and indices that each rank has sent for this rank's region."""
        below_W = torch.searchsorted(at_K, torch.tensor(bounds, device=at_K.device))
        counts: list[int] = below_W.diff().tolist()
        return wire.all_to_all_ragged(counts, values=values_K, indices=at_K.int())

    def _update_global_threshold(self, mean_U: Tensor, n: int, wire: Wire) -> None:
        """Set the global threshold to the k-th largest mean, which is among the k largest of each region."""
        k = num_kept(self.density, n)
        _, (top_M,) = wire.gather_ragged(values=mean_U[ops.select_top(mean_U, k)])
        self.global_threshold.fill_(least(top_M[ops.select_top(top_M, k)]))

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        return None  # the counts are of the gathered elements; more are selected and sent before that

    def report(self) -> dict[str, float]:
        return {"density_asked": self.density, "threshold": float(self.local_threshold)}


def largest_above(x_N: Tensor, threshold: float, limit: int) -> Tensor:
    """Indices (int64, ascending) where |x| ≥ threshold; if more than `limit`, only those of the largest."""
    if ops.count_above(x_N, threshold) > limit:
        return ops.select_top(x_N, limit)
    return ops.select_above(x_N, threshold)


def least(x_K: Tensor) -> float:
    """The smallest magnitude, 0 if there are no elements; NaN counts as infinite."""
    return float(x_K.abs().nan_to_num(torch.inf, torch.inf).min()) if x_K.numel() else 0.0


REDUCER = OkTopk
