"""Signum: majority vote over the signs of the ranks' momenta (Bernstein et al., ICML 2018)."""
# N = elements of the vector

import torch
from torch import Tensor

from sage.reduction import Layout, ops

from .signsgd import SignSgd


class Signum(SignSgd):
    """As `signsgd`, applied to each rank's m = β·m + (1 − β)·g; set the optimizer's momentum to 0.

    This is the paper's Signum (Algorithm 2) with its majority vote. Elements that are not finite reach the
    result once and change m only by the factor β, which is ours.

    Args:
        sign_momentum: Momentum β of the sign's input, at least 0 and below 1.

    Raises:
        ValueError: if `sign_momentum` is out of range.
    """

    momentum_N: Tensor

    def __init__(self, *, sign_momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= sign_momentum < 1:
            raise ValueError(f"sign_momentum={sign_momentum!r}: expected 0 or more, and less than 1")
        self._momentum = sign_momentum

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        self.register_buffer("momentum_N", torch.zeros(layout.numel))

    def vote(self, grad_N: Tensor, residual_N: Tensor | None) -> tuple[Tensor, Tensor]:
        # NaN and infinity are reported separately and must not stay in the momentum.
        signal_N = ops.accumulate(grad_N, residual_N)
        bits_B, largest_1 = ops.momentum_signs(self.momentum_N, signal_N, self._momentum)
        if residual_N is not None:
            one_11 = residual_N.new_ones((1, 1))
            ops.mean_signs(residual_N, bits_B[None], [grad_N.numel()], one_11, -one_11, divisor=1, added=True)
            residual_N.nan_to_num_(0.0, 0.0, 0.0)
        return bits_B, largest_1


REDUCER = Signum
