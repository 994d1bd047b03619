"""One reduction of all gradients of a mount: either it completes, or all state is restored.

A gradient that is not finite on any rank, for example after an overflow under `torch.amp.GradScaler`, must
not be added to a residual, a momentum or a threshold, because it would persist there. So the ranks exchange a
flag before each reduction (`control`, 4 bytes). If all gradients are finite but the mean is not (a value
overflowed in a payload), every rank detects this from the mean, which is the same on all ranks. In both cases
all state is restored as before the step, and all gradients become NaN on every rank, so that the scaler of
every rank skips the step and halves its scale once.

Restoring state requires a copy, which costs as much as all checks together. No copy is made if no mean can
overflow: the mount has one flat gradient, and gradient, residual and momentum are so small on every rank that
their sum over the ranks is below the largest fp16 number (`LIMIT`).

Reducers get gradients that are divided by the loss scale (`sage.mount.loss_scale`).
"""
# N = elements of a flat gradient

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sage.comm.wire import Wire
from sage.mount.flat import Flat

LIMIT = 2.0**15
"""Bound of the sum over ranks of the values sent; a low-precision code may round them up to twice that."""

_NOT_FINITE, _LARGE = 2.0**21, 1.0
"""Flags that a rank contributes to the `control` sum; valid for fewer than 2^20 ranks."""


class Step:
    """One reduction of one or more flat gradients, one after another.

    Args:
        wire: Communicator to the other ranks.
        lr: The learning rate of this step, for an error feedback that uses it.
        is_only: Whether there is only one flat gradient, so that no later one can cause a skipped step.
        loss_scale: Factor by which the loss was multiplied before backward.
    """

    def __init__(
        self, wire: Wire, lr: float | None, *, is_only: bool = False, loss_scale: float = 1.0
    ) -> None:
        self._wire, self._lr, self._is_only, self._loss_scale = wire, lr, is_only, loss_scale
        self._saved: list[tuple[Flat, dict[str, Tensor]]] = []
        self.skipped = False
        """Whether a gradient or mean of this step was not finite; the same on every rank."""

    def reduce(self, flat: Flat, squares_C: Tensor | None = None) -> None:
        """Replace a flat gradient by its mean over the ranks, or by NaN if this step is skipped.

        Args:
            flat: The gradient and its reducer.
            squares_C: Passed to the reducer's `observe` before the reduction, unless the step is skipped.

        Raises:
            ValueError: if the gradient is fp16 and there is a loss scale.
        """
        if self._loss_scale != 1:
            _check_range(flat.grad_N, self._loss_scale)
            flat.grad_N.div_(self._loss_scale)
            squares_C = None if squares_C is None else squares_C / self._loss_scale**2
        may_overflow = not self.skipped and self._agree(flat, squares_C)
        if not self.skipped:
            if may_overflow:
                self._saved.append((flat, flat.save()))
            if squares_C is not None:
                flat.feedback.reducer.observe(squares_C)
            flat(self._wire, self._lr)
            if self._loss_scale != 1:
                flat.grad_N.mul_(self._loss_scale)
            self.skipped = not is_finite(flat.grad_N)
            if self.skipped and not may_overflow:
                name = type(flat.feedback.reducer).__name__
                raise ValueError(
                    f"the reducer {name} returned a mean that is not finite for finite gradients that "
                    "are too small to overflow: see docs/tutorials/reducer.md"
                )
        if self.skipped:
            flat.grad_N.fill_(math.nan)

    def _agree(self, flat: Flat, squares_C: Tensor | None) -> bool:
        """Skip the step if the gradient of any rank is not finite; return whether a mean may overflow."""
        length = norm(flat.grad_N)
        bound = flat.feedback.bound(length, norm) if self._is_only and length < LIMIT else math.inf
        good = (length < LIMIT or is_finite(flat.grad_N)) and (squares_C is None or is_finite(squares_C))
        is_large = not 2 * bound * self._wire.world_size < LIMIT or flat.grad_N.dtype == torch.float16
        flags = torch.tensor([_LARGE if is_large else 0.0], device=flat.grad_N.device)
        if not good:
            flags.fill_(_NOT_FINITE)
        if self._wire.world_size > 1:
            self._wire.sum(flags, kind="control")
        total = float(flags)
        self.skipped = total >= _NOT_FINITE
        return total > 0

    def end(self) -> None:
        """Restore the state that a skipped step has changed."""
        if self.skipped:
            for flat, saved in self._saved:
                flat.put_back(saved)


def _check_range(grad_N: Tensor, loss_scale: float) -> None:
    if grad_N.dtype == torch.float16:
        raise ValueError(
            f"gradients are torch.float16 under a loss scale of {loss_scale:g}, and a mount divides them by "
            "it, for which fp16 has too small a range: keep the parameters in float32 under torch.autocast "
            "(with FSDP2, MixedPrecisionPolicy(reduce_dtype=torch.float32)), or use bf16 without a scaler"
        )


def norm(x_N: Tensor) -> float:
    """Compute the Euclidean norm, a bound of every element; inf or NaN if it or its square is not finite.

    >>> norm(torch.tensor([3.0, -4.0])), norm(torch.tensor([1.0, torch.inf])), norm(torch.ones(0))
    (5.0, inf, 0.0)
    """
    # torch.dot reads a vector twice as fast as vector_norm does.
    if x_N.dtype in (torch.float32, torch.float64):
        return float(x_N.dot(x_N)) ** 0.5
    return float(torch.linalg.vector_norm(x_N, dtype=torch.float32))


def is_finite(x_N: Tensor) -> bool:
    """Whether all elements are finite.

    >>> is_finite(torch.ones(3)), is_finite(torch.tensor([1.0, torch.nan])), is_finite(torch.full((2,), 3e38))
    (True, False, True)
    """
    # A sum reads the vector once. It may overflow although all elements are finite; then check each element.
    total = x_N.sum(dtype=torch.float64 if x_N.dtype == torch.float64 else torch.float32)
    return bool(total.isfinite()) or bool(x_N.isfinite().all())


def anywhere(here: bool, wires: Sequence[Wire], device: torch.device) -> bool:
    """Whether `here` is true on any rank of these wires; costs 4 bytes on each wire."""
    flag = torch.full((1,), float(here), device=device)
    for wire in wires:
        if wire.world_size > 1:
            wire.sum(flag, kind="control")
    return bool(flag > 0)
