"""Products with thin matrices: of a matrix and a thin one, and of two, with what a signal then keeps."""
# n, m = rows and columns of the large matrix, r = rank, the columns of the thin ones

import torch
from torch import Tensor

from sage.ops import native, reference

_native = torch.ops.sage
native.register("write_product_", lambda out, signal, left, right, rank: None)
native.register(
    "thin_product_",
    lambda matrix, grad, basis, rows, rank, transposed: matrix.new_empty(
        rank * (matrix.numel() // rows if transposed else rows)
    ),
)


def write_product(left: Tensor, right: Tensor, out: Tensor, signal: Tensor | None = None) -> None:
    """Write left (n × r) times right (r × m, r ≥ 1) to `out`, and subtract it from `signal` in place.

    What of the signal is then not finite becomes 0, as in `keep_error`. `out` and `signal` are n × m, without
    gaps. An element is the sum of its r products in their order, each rounded.

    >>> out, signal = torch.empty(2, 2), torch.tensor([[1.0, 2.0], [float("inf"), 4.0]])
    >>> write_product(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 1.0]]), out, signal)
    >>> out.tolist(), signal.tolist()
    ([[1.0, 1.0], [2.0, 2.0]], [[0.0, 1.0], [0.0, 2.0]])
    """
    flat, own = out.view(-1), None if signal is None else signal.view(-1)
    left_F, right_F = left.reshape(-1), right.reshape(-1)
    if native.takes("write_product_", flat, own, left_F, right_F):
        _native.write_product_.default(flat, own, left_F, right_F, right.shape[0])
    else:
        reference.write_product(left, right, out, signal)


def thin_product(
    matrix: Tensor, basis: Tensor, *, transposed: bool = False, grad: Tensor | None = None
) -> Tensor:
    """A matrix (n × m, without gaps) times a thin one (m × r), or with `transposed` mᵀ times n × r.

    On a CPU, where torch's product can take up to 100 times as long as reading the matrix, the order of the
    sums is fixed. Without `transposed`, 16 sums of every 16th product are added by halves; with it, the
    products of 64 rows are summed, and then these sums. On other devices it is torch's product.

    Args:
        matrix: The matrix.
        basis: The thin matrix.
        transposed: Whether to multiply the transpose.
        grad: Added to the matrix first, in place, in the same pass (n × m, without gaps).

    Returns:
        A matrix of n × r elements, or with `transposed` of m × r, whose columns are without gaps.

    >>> matrix = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> thin_product(matrix, torch.tensor([[1.0], [10.0]])).tolist()
    [[21.0], [43.0], [65.0]]
    >>> thin_product(matrix, torch.tensor([[1.0], [10.0], [100.0]]), transposed=True).tolist()
    [[531.0], [642.0]]
    """
    rows, rank = matrix.shape[0], basis.shape[1]
    is_ours = matrix.is_cpu and matrix.dtype == torch.float32 and matrix.numel() > 0 and rank > 0
    if is_ours:
        flat, grad_N, basis_F = matrix.view(-1), None if grad is None else grad.view(-1), basis.T.reshape(-1)
        if native.takes("thin_product_", flat, grad_N, basis_F):
            product_F = _native.thin_product_.default(flat, grad_N, basis_F, rows, rank, transposed)
            return product_F.view(rank, -1).T
    if grad is not None:
        matrix += grad
    if is_ours:
        return reference.thin_product(matrix, basis, transposed=transposed)
    return (matrix.T if transposed else matrix) @ basis
