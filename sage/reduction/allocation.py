"""L-GreCo's allocation: a setting for each layer with the fewest bytes at a limited error.

Markov, Alimohammadi, Frantar & Alistarh, "L-GreCo: Layerwise-Adaptive Gradient Compression for Efficient and
Accurate Deep Learning" (MLSys 2024); LGrCo/L-GreCo, commit 13942f0, `lgreco_hook.py`.
"""
# L = layers, C = settings of a layer

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BUCKETS = 10_000
"""Number of steps into which the error budget is divided, as in the authors' code."""


@dataclass(frozen=True)
class Layer:
    """Errors and bytes of one layer, for each setting (C)."""

    errors: Sequence[float]
    """Error of each setting, 0 or more, in any unit that all layers share."""
    bytes: Sequence[int]
    """Bytes that each setting sends."""
    uniform: int
    """Number of the setting that this layer has without an allocation."""


def allocate(layers: Sequence[Layer], *, alpha: float = 1.0, buckets: int = BUCKETS) -> list[int]:
    """Return the setting of each layer that minimises the bytes within a budget of the error.

        minimise Σ_l bytes[l][c_l]  subject to  Σ_l errors[l][c_l] ≤ α·Σ_l errors[l][uniform_l]

    This is a knapsack problem. As in the authors' code, the budget is divided into `buckets` steps, errors
    are rounded up to whole steps, and dynamic programming finds the best of the settings that then fit:
    L·C·buckets additions. Rounding can only exclude settings. Those found never exceed the budget, except by
    the rounding of sums. Theirs rounds an error of 0 up to one step too.

    With α ≥ 1 the uniform settings are within the budget, so the result never has more bytes than they have
    (their rounded errors may not fit; the authors then keep the last settings). With α < 1, if nothing fits,
    every layer gets its setting of the smallest error.

    >>> flat, steep = Layer((4.0, 3.0, 2.0), (1, 4, 8), 1), Layer((9.0, 5.0, 1.0), (1, 2, 4), 1)
    >>> allocate([flat, steep]), allocate([steep, steep])
    ([0, 2], [1, 1])

    Args:
        layers: The layers (L).
        alpha: Budget relative to the error of the uniform settings, above 0.
        buckets: Number of steps of the budget.

    Returns:
        The number of the setting of each layer (L).
    """
    uniform = [layer.uniform for layer in layers]
    budget = alpha * total(layers, uniform)
    if not math.isfinite(budget):
        return uniform
    found = _fewest_bytes([_steps(layer, budget, buckets) for layer in layers], layers, buckets)
    if found is None:
        found = [int(np.argmin(layer.errors)) for layer in layers]
    if alpha < 1:
        return found
    return min((found, uniform), key=lambda each: (total_bytes(layers, each), total(layers, each)))


def total(layers: Sequence[Layer], settings: Sequence[int]) -> float:
    """Sum of the errors of these settings; infinite if it exceeds the range of float64."""
    try:
        return math.fsum(layer.errors[c] for layer, c in zip(layers, settings, strict=True))
    except OverflowError:
        return math.inf


def total_bytes(layers: Sequence[Layer], settings: Sequence[int]) -> int:
    """Sum of the bytes of these settings."""
    return sum(layer.bytes[c] for layer, c in zip(layers, settings, strict=True))


def _steps(layer: Layer, budget: float, buckets: int) -> NDArray[np.int64]:
    """Errors in steps of the budget, rounded up; one that exceeds it, or is not finite, is buckets + 1."""
    errors = np.asarray(layer.errors, dtype=np.float64)
    fits = errors <= budget  # NaN does not
    steps = np.full(len(errors), buckets + 1, dtype=np.int64)
    if budget > 0:
        # Both lose the budget's power of two first: `buckets / budget` overflows for the smallest budgets.
        mantissa, exponent = math.frexp(budget)
        steps[fits] = np.ceil(np.ldexp(errors[fits], -exponent) * (buckets / mantissa)).astype(np.int64)
    else:
        steps[fits] = 0
    return steps


def _fewest_bytes(
    steps: Sequence[NDArray[np.int64]], layers: Sequence[Layer], buckets: int
) -> list[int] | None:
    """The settings with the fewest bytes whose steps sum to `buckets` or less; None if none fit.

    Of those with equally few bytes, it returns those of the fewest steps.
    """
    least = np.zeros(buckets + 1)  # fewest bytes of the layers so far, by the steps they may take
    chosen = np.zeros((len(layers), buckets + 1), dtype=np.int16)
    for layer, steps_c, choice in zip(layers, steps, chosen, strict=True):
        before, least = least, np.full(buckets + 1, np.inf)
        for c in np.argsort(steps_c, kind="stable"):  # of equal bytes, the smaller error
            taken = int(steps_c[c])
            if taken > buckets:
                break
            bytes_with = before[: buckets + 1 - taken] + layer.bytes[c]
            better = bytes_with < least[taken:]
            least[taken:][better] = bytes_with[better]
            choice[taken:][better] = c
    left = int(np.argmin(least))  # the first of the minima: of the fewest steps
    if math.isinf(least[left]):
        return None
    settings: list[int] = []
    for steps_c, choice in zip(reversed(steps), chosen[::-1], strict=True):
        settings.append(int(choice[left]))
        left -= int(steps_c[settings[-1]])
    return settings[::-1]
