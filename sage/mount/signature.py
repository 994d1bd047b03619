"""An error for functions that are passed to `register_comm_hook` but are not communication hooks."""

import inspect
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class _Signature(inspect.Signature):
    """Signature of a function that may be mistaken for a communication hook."""

    @property
    def parameters(self) -> MappingProxyType[str, inspect.Parameter]:
        return MappingProxyType(_Parameters(super().parameters))


class _Parameters(dict[str, inspect.Parameter]):
    def __missing__(self, name: str) -> inspect.Parameter:
        if name == "bucket":  # only DistributedDataParallel.register_comm_hook reads it
            raise ValueError(
                'this is not a communication hook: call sage.ddp_hook(model, "topk", ...) on the '
                'wrapped model, or register a pair: state, hook = sage.comm_hook(model, "topk", ...)'
            )
        raise KeyError(name)


def not_a_hook(function: F) -> F:
    """Make `register_comm_hook(None, function)` raise an error that says what to do instead."""
    signature = inspect.signature(function)
    changed = _Signature(list(signature.parameters.values()), return_annotation=signature.return_annotation)
    function.__signature__ = changed  # type: ignore[attr-defined]
    return function
