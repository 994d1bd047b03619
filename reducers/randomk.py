"""Random-k: sends k elements per group drawn at random, by default without indices (Stich et al., 2018)."""
# N = elements of the flat vector, n = of one group, K = elements sent

from typing import Literal, Unpack

import torch
from torch import Tensor

from sage.reduction import Reduced, Sparsifier, SparsifierOptions, Wire, check_fraction, ops, phase, seed_at

from .topk import num_kept


class RandomK(Sparsifier):
    """Send k = max(1, ⌊d·n⌋) elements of each group, drawn again at every step (Stich et al., 2018).

    `shared`: all ranks draw the same k distinct elements from a common seed, and only values are all-reduced
    (the utility study's UniformRandomSparse, Agarwal et al., 2022). `block`: the same with k consecutive
    elements from a random start, continued at the group's beginning if they reach its end (its
    UniformRandomSparseBlock). Payload bytes per rank: 4 (or 2) per element sent; no indices are sent.

    `own`: each rank draws k elements for itself with replacement, as BytePS's randomk; an element drawn twice
    is sent once, where BytePS sends it twice. Values and indices are gathered, and counts may differ: payload
    bytes as for a threshold. The elements drawn of a group depend on the seed, the step, and the group's size
    and number alone, and on the rank for `own`. The number is that of the parameter in the whole model if
    each layer is a group, whatever the buckets. The elements differ from the sources', which use other
    random number generators.

    Args:
        density: Share of each group's elements to send, in (0, 1].
        draw: What is drawn: the same elements on all ranks (`shared`), one `block` of consecutive elements,
            or each rank's `own` elements.
        unbiased: Whether values are divided by their probability of being sent, k/n (`own`: 1 − (1 − 1/n)^k),
            so that their expectation is the gradient (neither source does). Only used without error feedback:
            a residual already compensates for what was not sent.
        sample_seed: Seed of the draws.

    Raises:
        ValueError: if an option is out of range.
    """

    decides_by = "element"
    even = False
    step: Tensor

    def __init__(
        self,
        *,
        density: float = 0.01,
        draw: Literal["shared", "block", "own"] = "shared",
        unbiased: bool = False,
        sample_seed: int = 0,
        **options: Unpack[SparsifierOptions],
    ) -> None:
        super().__init__(**options)
        self.density = check_fraction("density", density)
        if draw not in ("shared", "block", "own"):
            raise ValueError(f"draw={draw!r}: expected shared, block or own")
        self._draw, self._unbiased, self._seed = draw, unbiased, sample_seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        at_K = self._drawn(grad_N, wire)
        values_K = ops.take_at(grad_N, residual_N, at_K, dtype=self.dtype)
        if self._unbiased and residual_N is None:
            scale_G = [1 / self._chance(stop - start) for start, stop in self.layout.groups if stop > start]
            stops_G = torch.tensor([stop for start, stop in self.layout.groups if stop > start])
            group_K = torch.bucketize(at_K, stops_G.to(at_K), right=True)
            values_K = values_K * torch.tensor(scale_G).to(values_K)[group_K]
        return values_K, at_K

    def _drawn(self, beside_N: Tensor, wire: Wire) -> Tensor:
        """Indices of this step's elements (int32, ascending), on the device of a vector."""
        place = (int(self.step), wire.stream) if self._draw == "own" else (int(self.step),)
        key, groups = seed_at(self._seed, *place), self.layout.groups
        self.step += 1
        bounds, numbers = [0, *(stop for _, stop in groups)], self.layout.group_numbers
        counts = [num_kept(self.density, stop - start) for start, stop in groups]
        if self._draw != "block":
            distinct = self._draw == "shared" or self.density == 1
            return ops.draw_indices(beside_N, bounds, counts, key, distinct=distinct, numbers=numbers)
        ones = [min(1, k) for k in counts]
        first_K = ops.draw_indices(beside_N, bounds, ones, key, distinct=True, numbers=numbers)
        first, chosen = iter(first_K.tolist()), [first_K[:0]]
        for (start, stop), k in zip(groups, counts, strict=True):
            if k:
                begin = next(first)
                pieces = (start, max(start, begin + k - (stop - start))), (begin, min(stop, begin + k))
                chosen += [torch.arange(*piece, dtype=torch.int32).to(first_K.device) for piece in pieces]
        return torch.cat(chosen)

    def _chance(self, n: int) -> float:
        k = num_kept(self.density, n)
        return 1 - (1 - 1 / n) ** k if self._draw == "own" and k < n else k / n

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if self._draw == "own":
            return super().forward(grad_N, residual_N, wire)
        with phase("select"):
            values_K, at_K = self.take(grad_N, residual_N, wire)
        # Dividing before the sum keeps fp16 from overflowing.
        mean_K = wire.sum(values_K.div_(wire.world_size))
        with phase("scatter"):
            mean_N = ops.scatter_mean(mean_K, at_K, [at_K.numel()], out_N=grad_N)
        return Reduced(mean_N, at_K, at_K.numel() / max(1, grad_N.numel()), at_K)

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        return (
            super().payload(counts, rank)
            if self._draw == "own"
            else {"values": self.dtype.itemsize * counts[rank]}
        )

    def report(self) -> dict[str, float]:
        return {"density_asked": self.density}


REDUCER = RandomK
