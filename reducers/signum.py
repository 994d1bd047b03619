"""Signum: the majority of the signs of the ranks' momenta (Bernstein et al., ICML 2018)."""
# N = elements of the vector

import torch
from torch import Tensor

from sage.reduction import Layout

from .signsgd import SignSgd


class Signum(SignSgd):
    """As `signsgd`, of each rank's m = β·m + (1 − β)·g; the optimizer's momentum is to be 0.

    This is the paper's Signum (algorithm 2) with its majority vote. A gradient that is not finite reaches the
    mean once and leaves m unchanged there but for the factor β, which is ours.

    Args:
        sign_momentum: β, at least 0 and below 1.
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

    def opinion(self, signal_N: Tensor) -> Tensor:
        # What is not finite has been seen already, and must not stay for ever.
        seen_N = signal_N.nan_to_num(0.0, 0.0, 0.0)
        return self.momentum_N.mul_(self._momentum).add_(seen_N, alpha=1 - self._momentum)


REDUCER = Signum
