"""SVD: sends the r largest singular values of each layer and their vectors (Agarwal et al., MLSys 2022)."""
# N = elements of the flat vector, D = those sent dense, F = elements of all singular vectors together
# n, m = rows and columns of a matrix, k = number of its singular values

from collections.abc import Iterator
from typing import ClassVar, Literal, TypedDict

import torch
from torch import Tensor

from sage.reduction import (
    Layout,
    Matrices,
    Matrix,
    Memory,
    Parts,
    Reduced,
    Reducer,
    Wire,
    check_min_rate,
    check_rank,
    gather_parts,
    in_float32,
    keep_error,
    ops,
    phase,
    randomised_svd,
    seed_at,
    unflatten,
)


class DecompositionOptions(TypedDict, total=False):
    """The options of the decomposition."""

    decomposition: Literal["exact", "randomised"]
    oversampling: int
    power_iterations: int


class Svd(Reducer):
    """Gather every rank's own U·S·Vᵀ, truncated to the r largest singular values, and average them.

    This is the utility study's SVD. A parameter of n × m elements, its first dimension by all others, is a
    matrix, and its truncated U·S·Vᵀ is the best approximation of rank r (Eckart & Young, 1936). The residual
    keeps the difference from the rank's own approximation. Each rank decomposes whole matrices, which takes
    n·m·min(n, m) operations: on most links much longer than sending them. With `decomposition=randomised`
    (ours) the values and vectors are those of an approximation of rank l = r + `oversampling`, found by
    random projection with 2 + 2·`power_iterations` products of n·m·l operations (Halko, Martinsson & Tropp,
    2011, Algorithms 4.4 and 5.1; `sage.reduction.randomised_svd`, which states the error). All ranks draw the
    same test matrix, another one at each step and for each parameter. Matrices with l rows or columns or
    fewer are decomposed exactly.

    Payload bytes per rank: 4·r·(n + m) for the vectors (`values`) and 4·r for the singular values (`scales`)
    per matrix, in an all-gather. Parameters of one dimension or none, and those for which rank r would save
    too little, are sent dense, 4 per element, in a separate all-reduce; the limit is that of PyTorch's
    PowerSGD hook. The method works per parameter, under any grouping.

    Args:
        rank: Number r of singular values sent per matrix, at most n or m; 1 or more.
        min_compression_rate: A matrix is sent dense unless r·(n + m) times this is less than n·m; 0 or more.
        decomposition: How a matrix is decomposed: by LAPACK (`exact`) or random projection (`randomised`).
        oversampling: With `randomised`, rank of the approximation beyond r, 0 or more.
        power_iterations: With `randomised`, power iterations, 0 or more; each reduces the error.
        sample_seed: Seed of the random test matrices.

    Raises:
        ValueError: if an option is out of range.
    """

    decides_by = "group"
    later = frozenset({"decomposition", "oversampling", "power_iterations", "sample_seed"})
    memory: ClassVar[Memory] = "residual"
    grouping = "layer"
    rounds = True
    spares_small = False
    even: ClassVar[bool] = True
    """Whether all ranks send the same number of singular values of a matrix."""

    step: Tensor

    def __init__(
        self,
        *,
        rank: int = 1,
        min_compression_rate: float = 2.0,
        decomposition: Literal["exact", "randomised"] = "exact",
        oversampling: int = 10,
        power_iterations: int = 2,
        sample_seed: int = 0,
    ) -> None:
        super().__init__()
        self.rank = check_rank("rank", rank)
        self._min_rate = check_min_rate(min_compression_rate)
        if decomposition not in ("exact", "randomised"):
            raise ValueError(f"decomposition={decomposition!r}: expected exact or randomised")
        for name, value in (("oversampling", oversampling), ("power_iterations", power_iterations)):
            if value < 0:
                raise ValueError(f"{name}={value!r}: expected 0 or more")
        self._is_randomised, self._seed = decomposition == "randomised", sample_seed
        self._oversampling, self._power_iterations = oversampling, power_iterations
        if self._is_randomised:
            self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        self.split = Matrices(layout, rank=self.rank, min_rate=self._min_rate)

    def begin(self, wire: Wire) -> None:
        """Called before the first matrix of a step."""
        if self._is_randomised:
            self.step += 1

    def choose(self, s_k: Tensor, x: Matrix) -> tuple[Tensor, Tensor]:
        """Indices of the singular values (descending) of a matrix to send, and the value to send for each."""
        return torch.arange(x.rank, device=s_k.device), s_k[: x.rank]

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if grad_N.dtype != torch.float32:
            return in_float32(self, grad_N, residual_N, wire)
        self.begin(wire)
        with phase("select"):
            signal_N = ops.accumulate(grad_N, residual_N)
            parts = self._encode(signal_N)
            mean_D = self.split.take_dense(signal_N)
            if residual_N is not None:
                self.split.put_dense(torch.zeros_like(mean_D), residual_N)
                for x, approximation in self._decode(parts):
                    keep_error(x.view(residual_N), approximation)
        if mean_D.numel():
            wire.mean(mean_D)
        rows = gather_parts(wire, parts, even=self.even)
        with phase("scatter"):
            grad_N.zero_()
            for row in rows:
                for x, sent in self._decode(row):
                    x.view(grad_N).add_(sent)
            grad_N /= wire.world_size
            self.split.put_dense(mean_D, grad_N)
        return Reduced(grad_N)

    def _encode(self, signal_N: Tensor) -> Parts:
        """The payload of all matrices: vectors, values and, if these differ by rank, their number."""
        vectors, values = [signal_N[:0]], [signal_N[:0]]
        for x in self.split.matrices:
            *each, s_k = self._chosen(x.view(signal_N), x)
            vectors += each
            values.append(s_k)
        parts = {"values": torch.cat(vectors), "scales": torch.cat(values)}
        if not self.even:
            counts = [s_k.numel() for s_k in values[1:]]
            parts["sizes"] = torch.tensor(counts, dtype=torch.int32, device=signal_N.device)
        return parts

    def _chosen(self, m: Tensor, x: Matrix) -> tuple[Tensor, Tensor, Tensor]:
        """The chosen columns of U and rows of Vᵀ, flat, and the values to send; all else is freed."""
        # LAPACK rejects NaN and infinity; adding (m * 0).sum() makes the values NaN for all ranks.
        nan_or_0 = (m * 0).sum()
        u, s_k, vt = self._decompose(m.nan_to_num(0.0, 0.0, 0.0), x)
        at_k, s_k = self.choose(s_k + nan_or_0, x)
        return u[:, at_k].reshape(-1), vt[at_k].reshape(-1), s_k

    def _decompose(self, m: Tensor, x: Matrix) -> tuple[Tensor, Tensor, Tensor]:
        """U, singular values and Vᵀ of a matrix."""
        size = x.rank + self._oversampling
        if not self._is_randomised or size >= min(x.rows, x.columns):
            u, s_k, vt = torch.linalg.svd(m, full_matrices=False)
            return u, s_k, vt
        key = seed_at(self._seed, int(self.step), x.number, size)
        return randomised_svd(m, size, power_iterations=self._power_iterations, key=key)

    def _decode(self, parts: Parts) -> Iterator[tuple[Matrix, Tensor]]:
        """Yield each matrix, and one rank's approximation of it."""
        counts = [x.rank for x in self.split.matrices] if self.even else parts["sizes"].tolist()
        shapes = []
        for x, k in zip(self.split.matrices, counts, strict=True):
            shapes += [(x.rows, k), (k, x.columns)]
        vectors = iter(unflatten(parts["values"], shapes))
        for x, s_k in zip(self.split.matrices, parts["scales"].split(counts), strict=True):
            yield x, (next(vectors) * s_k) @ next(vectors)

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        vectors = sum(x.rank * (x.rows + x.columns) for x in self.split.matrices)
        scales = sum(x.rank for x in self.split.matrices)
        return {"values": 4 * (self.split.num_dense + vectors), "scales": 4 * scales}


REDUCER = Svd
