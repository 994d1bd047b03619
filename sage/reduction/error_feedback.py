"""Error feedback: what a reducer did not send, kept as a residual or in an estimate of the gradient."""
# N = elements of the flat vector

from collections.abc import Callable
from dataclasses import replace
from typing import TypedDict, get_args

import torch
from torch import Tensor, nn

from sage.comm.wire import Wire
from sage.reduction.estimators import ESTIMATING, Estimator, check_estimated, estimator
from sage.reduction.layout import Layout
from sage.reduction.loco import LocoResidual
from sage.reduction.reducer import Memory, Reduced, Reducer
from sage.reduction.returned import fault_of


class MemoryOptions(TypedDict, total=False):
    """Options of `ErrorFeedback`, for mounts to pass on."""

    beta: float
    gamma: float
    lr_ratio: bool
    momentum: float
    masking: bool
    nesterov: bool
    a: float
    eta: float
    loco_beta: float
    reset_every: int


class ErrorFeedback(nn.Module):
    """Wraps a reducer and adds what was not sent to the next gradient (Seide et al., 2014).

    The signal is a = β·r + γ·g. A compression of it is sent, and r becomes the rest.

    Args:
        reducer: The method.
        layout: Layout of the flat vector.
        memory: Kind of error feedback; by default the reducer's own. `residual` keeps what was not sent.
            `none` discards it. `momentum` (DGC: Lin et al., 2018, equation 7) accumulates u = m·u + g instead
            of g in the residual, and clears u where elements were sent. `union` clears the residual at every
            element that any rank has sent, which discards this rank's unsent values there. `ef21`,
            `ef21-sgdm`, `econtrol` and `diana` send the difference of the gradient from an estimate instead
            of the signal a (`sage.reduction.estimators`), and have no residual. `loco` keeps a moving average
            of what was not sent, in 8 bits (`sage.reduction.loco`); r is its value.
        beta: Factor β of the residual, from 0 to 1.
        gamma: Factor γ of the gradient, above 0.
        lr_ratio: Whether the residual is scaled by lr_before/lr_now, as if the step it was omitted from had
            used that step's learning rate (BytePS; Zheng et al., 2019).
        momentum: Momentum m of `momentum`, at least 0 and below 1.
        masking: Whether `momentum` clears u where elements were sent (momentum factor masking).
        nesterov: Whether `momentum` accumulates g + m·u instead of u, as DGC's code does for Nesterov
            momentum (synxlin/deep-gradient-compression, dgc/memory.py, which keeps m·u).
        a: With `ef21-sgdm`, weight a of the newest gradient in the average; with `diana`, part a of what was
            sent by which the estimate follows. Above 0 and at most 1.
        eta: Strength η of the error of `econtrol`, above 0 and at most 1: about the share of the elements
            that the reducer sends.
        loco_beta: With `loco`, weight of the average before a step, at least 0 and below 1. With 0 it is what
            was not sent, rounded to 8 bits.
        reset_every: With `loco`, steps after which the average becomes 0, 1 or more.

    Raises:
        ValueError: if `memory` is unknown, a number is out of range, or the reducer does not go with the
            memory.
    """

    residual_N: Tensor | None
    velocity_N: Tensor | None
    last_lr: Tensor

    def __init__(
        self,
        reducer: Reducer,
        layout: Layout,
        *,
        memory: Memory | None = None,
        beta: float = 1.0,
        gamma: float = 1.0,
        lr_ratio: bool = False,
        momentum: float = 0.9,
        masking: bool = True,
        nesterov: bool = False,
        a: float = 0.1,
        eta: float = 0.01,
        loco_beta: float = 0.8,
        reset_every: int = 1024,
    ) -> None:
        super().__init__()
        for name, value, is_right, expected in (
            ("memory", memory, memory is None or memory in get_args(Memory), ", ".join(get_args(Memory))),
            ("beta", beta, 0 <= beta <= 1, "a number from 0 to 1"),
            ("gamma", gamma, 0 < gamma < float("inf"), "a finite number above 0"),
            ("momentum", momentum, 0 <= momentum < 1, "a number from 0 to below 1"),
            ("a", a, 0 < a <= 1, "a number above 0 and at most 1"),
            ("eta", eta, 0 < eta <= 1, "a number above 0 and at most 1"),
            ("loco_beta", loco_beta, 0 <= loco_beta < 1, "a number of at least 0 and below 1"),
            ("reset_every", reset_every, reset_every >= 1, "1 step or more"),
        ):
            if not is_right:
                raise ValueError(f"{name}={value!r} of the memory: expected {expected}")
        self.reducer = reducer
        reducer.bind(layout)
        self.memory = memory or reducer.memory
        self._beta, self._gamma, self._lr_ratio = beta, gamma, lr_ratio
        self._momentum, self._masking, self._nesterov = momentum, masking, nesterov
        self._has_reduced = False
        self.estimator = estimator(self.memory, layout.numel, a=a, eta=eta)
        if self.estimator is not None:
            check_estimated(self.memory, reducer, beta=beta, gamma=gamma, lr_ratio=lr_ratio)
        self.loco: LocoResidual | None = None
        if self.memory == "loco":
            self.loco = LocoResidual(layout, beta=loco_beta, reset_every=reset_every)
        keeps = self.memory not in ("none", "loco", *ESTIMATING)
        moves = self.memory == "momentum"
        self.register_buffer("residual_N", torch.zeros(layout.numel) if keeps else None)
        self.register_buffer("velocity_N", torch.zeros(layout.numel) if moves else None)
        self.register_buffer("last_lr", torch.zeros((), dtype=torch.float64))

    def bound(self, grad_norm: float, norm: Callable[[Tensor], float]) -> float:
        """A bound of every element of the next signal, by the norms of what it is made of.

        Args:
            grad_norm: Of this rank's gradient.
            norm: Of a vector.
        """
        if self._lr_ratio:  # the residual is yet to be scaled
            return float("inf")
        if self.estimator is not None:
            return grad_norm + self.estimator.bound(norm)
        bound = self._gamma * grad_norm
        if self.velocity_N is not None:
            bound += self._momentum * norm(self.velocity_N)
            bound += self._momentum * bound if self._nesterov else 0.0
        residual_N = self.residual()
        return bound if residual_N is None else bound + self._beta * norm(residual_N)

    def residual(self) -> Tensor | None:
        """What is added to the next gradient, times β (float32, N); None if there is no residual."""
        return self.residual_N if self.loco is None else self.loco.value()

    def begin_step(self, lr: float) -> None:
        """Set the learning rate of the step that is about to be reduced."""
        before = float(self.last_lr)
        self.last_lr.fill_(lr)
        if self._lr_ratio and before > 0 and lr not in (0, before):
            if self.residual_N is not None:
                self.residual_N.mul_(before / lr)
            if self.loco is not None:
                self.loco.rescale(before / lr)

    def forward(self, grad_N: Tensor, wire: Wire) -> Reduced:
        """Reduce one gradient (N), which may be overwritten.

        Raises:
            ValueError: if the reducer does not return a `Reduced` with a mean of N elements.
        """
        if self.estimator is not None:
            return self._estimated(self.estimator, grad_N, wire)
        residual_N = self.residual()
        if residual_N is None:
            return self._checked(self.reducer(grad_N, None, wire), grad_N)
        if self._beta != 1:
            residual_N.mul_(self._beta)
        if self._gamma != 1:
            grad_N.mul_(self._gamma)
        if self.velocity_N is not None and self._nesterov:
            grad_N.add_(self.velocity_N.mul_(self._momentum).add_(grad_N), alpha=self._momentum)
        elif self.velocity_N is not None:
            grad_N.copy_(self.velocity_N.mul_(self._momentum).add_(grad_N))
        reduced = self._checked(self.reducer(grad_N, residual_N, wire), grad_N)
        if self.loco is not None:
            self.loco.keep(residual_N)
        if self.velocity_N is not None and self._masking and reduced.sent is not None:
            self.velocity_N.index_fill_(0, reduced.sent.long(), 0)
        if self.memory == "union" and reduced.union_M is not None:
            residual_N.index_fill_(0, reduced.union_M.long(), 0)
        return reduced

    def _estimated(self, estimator: Estimator, grad_N: Tensor, wire: Wire) -> Reduced:
        signal_N = estimator.signal(grad_N)
        sent_N = signal_N.to(estimator.own_N.dtype, copy=True)
        rest_N = torch.zeros_like(sent_N)  # becomes what this rank did not send of the signal
        reduced = self._checked(self.reducer(signal_N, rest_N, wire), grad_N)
        step_N = estimator.update(sent_N.sub_(rest_N), reduced.mean_N)
        return replace(reduced, mean_N=grad_N.copy_(step_N))

    def _checked(self, reduced: object, grad_N: Tensor) -> Reduced:
        """Return the reducer's result if it has the form that docs/tutorials/reducer.md requires.

        Indices are checked in the first reduction only, as this costs about as much as selecting them.

        Raises:
            ValueError: if it does not; the message names the reducer, its result and the expected form.
        """
        fault = fault_of(reduced, grad_N, check_indices=not self._has_reduced)
        if fault or not isinstance(reduced, Reduced):
            name = type(self.reducer).__name__
            raise ValueError(f"the reducer {name} returned {fault}: see docs/tutorials/reducer.md")
        self._has_reduced = True
        return reduced
