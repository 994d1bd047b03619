"""Ok-Topk: a sparse all-reduce of the globally largest, in at most 6k values (Li & Hoefler, PPoPP 2022)."""
# N = elements of the flat vector, K = elements this rank selects, W = world size, Q = quantiles
# R = elements of this rank's region, U = those that any rank sent there, G = of these the globally largest

from typing import Literal

import torch
from torch import Tensor

from sage.reduction import Reduced, Sparsifier, Wire, check_fraction, ops, phase

from .topk import num_kept

QUANTILES = 256
"""Places in the vector that ranks agree on, evenly spread over the selection, for any number of ranks."""


class OkTopk(Sparsifier):
    """Send the largest elements to the rank whose region they lie in, and gather the largest sums.

    This is algorithm 1 of the paper. A rank selects |a| ≥ its own threshold, and sends each element to the
    rank in whose region of the vector it lies, which adds up what arrives. The means above a global threshold
    are gathered. An element that is not among them stays in the residual, as does one that was not selected.
    Every τ steps the thresholds are found anew, as the k-th largest of the rank's signal and of all means, k
    = ⌊d·n⌋, and the regions, so that on average over the ranks each holds an equal part of what they select.

    Three points are ours: the regions follow from 256 averaged quantiles of the selections; they and the
    thresholds have one period τ, where the paper has one for each; and of more than 3k/2 elements above a
    threshold the largest are sent, so that the paper's bound holds whatever the data. The authors' code was
    not compared.

    Bytes each rank hands over: 8 (6 with fp16) for each element that it selects and for each of its region
    that it gathers, no more than 3k/2 of either (the largest, where a threshold lets pass more), and every τ
    steps 4 for each of up to k means of its region: at most 6k values and indices in all. Beside that 8·W
    and 32 for their numbers, and every τ steps 8 and 2,056 for the regions.

    Args:
        density: Share of the vector's elements to send, in (0, 1].
        evaluate_every: τ, steps for which thresholds and regions stay as they are, 1 or more.
    """

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
        k, exact = num_kept(self.density, signal_N.numel()), self._evaluates()
        self.step += 1
        if not exact:
            return largest_above(signal_N, float(self.local_threshold), 3 * k // 2)
        at_K = ops.select_top(signal_N, k)
        self.local_threshold.fill_(least(signal_N[at_K]))
        return at_K

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        n, exact = grad_N.numel(), self._evaluates()
        with phase("select"):
            signal_N = ops.accumulate(grad_N, residual_N)
            at_K = self.select(signal_N, wire)
            values_K = ops.take(signal_N, at_K, dtype=self.dtype, keep=False)
        if exact:
            self._balance(at_K, n, wire)
        bounds = self._bounds(n, wire.world_size)
        rows = self._send(values_K, at_K, bounds, wire)
        with phase("scatter"):
            start, stop = bounds[wire.rank], bounds[wire.rank + 1]
            counts = [values.numel() for values, _ in rows]
            at_M = torch.cat([at for _, at in rows]) - start
            values_M = torch.cat([values for values, _ in rows])
            mean_R = ops.scatter_mean(values_M, at_M, counts, out_N=grad_N.new_empty(stop - start))
            at_U, times_U = at_M.long().unique(return_counts=True)
            mean_U = mean_R[at_U]
        if exact:
            self._agree_on_threshold(mean_U, n, wire)
        chosen_G = largest_above(mean_U, float(self.global_threshold), 3 * num_kept(self.density, n) // 2)
        regions = wire.gather_streams(
            values=mean_U[chosen_G].to(self.dtype),
            indices=(at_U[chosen_G] + start).int(),
            sizes=times_U[chosen_G].sum().view(1),  # as often as ranks have sent what is gathered
        )
        with phase("scatter"):
            at_M = torch.cat([at for _, at, _ in regions])
            values_M = torch.cat([values for values, _, _ in regions])
            mean_N = ops.scatter_mean(values_M, at_M, [at_M.numel()], out_N=grad_N)
            sent = at_K[torch.isin(at_K, at_M.long(), assume_unique=True)]
            if residual_N is not None:
                ops.take(residual_N, sent, dtype=self.dtype, keep=True)
        times = sum(int(times) for _, _, times in regions)
        return Reduced(mean_N, sent, times / (wire.world_size * max(1, n)), at_M)

    def _evaluates(self) -> bool:
        return int(self.step) % self._every == 0 or self.density == 1

    def _balance(self, at_K: Tensor, n: int, wire: Wire) -> None:
        """Agree on where the quantiles of the ranks' selections lie on average."""
        place_Q = torch.arange(QUANTILES, device=at_K.device) * at_K.numel() // QUANTILES
        self.edge_Q[:-1] = at_K[place_Q] if n else 0
        self.edge_Q[0], self.edge_Q[-1] = 0, n
        wire.mean(self.edge_Q, kind="sizes")

    def _bounds(self, n: int, world_size: int) -> list[int]:
        """Where each rank's region begins, and n."""
        place_W = torch.arange(1, world_size, dtype=torch.float64) * QUANTILES / world_size
        edge_Q, low_W = self.edge_Q.cpu(), place_W.long()
        between_W = torch.lerp(edge_Q[low_W], edge_Q[low_W + 1], place_W - low_W)
        return [0, *between_W.long().tolist(), n]

    def _send(
        self, values_K: Tensor, at_K: Tensor, bounds: list[int], wire: Wire
    ) -> list[tuple[Tensor, ...]]:
        """What each rank has for this one's region: values and indices."""
        below_W = torch.searchsorted(at_K, torch.tensor(bounds, device=at_K.device))
        counts: list[int] = below_W.diff().tolist()
        return wire.all_to_all_ragged(counts, values=values_K, indices=at_K.int())

    def _agree_on_threshold(self, mean_U: Tensor, n: int, wire: Wire) -> None:
        """Find the k-th largest of all means: it is among the k largest of each region."""
        k = num_kept(self.density, n)
        _, (top_M,) = wire.gather_ragged(values=mean_U[ops.select_top(mean_U, k)])
        self.global_threshold.fill_(least(top_M[ops.select_top(top_M, k)]))

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        return None  # what is selected is more than what is sent in the end

    def report(self) -> dict[str, float]:
        return {"density_asked": self.density, "threshold": float(self.local_threshold)}


def largest_above(x_N: Tensor, threshold: float, limit: int) -> Tensor:
    """Indices (int64, ascending) where |x| >= threshold, and of more than the limit the largest."""
    at_K = ops.select_above(x_N, threshold)
    return at_K if at_K.numel() <= limit else at_K[ops.select_top(x_N[at_K], limit)]


def least(x_K: Tensor) -> float:
    """The smallest magnitude, 0 of nothing; NaN counts as infinite."""
    return float(x_K.abs().nan_to_num(torch.inf, torch.inf).min()) if x_K.numel() else 0.0


REDUCER = OkTopk
