"""The loss scale of a backward: the factor by which `torch.amp.GradScaler` has multiplied the loss.

A scaler changes its scale during training. A residual in units of the scale of earlier steps would be added
to gradients in units of another. A mount therefore divides each gradient by its scale before the reduction,
and multiplies the mean by it afterwards: all state is in units of the loss itself. Scales are powers of two
unless a script sets others, so nothing is rounded.

torch does not say by which factor a backward is scaled. `watch` replaces `scale` of `GradScaler` and of its
subclasses, such as FSDP's `ShardedGradScaler`, once in a process. The new function calls the old one and adds
an autograd hook to the scaled loss; the hook notes the scale when a backward begins there. A backward of a
loss that was not scaled has no scale, whatever other models do.
"""

import functools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState
from torch.autograd import Variable


@dataclass(frozen=True)
class LossScale:
    """The scale of one backward."""

    factor: Tensor
    """The factor, on the device of the loss; reading it waits for the device."""
    scaler: weakref.ref[GradScaler]

    def unscaled(self) -> frozenset[int]:
        """The `id` of each optimiser whose gradients the scaler has divided by its scale in this step."""
        scaler = self.scaler()
        states = {} if scaler is None else scaler._per_optimizer_states
        return frozenset(key for key, state in states.items() if state["stage"] is OptState.UNSCALED)


class _Backward:
    """The scale of the backward that is running."""

    scale: LossScale | None = None


def current() -> LossScale | None:
    """Return the scale of the backward that is running; None if its loss was not scaled."""
    return _Backward.scale


def factor_of(scale: LossScale | None) -> float:
    """Return the factor of a backward, 1 without a scale."""
    return 1.0 if scale is None else float(scale.factor)


def checked(factor: float) -> float:
    """Return a loss scale that a script has given.

    Raises:
        ValueError: if it is not a finite number above 0.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"the loss scale is {factor}: expected a finite number above 0")
    return float(factor)


def watch() -> None:
    """Note the scale of every later backward of a scaled loss; called before a reducer is mounted."""
    if "__init_subclass__" not in vars(GradScaler):
        # For subclasses that are defined later; nothing that they are defined in is imported here.
        setattr(GradScaler, "__init_subclass__", classmethod(_watch))  # noqa: B010
    _watch(GradScaler)


def _watch(scaler: type[Any], /, **options: Any) -> None:
    scale = vars(scaler).get("scale")
    if scale is not None and not hasattr(scale, "_sage_notes"):
        setattr(scaler, "scale", _noting(scale))  # noqa: B010
    for each in scaler.__subclasses__():
        _watch(each)


def _noting(scale: Callable[[GradScaler, Any], Any]) -> Any:
    @functools.wraps(scale)
    def noting(self: GradScaler, outputs: Any) -> Any:
        scaled = scale(self, outputs)
        return _noted(scaled, self) if self.is_enabled() else scaled

    # torch.compile must not trace it; the result of `disable` has no type.
    noted: Any = torch.compiler.disable(noting)
    noted._sage_notes = True
    return noted


def _noted(scaled: Any, scaler: GradScaler) -> Any:
    if isinstance(scaled, Tensor):
        if scaled.requires_grad:
            scaled.register_hook(lambda gradient: _begin(scaler))
        return scaled
    if isinstance(scaled, list | tuple):
        return type(scaled)(_noted(each, scaler) for each in scaled)
    return map(functools.partial(_noted, scaler=scaler), scaled)


def _begin(scaler: GradScaler) -> None:
    assert scaler._scale is not None
    # A copy, because `update()` changes the scale in place and `reduce()` may be called later.
    _Backward.scale = LossScale(scaler._scale.detach().clone(), weakref.ref(scaler))
    # Queued twice, to run after what DDP and FSDP2 queue for the end of backward, where they may reduce.
    queue = Variable._execution_engine.queue_callback
    queue(lambda: queue(_end))


def _end() -> None:
    _Backward.scale = None
