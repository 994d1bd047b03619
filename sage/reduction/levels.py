"""Levels between 0 and a scale, of which the kernels of `sage.ops.levels` draw one."""

from typing import Literal

import torch
from torch import Tensor

Norm = Literal["max", "l2"]
"""What elements are divided by: the largest magnitude, or the Euclidean norm."""


def power_below(x: Tensor) -> Tensor:
    """Largest power of two that does not exceed x ≥ 0, exactly; 0, NaN and infinity are unchanged."""
    mantissa = torch.frexp(x).mantissa
    return torch.where((x > 0) & x.isfinite(), x / (2 * mantissa), x)
