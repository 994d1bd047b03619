"""One reduction of all of a mount's gradients: it happens as a whole, or leaves no trace.

A gradient that is not finite on any rank, as after an overflow under `torch.amp.GradScaler`, must not reach a
residual, a momentum or a threshold: it would stay there. So the ranks agree before each reduction (`control`,
4 bytes). A mean that is not finite although every rank's gradient was (a value that overflowed on the wire)
is seen on every rank alike. In both cases all state is put back as it was before the step, and all gradients
become NaN on every rank, so that the scaler of every rank skips the step and halves its scale once.
"""
# N = elements of a flat gradient

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sage.comm.wire import Wire
from sage.mount.flat import Flat


class Step:
    """One reduction of some flat gradients, one after another.

    Args:
        wire: To the other ranks.
        lr: The learning rate of this step, for a memory that asks for it.
    """

    def __init__(self, wire: Wire, lr: float | None) -> None:
        self._wire, self._lr = wire, lr
        self._saved: list[tuple[Flat, dict[str, Tensor]]] = []
        self.skipped = False
        """Whether a gradient or a mean of this step was not finite; the same on every rank."""

    def reduce(self, flat: Flat, squares_C: Tensor | None = None) -> None:
        """Replace a flat gradient by its mean; by NaN where this step is skipped.

        Args:
            flat: The gradient and its reducer.
            squares_C: What the reducer is to observe before, if it is not skipped.
        """
        if not self.skipped:
            good = is_finite(flat.grad_N) and (squares_C is None or is_finite(squares_C))
            self.skipped = anywhere(not good, [self._wire], flat.grad_N.device)
        if not self.skipped:
            self._saved.append((flat, flat.save()))
            if squares_C is not None:
                flat.feedback.reducer.observe(squares_C)
            flat(self._wire, self._lr)
            self.skipped = not is_finite(flat.grad_N)
        if self.skipped:
            flat.grad_N.fill_(math.nan)

    def end(self) -> None:
        """Put back what a skipped step has changed."""
        if self.skipped:
            for flat, saved in self._saved:
                flat.put_back(saved)


def is_finite(x_N: Tensor) -> bool:
    """Whether all elements are finite.

    >>> is_finite(torch.ones(3)), is_finite(torch.tensor([1.0, torch.nan])), is_finite(torch.full((2,), 3e38))
    (True, False, True)
    """
    # A sum reads the vector once. It may overflow where no element does; then each is looked at.
    total = x_N.sum(dtype=torch.float64 if x_N.dtype == torch.float64 else torch.float32)
    return bool(total.isfinite()) or bool(x_N.isfinite().all())


def anywhere(here: bool, wires: Sequence[Wire], device: torch.device) -> bool:
    """Whether it is so on any rank of these wires; 4 bytes on each."""
    found = torch.full((1,), float(here), device=device)
    for wire in wires:
        if wire.world_size > 1:
            wire.sum(found, kind="control")
    return bool(found > 0)
