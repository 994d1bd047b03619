"""Code shared by the low-rank methods: parameters viewed as matrices, and orthonormal bases.

The choice of the parameters to factorise and the `eps` in the orthonormalisation follow PyTorch's
powerSGD_hook; the utility study's code divides without `eps`. The second projection in `orthonormalise` is
ours.
"""
# N = elements of the flat vector, D = those sent dense, F = elements of all factors together
# n, m = rows and columns of a matrix, r = its rank

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sage.comm.wire import Wire
from sage.reduction.layout import Layout, Span
from sage.reduction.reducer import Reduced, Reducer


@dataclass(frozen=True)
class Matrix:
    """A parameter viewed as a matrix, its first dimension by all others, with the rank of its factors."""

    start: int
    rows: int
    columns: int
    rank: int
    number: int
    """Number of parameters before it in the whole model, on which its random numbers depend."""

    def view(self, x_N: Tensor) -> Tensor:
        """View of the matrix (rows × columns) in the flat vector."""
        return x_N[self.start : self.start + self.rows * self.columns].view(self.rows, self.columns)


class Matrices:
    """The matrices of a layout that are worth factorising; the other parameters are sent dense.

    A parameter of n × m elements is factorised to rank r = min(rank, n, m) if it has two or more dimensions
    and r·(n + m)·`min_rate` < n·m (the rule of PyTorch's PowerSGD hook).
    """

    def __init__(self, layout: Layout, *, rank: int, min_rate: float) -> None:
        matrices = {
            span: _matrix(span, rank, origin.number)
            for span, origin in zip(layout.spans, layout.origins, strict=True)
            if len(span.shape) > 1 and span.numel
        }
        worth = {span: x for span, x in matrices.items() if _saves_bytes(x, min_rate)}
        self.matrices = tuple(worth.values())
        self._dense = tuple((span.start, span.stop) for span in layout.spans if span not in worth)
        self.num_dense = sum(stop - start for start, stop in self._dense)

    def take_dense(self, x_N: Tensor) -> Tensor:
        """Copy of the dense parameters, concatenated (D)."""
        return torch.cat(self._views(x_N) or [x_N[:0]])

    def add_dense(self, x_N: Tensor, out_N: Tensor) -> None:
        """Add the dense parameters of `x_N` to those of `out_N`."""
        if self._dense:
            torch._foreach_add_(self._views(out_N), self._views(x_N))

    def put_dense(self, x_D: Tensor, out_N: Tensor) -> None:
        """Write the dense parameters (D) back to their positions in `out_N`."""
        if self._dense:
            torch._foreach_copy_(self._views(out_N), x_D.split([b - a for a, b in self._dense]))

    def clear_dense(self, out_N: Tensor) -> None:
        """Set the dense parameters in `out_N` to 0."""
        if self._dense:
            torch._foreach_zero_(self._views(out_N))

    def _views(self, x_N: Tensor) -> list[Tensor]:
        return [x_N[a:b] for a, b in self._dense]


def _matrix(span: Span, rank: int, number: int) -> Matrix:
    rows, columns = span.shape[0], math.prod(span.shape[1:])
    return Matrix(span.start, rows, columns, min(rank, rows, columns), number)


def _saves_bytes(x: Matrix, min_rate: float) -> bool:
    return x.rank * (x.rows + x.columns) * min_rate < x.rows * x.columns


def in_float32(reducer: Reducer, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
    """Reduce a gradient of another precision as float32: few factorisations support a narrower dtype."""
    reduced: Reduced = reducer(grad_N.float(), residual_N, wire)
    return replace(reduced, mean_N=grad_N.copy_(reduced.mean_N))


def unflatten(x_F: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Views of concatenated factors (F), one per (rows, columns) in `shapes`."""
    pieces = x_F.split([rows * columns for rows, columns in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def by_shape(work: Callable[..., Tensor], *lists: Sequence[Tensor]) -> list[Tensor]:
    """Apply `work` to the n-th tensors of all lists, for each n; one call for all that have equal shapes.

    `work` takes one tensor per list, with the tensors of one shape stacked along a new first dimension, and
    returns their results stacked likewise.
    """
    places: dict[torch.Size, list[int]] = {}
    for place, x in enumerate(lists[0]):
        places.setdefault(x.shape, []).append(place)
    found = dict[int, Tensor]()
    for same in places.values():
        found.update(zip(same, work(*(torch.stack([x[i] for i in same]) for x in lists)), strict=True))
    return [found[place] for place in range(len(found))]


def orthonormalise(x: Tensor, eps: float) -> Tensor:
    """Make each column (… × n × r) orthogonal to those before it, with length ‖c‖/(‖c‖ + eps).

    Gram-Schmidt; each column is projected twice, because one projection leaves a remainder by rounding. A
    column of which 10^−6 or less remains is parallel to earlier columns up to rounding, and becomes zero. A
    column of zeros stays zero, and NaN stays NaN.
    """
    x_rn = x.mT.contiguous()  # matrix products copy columns that have gaps
    basis_rn = torch.zeros_like(x_rn)
    for i in range(x_rn.shape[-2]):
        first = row = x_rn[..., i : i + 1, :]
        earlier = basis_rn[..., :i, :]
        for _ in range(2 if i else 0):
            row = row - row @ earlier.mT @ earlier
        length = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
        is_parallel = length <= 1e-6 * torch.linalg.vector_norm(first, dim=-1, keepdim=True)
        basis_rn[..., i : i + 1, :] = (row / (length + eps)).masked_fill(is_parallel, 0)
    return basis_rn.mT


def tail_energy(x: Tensor) -> list[float]:
    """Squared error of the best approximation of a matrix (n × m) of rank r, for r = 0 … min(n, m).

    It is the sum of the squares of the singular values beyond the r largest (Eckart & Young, 1936). They are
    found from the product of the matrix with its transpose in double precision, which loses singular values
    below 10⁻⁸ of the largest.

    >>> [round(lost, 6) for lost in tail_energy(torch.diag(torch.tensor([1.0, 3.0, 2.0])))]
    [14.0, 5.0, 1.0, 0.0]
    """
    x = (x if x.shape[0] <= x.shape[1] else x.mT).double()
    squares = torch.linalg.eigvalsh(x @ x.mT).clamp_(min=0)
    lost: list[float] = torch.cat([squares.new_zeros(1), squares.cumsum(0)]).flip(0).tolist()
    return lost


def check_rank(name: str, value: int) -> int:
    """Return `value` if it is a rank.

    Raises:
        ValueError: if it is below 1.
    """
    if value < 1:
        raise ValueError(f"{name}={value!r}: expected a rank, 1 or more")
    return value


def check_min_rate(value: float) -> float:
    """Return `value` if it is a compression rate.

    Raises:
        ValueError: if it is negative or not finite.
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"min_compression_rate={value!r}: expected a finite number, 0 or more")
    return value
