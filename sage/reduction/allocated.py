"""Reducers whose setting (density, rank, levels) differs between layers, as L-GreCo allocates it."""
# N = elements of the flat vector, G = groups (layers)

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from sage.comm.wire import Wire
from sage.reduction.allocation import Layer, allocate
from sage.reduction.layout import Layout
from sage.reduction.reducer import Reducer

ALLOCATION = frozenset({"allocation", "allocation_every", "allocation_alpha", "allocation_error"})
"""Names of the options, for a reducer's `later`."""
WINDOW = 10
"""Number of last steps whose signals are added up for an allocation, as in the authors' code."""
DOWN, UP = 0.5, 2.0
"""Range of a layer's setting relative to the uniform one, as in the authors' code."""


class AllocationOptions(TypedDict, total=False):
    """The options that all reducers with an allocation share."""

    allocation: Literal["uniform", "lgreco"]
    allocation_every: int
    allocation_alpha: float
    allocation_error: Literal["norm", "square"]


@dataclass(frozen=True)
class Setting:
    """One setting of a group: what it is, what it loses of the signal, and what it sends."""

    value: float
    """Density, rank or number of levels."""
    error: float
    """Sum of the squares of what is lost."""
    bytes: int
    """Bytes sent per rank and step."""


class Allocated(Reducer):
    """Base class of reducers that allocate a setting to each group (`sage.reduction.allocation`).

    With `allocation=lgreco` rank 0 adds up its signal (gradient plus residual) of the last 10 of every
    `allocation_every` steps. At the next step it computes, for each group and for settings from half to twice
    the uniform one, what that sum would lose and the bytes, finds the allocation with the fewest bytes whose
    error is at most α times that of the uniform setting, and broadcasts it (`scales`, 8 bytes per group).
    Until then, and if the sum is not finite, the settings stay as they are. The number of the last steps and
    the range are those of the authors' code, in which α is 1; there, too, a layer's error is the norm of what
    is lost.

    Args:
        allocation: Setting of the groups: all the same (`uniform`), or L-GreCo's allocation (`lgreco`).
        allocation_every: Steps from one allocation to the next, 1 or more.
        allocation_alpha: Error allowed, relative to that of the uniform setting; above 0.
        allocation_error: A group's share of the error: the Euclidean `norm` of what is lost, as in L-GreCo,
            or its `square` (ours), so that the budget is that of the whole vector's squared error.

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(
        self,
        *,
        allocation: Literal["uniform", "lgreco"] = "uniform",
        allocation_every: int = 100,
        allocation_alpha: float = 1.0,
        allocation_error: Literal["norm", "square"] = "norm",
        **others: Any,
    ) -> None:
        super().__init__(**others)
        for name, value, is_right, expected in (
            ("allocation", allocation, allocation in ("uniform", "lgreco"), "uniform or lgreco"),
            ("allocation_every", allocation_every, allocation_every >= 1, "1 step or more"),
            ("allocation_alpha", allocation_alpha, 0 < allocation_alpha < math.inf, "a number above 0"),
            ("allocation_error", allocation_error, allocation_error in ("norm", "square"), "norm or square"),
        ):
            if not is_right:
                raise ValueError(f"{name}={value!r}: expected {expected}")
        self.allocation: Allocation | None = None
        if allocation == "lgreco":
            self.allocation = Allocation(
                every=allocation_every, alpha=allocation_alpha, is_squared=allocation_error == "square"
            )
            self.decides_by = "vector"

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        if self.allocation is not None:
            self.allocation.bind(layout.numel)

    def settings_of(self, signal_N: Tensor) -> list[list[Setting]]:
        """The settings that each group may have (G), the uniform one first.

        Args:
            signal_N: A finite signal.
        """
        raise NotImplementedError

    def reallocate(self, setting_G: Tensor, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> None:
        """Count a step and allocate if it is due; call it before the signal is accumulated.

        Args:
            setting_G: The setting of each group (float64), the same on all ranks; overwritten.
            grad_N: As in `Reducer.forward`.
            residual_N: As in `Reducer.forward`.
            wire: The communicator.
        """
        if self.allocation is None:
            return
        if self.allocation.is_due():
            if wire.rank == 0 and bool(self.allocation.sum_N.isfinite().all()):
                found = self.allocation.settings(self.settings_of(self.allocation.sum_N))
                setting_G.copy_(torch.tensor(found, dtype=torch.float64))
            wire.broadcast(setting_G, root=0, kind="scales")
        self.allocation.observe(grad_N, residual_N, wire)


class Allocation(nn.Module):
    """The sum of the last signals, and when and how an allocation is made of it. State is held in buffers.

    Args:
        every: Steps from one allocation to the next.
        alpha: Error allowed, relative to that of the uniform settings.
        is_squared: Whether a group's error is the square of the norm of what is lost.
    """

    step: Tensor
    sum_N: Tensor

    def __init__(self, *, every: int, alpha: float, is_squared: bool) -> None:
        super().__init__()
        self._every, self._alpha, self._is_squared = every, alpha, is_squared
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def bind(self, numel: int) -> None:
        """Allocate the sum of the signals (N); it stays 0 on ranks other than 0."""
        self.register_buffer("sum_N", torch.zeros(numel))

    def is_due(self) -> bool:
        """Whether this step begins with an allocation."""
        step = int(self.step)
        return step > 0 and step % self._every == 0

    def observe(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> None:
        """Count a step, and add its signal to the sum if it is one of the last before an allocation."""
        place = int(self.step) % self._every
        first = max(0, self._every - WINDOW)
        self.step += 1
        if wire.rank != 0 or place < first:
            return
        if place == first:
            self.sum_N.zero_()
        self.sum_N += grad_N
        if residual_N is not None:
            self.sum_N += residual_N

    def settings(self, of_groups: Sequence[Sequence[Setting]]) -> list[float]:
        """The allocated setting of each group; the first of its settings is the uniform one."""
        layers = [
            Layer(
                [setting.error if self._is_squared else math.sqrt(setting.error) for setting in settings],
                [setting.bytes for setting in settings],
                0,
            )
            for settings in of_groups
        ]
        found = allocate(layers, alpha=self._alpha)
        return [settings[c].value for settings, c in zip(of_groups, found, strict=True)]


def uniform_first(uniform: float, others: Sequence[float]) -> list[float]:
    """The settings, without repetitions, the uniform one first.

    >>> uniform_first(4, [2, 3, 4, 5])
    [4, 2, 3, 5]
    """
    return list(dict.fromkeys([uniform, *others]))
