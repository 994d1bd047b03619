"""The minimum of L2-regularised logistic regression, to about 1e-12."""
# N = samples, F = features

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

TOLERANCE = 1e-12
"""Largest difference between the value returned and the minimum."""


def minimum(x_NF: NDArray[np.floating[Any]], y_N: NDArray[Any], l2: float) -> float:
    """Return min over w of f(w) = (1/N) sum_i log(1 + exp(-y_i x_i w)) + (l2/2) |w|^2.

    Newton's method with a line search; each direction is found by preconditioned conjugate gradients
    (Nocedal, Wright, Numerical Optimization, 2nd ed., algorithms 5.3 and 7.1). As f is l2-strongly convex,
    f(w) - min f <= |grad f(w)|^2 / (2 l2), which is the criterion to stop: at most `TOLERANCE`.

    Args:
        x_NF: The features.
        y_N: The labels, -1 or 1.
        l2: The factor of the regulariser, above 0.

    Raises:
        ValueError: The minimum was not found in 100 steps of Newton's method.
    """
    from scipy import sparse  # here, because its import takes a while and most runs do not need it

    dense_NF = np.asarray(x_NF, dtype=np.float64)
    x: Any = sparse.csr_array(dense_NF) if np.count_nonzero(dense_NF) < 0.25 * dense_NF.size else dense_NF
    square: Any = x * x
    num, y = len(y_N), np.asarray(y_N, dtype=np.float64)

    def value(w: Vector) -> float:
        return float(np.logaddexp(0, -y * (x @ w)).mean() + l2 / 2 * (w @ w))

    w = np.zeros(dense_NF.shape[1])
    for _ in range(100):
        margin = y * (x @ w)
        wrong = 1 / (1 + np.exp(np.clip(margin, -700, 700)))  # probability of the other label
        gradient = l2 * w - x.T @ (y * wrong) / num
        size = float(np.linalg.norm(gradient))
        if size**2 <= 2 * l2 * TOLERANCE:
            return value(w)
        curvature = wrong * (1 - wrong) / num

        def hessian(v: Vector, curvature: Vector = curvature) -> Vector:
            product: Vector = x.T @ (curvature * (x @ v)) + l2 * v
            return product

        diagonal = square.T @ curvature + l2
        direction = _solve(hessian, diagonal, -gradient, relative=min(0.1, size**0.5))
        before, slope, length = value(w), float(gradient @ direction), 1.0
        # The slack is for rounding errors near the minimum.
        while value(w + length * direction) > before + 1e-4 * length * slope + 1e-14 and length > 1e-9:
            length /= 2
        w += length * direction
    raise ValueError(
        f"the minimum of the logistic regression with l2 {l2:g} was not found: scale the features, or use a "
        "larger l2"
    )


def _solve(
    product: Callable[[Vector], Vector], diagonal: Vector, right: Vector, *, relative: float
) -> Vector:
    """Solve A x = b by conjugate gradients with Jacobi preconditioning, to a relative residual."""
    x, residual = np.zeros_like(right), right.copy()
    scaled = residual / diagonal
    direction, product_before = scaled.copy(), float(residual @ scaled)
    enough = relative * float(np.linalg.norm(right))
    for _ in range(10 * len(right) + 100):
        if float(np.linalg.norm(residual)) <= enough:
            break
        image = product(direction)
        step = product_before / float(direction @ image)
        x += step * direction
        residual -= step * image
        scaled = residual / diagonal
        product_now = float(residual @ scaled)
        direction = scaled + product_now / product_before * direction
        product_before = product_now
    return x
