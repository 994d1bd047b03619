"""The open mounts, and a check of every optimiser before its step.

A reducer mounted on parameters that the optimiser does not hold, or whose gradients were not reduced since
the last backward, would have no effect, and no error would be raised. `torch.optim` calls the hook registered
here before every step of every optimiser.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook


class OpenMount(Protocol):
    """The interface of a mount that is used before an optimiser's step."""

    def mounted(self) -> Mapping[str, nn.Parameter]:
        """The parameters whose gradients it reduces, by name."""
        ...

    def model_parameters(self) -> Mapping[str, nn.Parameter]:
        """The model's current parameters that require a gradient."""
        ...

    def check(self) -> None:
        """Raise ValueError if the two differ."""

    def check_reduced(self, optimizer: Optimizer) -> None:
        """Raise ValueError if the gradients of the last backward were not reduced, or in a wrong order."""

    def check_no_copy(self, parameters: Sequence[nn.Parameter]) -> None:
        """Raise ValueError if an optimiser trains a copy of the model instead."""


_open: "WeakSet[OpenMount]" = WeakSet()
_registered: list[Any] = []


def check_free(named: Mapping[str, nn.Parameter]) -> None:
    """Refuse parameters on which another reducer is mounted.

    Raises:
        ValueError: names the first one.
    """
    mounted = {id(p) for mount in tuple(_open) for p in mount.mounted().values()}
    for name, p in named.items():
        if id(p) in mounted:
            raise ValueError(
                f"a reducer is already mounted on the parameter {name!r}: close() that mount before mounting "
                "another"
            )


def register(mount: OpenMount) -> None:
    """Check this mount before each optimiser's step, until it is closed or garbage-collected."""
    if not _registered:
        # torch.compile must not trace it; the result of `disable` has no type.
        hook: Any = torch.compiler.disable(_before_step)
        _registered.append(register_optimizer_step_pre_hook(hook))
    _open.add(mount)


def unregister(mount: OpenMount) -> None:
    """Stop checking this mount."""
    _open.discard(mount)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not _open:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    in_optimizer = {id(p) for p in parameters}
    mounts = tuple(_open)
    for mount in mounts:
        named = mount.mounted()
        reduced = {id(p) for p in named.values()}
        if in_optimizer & (reduced | {id(p) for p in mount.model_parameters().values()}):
            mount.check()
            if any(p.grad is not None for p in parameters if id(p) in reduced):
                mount.check_reduced(optimizer)
        if reduced <= in_optimizer:
            continue
        mount.check_no_copy(parameters)
        others = {id(p) for other in mounts if other is not mount for p in other.mounted().values()}
        unreduced = {
            tuple(p.shape)
            for p in parameters
            if id(p) not in reduced and id(p) not in others and p.requires_grad and p.grad is None
        }
        for name, p in named.items():
            if id(p) not in in_optimizer and tuple(p.shape) in unreduced:
                raise ValueError(
                    f"the optimiser has another parameter, without a gradient, in place of the reduced "
                    f"parameter {name!r}: create the optimiser from model.parameters() after replacing "
                    "parameters, as by load_state_dict(assign=True)"
                )
