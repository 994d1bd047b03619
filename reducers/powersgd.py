"""PowerSGD: sends each layer's gradient as a product of two thin matrices (Vogels et al., NeurIPS 2019)."""
# N = elements of the flat vector, D = those that go dense, F = elements of all factors together
# n, m = rows and columns of a matrix, r = its rank

from bisect import bisect_right
from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from sage.reduction import (
    ALLOCATION,
    Allocated,
    AllocationOptions,
    Layout,
    Matrices,
    Matrix,
    Reduced,
    Setting,
    Wire,
    by_shape,
    check_min_rate,
    check_rank,
    generator,
    in_float32,
    ops,
    orthonormalise,
    phase,
    tail_energy,
    unflatten,
    uniform_first,
)


class PowerSgd(Allocated):
    """Power iteration on the mean of the ranks' matrices, warm-started from the last step's factor.

    A parameter of n × m elements, its first dimension by all others, is the matrix M. With the Q of the
    previous step, orthonormalised,

        P = mean of M·Q over ranks, orthonormalised;  Q = mean of Mᵀ·P over ranks;  mean ≈ P·Qᵀ

    (Algorithm 1 of the paper). `iterations` repeats this within a step, each time from the last Q; the paper
    does one iteration. Each rank's residual is its own M minus the common P·Qᵀ, as in PyTorch's
    powerSGD_hook, so every rank counts the mean as what it has sent. Q is initialised from N(0, 1), the same
    on all ranks and in every bucket. A column of Q is reinitialised if it is not finite or not longer than
    `eps` (a gradient of zeros has no direction). Algorithm 1 does not orthonormalise Q. P is the same either
    way except for the effect of `eps`, which must be small relative to what it is added to: here a gradient,
    not its square. The dense parameters, `start_step` and `min_compression_rate` are those of PyTorch's hook.
    `half` is the utility study's HalfRankK (Agarwal et al., 2022).

    Payload bytes per rank: 4·r·(n + m) per matrix and iteration, in two all-reduces per iteration. Parameters
    of one dimension or none, and those for which rank r would save too little, are sent dense, 4 per element,
    together with all P of the first iteration. With `half`, 4·r·n and 4·r·m per matrix in alternate steps, in
    one all-reduce. Before `start_step`, 4 per element. The method works per parameter, under any grouping.

    With `allocation=lgreco` the matrices of each group have their own rank, a whole number from r/2 to 2·r;
    what a rank loses is the sum of the squares of the other singular values. Which parameters are dense does
    not change. Additional columns of Q keep their last values (L-GreCo draws all of Q anew at each
    allocation). The steps of an allocation are counted from `start_step` on.

    Args:
        rank: Rank r of the product P·Qᵀ, at most n or m; 1 or more.
        start_step: Number of initial steps that use an exact all-reduce, 0 or more.
        min_compression_rate: A matrix is sent dense unless r·(n + m) times this is less than n·m; 0 or more.
        eps: Added to a column's length before dividing by it, at least 0 and below 1.
        half: Compute P and Q in alternate steps; the other factor is that of the previous step. The residual
            is then larger.
        iterations: Power iterations per step, 1 or more; with `half`, 1.
        sample_seed: Seed of the initial Q, which also depends on the parameter's number in the model.

    Raises:
        ValueError: if an option is out of range.
    """

    decides_by = "group"
    memory = "residual"
    grouping = "layer"
    later = frozenset({"iterations"}) | ALLOCATION
    rounds = True
    spares_small = False
    keeps_own_error: ClassVar[bool] = False
    """Whether a rank's residual is its M minus the product with its own factor, not with the mean factor."""

    step: Tensor
    q_F: Tensor
    rank_G: Tensor

    def __init__(
        self,
        *,
        rank: int = 1,
        start_step: int = 0,
        min_compression_rate: float = 2.0,
        eps: float = 1e-8,
        half: bool = False,
        iterations: int = 1,
        sample_seed: int = 0,
        **allocation: Unpack[AllocationOptions],
    ) -> None:
        super().__init__(**allocation)
        self.rank = check_rank("rank", rank)
        if start_step < 0:
            raise ValueError(f"start_step={start_step!r}: expected a number of steps, 0 or more")
        if not 0 <= eps < 1:
            raise ValueError(f"eps={eps!r}: expected a length far below 1, 0 or more")
        if iterations < 1 or (half and iterations > 1):
            raise ValueError(f"iterations={iterations!r}, half={half!r}: expected 1 or more; with half, 1")
        self._start_step, self._eps, self._half, self._seed = start_step, eps, half, sample_seed
        self._iterations = iterations
        self._min_rate = check_min_rate(min_compression_rate)

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        self.split = Matrices(layout, rank=self.rank, min_rate=self._min_rate)
        self._largest = [x.rank if self.allocation is None else _largest(x) for x in self.split.matrices]
        if self.allocation is not None:
            starts, count = [start for start, _ in layout.groups], len(layout.groups)
            self._group_of = [bisect_right(starts, x.start) - 1 for x in self.split.matrices]
            self.register_buffer("rank_G", torch.full((count,), float(self.rank), dtype=torch.float64))
        matrices = list(zip(self.split.matrices, self._largest, strict=True))
        self._shapes = {"q_F": [(x.columns, largest) for x, largest in matrices]}
        if self._half:
            self._shapes["p_F"] = [(x.rows, largest) for x, largest in matrices]
        for place, (name, shapes) in enumerate(self._shapes.items()):
            # By the parameter's number in the model, so that they do not depend on the others of the vector.
            firsts = [
                self._first(rows, x.rank, largest, place, x.number)
                for x, (rows, largest) in zip(self.split.matrices, shapes, strict=True)
            ]
            first_F = torch.cat(firsts or [torch.empty(0)])
            self.register_buffer(name, first_F)
            self.register_buffer(f"first_{name}", first_F.clone(), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def _first(self, rows: int, rank: int, largest: int, place: int, number: int) -> Tensor:
        """A first factor, flat; its first columns are those of a factor without further ones."""
        parts = [torch.randn(rows, rank, generator=generator(self._seed, place, number))]
        if largest > rank:
            parts.append(torch.randn(rows, largest - rank, generator=generator(self._seed, place, number, 1)))
        return torch.cat(parts, dim=1).view(-1)

    def ranks(self) -> list[int]:
        """Rank of each matrix at this step, at most that of its stored factors."""
        if self.allocation is None:
            return self._largest
        rank_G = self.rank_G.tolist()
        return [
            min(largest, int(rank_G[group]))
            for largest, group in zip(self._largest, self._group_of, strict=True)
        ]

    def settings_of(self, signal_N: Tensor) -> list[list[Setting]]:
        some = range(max(1, self.rank // 2), 2 * self.rank + 1)
        ranks = [int(rank) for rank in uniform_first(self.rank, some)]
        errors, sizes = [[0.0] * len(ranks) for _ in self.rank_G], [[0] * len(ranks) for _ in self.rank_G]
        for x, largest, group in zip(self.split.matrices, self._largest, self._group_of, strict=True):
            lost = tail_energy(x.view(signal_N))
            for c, rank in enumerate(ranks):
                kept = min(rank, largest)
                errors[group][c] += lost[kept]
                sizes[group][c] += 4 * kept * (x.rows + x.columns) * self._iterations
        return [
            [Setting(*values) for values in zip(ranks, lost, size, strict=True)]
            for lost, size in zip(errors, sizes, strict=True)
        ]

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if grad_N.dtype != torch.float32:
            return in_float32(self, grad_N, residual_N, wire)
        step = int(self.step) if self._start_step or self._half else 0  # reading a GPU tensor synchronises
        self.step += 1
        if self.allocation is not None and step >= self._start_step:
            self.reallocate(self.rank_G, grad_N, residual_N, wire)
        if step < self._start_step:
            wire.mean(grad_N.copy_(ops.accumulate(grad_N, residual_N)))
            if residual_N is not None:
                residual_N.zero_()
            return Reduced(grad_N)
        p_is_known = self._half and (step - self._start_step) % 2 == 1
        with phase("select"):
            bases = self._bases("p_F" if p_is_known else "q_F")
            signal_N, grads = grad_N, None
            if residual_N is not None and grad_N.is_cpu:  # it is added in the pass of the first product
                signal_N, grads = residual_N, [x.view(grad_N) for x in self.split.matrices]
                self.split.add_dense(grad_N, residual_N)
            elif residual_N is not None:
                signal_N = ops.accumulate(grad_N, residual_N)
            matrices = [x.view(signal_N) for x in self.split.matrices]
            products = _products(matrices, bases, grads, transposed=p_is_known)
            dense_D = self.split.take_dense(signal_N)
        if self.keeps_own_error and residual_N is not None:
            with phase("select"):
                self._write(bases, products, grad_N, residual_N, p_is_basis=p_is_known)
        mean_D, factors = self.mean_of(dense_D, products, wire, is_q=p_is_known)
        if not self._half:
            with phase("select"):
                bases, p_is_known = self._orthonormal(factors), True
                products = _products(matrices, bases, transposed=True)
            _, factors = self.mean_of(dense_D[:0], products, wire, is_q=True)
        for _ in range(self._iterations - 1):
            bases, factors = self._iterate(matrices, factors, dense_D[:0], wire)
        with phase("scatter"):
            self._store("q_F" if p_is_known else "p_F", factors)
            left_N = None if self.keeps_own_error else residual_N
            self._write(bases, factors, grad_N, left_N, p_is_basis=p_is_known)
            self.split.put_dense(mean_D, grad_N)
            if residual_N is not None:
                self.split.clear_dense(residual_N)
        return Reduced(grad_N)

    def _iterate(
        self, matrices: list[Tensor], factors: list[Tensor], nothing: Tensor, wire: Wire
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Do one more power iteration from these Q; returns the orthonormal P and the new Q."""
        bases: list[Tensor] = []
        for transposed in (False, True):
            with phase("select"):
                bases = self._orthonormal(factors)
                products = _products(matrices, bases, transposed=transposed)
            _, factors = self.mean_of(nothing, products, wire, is_q=transposed)
        return bases, factors

    def _write(
        self,
        bases: list[Tensor],
        factors: list[Tensor],
        out_N: Tensor,
        signal_N: Tensor | None,
        *,
        p_is_basis: bool,
    ) -> None:
        """Write the products P·Qᵀ to `out_N`, and subtract them from `signal_N`."""
        for x, basis, factor in zip(self.split.matrices, bases, factors, strict=True):
            p, q = (basis, factor) if p_is_basis else (factor, basis)
            own = None if signal_N is None else x.view(signal_N)
            ops.write_product(p, q.T, x.view(out_N), own)

    def mean_of(
        self, dense_D: Tensor, factors: list[Tensor], wire: Wire, *, is_q: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Means over ranks of a dense vector and of all P, or with `is_q` of all Q, by one all-reduce."""
        joined = torch.cat([dense_D, *(factor.reshape(-1) for factor in factors)])
        if joined.numel():
            wire.mean(joined)
        mean_D, mean_F = joined.split([dense_D.numel(), joined.numel() - dense_D.numel()])
        return mean_D, unflatten(mean_F, [(factor.shape[0], factor.shape[1]) for factor in factors])

    def _bases(self, name: str) -> list[Tensor]:
        """The last step's factors, orthonormalised; columns without a direction are reinitialised."""
        shapes, ranks = self._shapes[name], self.ranks()
        lasts, firsts = (
            [x[:, :rank] for x, rank in zip(unflatten(self.get_buffer(buffer), shapes), ranks, strict=True)]
            for buffer in (name, f"first_{name}")
        )

        def renewed(last: Tensor, first: Tensor) -> Tensor:
            length_r = torch.linalg.vector_norm(last, dim=-2, keepdim=True)
            usable = length_r.isfinite() & (length_r > self._eps)
            return orthonormalise(torch.where(usable, last, first), self._eps)

        return by_shape(renewed, lasts, firsts)

    def _orthonormal(self, factors: list[Tensor]) -> list[Tensor]:
        return by_shape(lambda x: orthonormalise(x, self._eps), factors)

    def _store(self, name: str, factors: list[Tensor]) -> None:
        for last, factor in zip(unflatten(self.get_buffer(name), self._shapes[name]), factors, strict=True):
            last[:, : factor.shape[1]] = factor

    def report(self) -> dict[str, float]:
        if self.allocation is None:
            return {}
        ranks = self.ranks()
        return {"mean_rank": sum(ranks) / max(1, len(ranks))}

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if self._start_step or self._half or self.allocation is not None:  # the bytes differ between steps
            return None
        sizes = [r * (x.rows + x.columns) for x, r in zip(self.split.matrices, self.ranks(), strict=True)]
        return {"values": 4 * (self.split.num_dense + self._iterations * sum(sizes))}


def _largest(x: Matrix) -> int:
    """The largest rank that an allocation may give: twice the uniform one, if that sends less than all."""
    shorter = (x.rows * x.columns - 1) // (x.rows + x.columns)
    return max(x.rank, min(2 * x.rank, x.rows, x.columns, shorter))


def _products(
    matrices: Sequence[Tensor],
    bases: Sequence[Tensor],
    grads: Sequence[Tensor] | None = None,
    *,
    transposed: bool,
) -> list[Tensor]:
    """Products with the bases; `grads`, if any, are added to the matrices in place."""
    added = [None] * len(bases) if grads is None else grads
    return [
        ops.thin_product(matrix, basis, transposed=transposed, grad=grad)
        for matrix, basis, grad in zip(matrices, bases, added, strict=True)
    ]


REDUCER = PowerSgd
