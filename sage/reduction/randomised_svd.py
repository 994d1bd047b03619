"""The largest singular values of a matrix by random projection (Halko, Martinsson & Tropp, 2011)."""
# n, m = rows and columns of a matrix, l = columns of its random test matrix

import torch
from torch import Tensor

from sage import ops


def randomised_svd(a: Tensor, size: int, *, power_iterations: int, key: int) -> tuple[Tensor, Tensor, Tensor]:
    """The approximate SVD of rank l: U (n × l), singular values (l, descending) and Vᵀ (l × m).

    The range of A is found by subspace iteration from A·Ω, with Ω from N(0, 1) (Algorithm 4.4), and the small
    matrix Qᵀ·A is decomposed exactly (Algorithm 5.1). For l = k + p, p ≥ 2 and no power iterations, the
    expectation over Ω of ‖A − U·S·Vᵀ‖_F is at most (1 + k/(p − 1))^½ · (Σ_{j>k} σ_j²)^½, and that of the
    spectral norm at most (1 + (k/(p − 1))^½)·σ_{k+1} + e·(k + p)^½/p · (Σ_{j>k} σ_j²)^½ (Theorems 10.5 and
    10.6); power iterations reduce it. It is exact, up to rounding, for a matrix of rank l or less.

    Source: "Finding structure with randomness", SIAM Review 53(2), https://doi.org/10.1137/090771806.

    Args:
        a: The matrix, of finite numbers (float32 or float64).
        size: l, at most n and m.
        power_iterations: Number of times A·Aᵀ is applied to the range, 0 or more.
        key: Key of the random numbers (`sage.ops.random_bits`); equal keys give equal Ω.

    >>> a = torch.outer(torch.tensor([3.0, 4.0, 0.0]), torch.tensor([0.0, 1.0]))
    >>> u, s, vt = randomised_svd(a, 1, power_iterations=0, key=7)
    >>> s, torch.allclose(u * s @ vt, a)
    (tensor([5.]), True)
    """
    q = torch.linalg.qr(a @ normal(a.shape[1], size, key, like=a)).Q
    for _ in range(power_iterations):
        q = torch.linalg.qr(a @ torch.linalg.qr(a.T @ q).Q).Q
    u, s_l, vt = torch.linalg.svd(q.T @ a, full_matrices=False)
    return q @ u, s_l, vt


def normal(rows: int, columns: int, key: int, *, like: Tensor) -> Tensor:
    """A matrix of numbers from N(0, 1) that depend on the key alone, with dtype and device of `like`.

    Each number has 32 random bits, so magnitudes reach 6.2.
    """
    bits = ops.random_bits(2 * rows * columns, key, device=like.device).view(2, rows, columns).double()
    return torch.special.ndtri((bits[0] * 2.0**16 + bits[1] + 0.5) * 2.0**-32).to(like.dtype)
