"""What `register_comm_hook` is told of a function that is no communication hook."""

import inspect
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class _Signature(inspect.Signature):
    """The signature of a function that people take for a communication hook."""

    @property
    def parameters(self) -> MappingProxyType[str, inspect.Parameter]:
        return MappingProxyType(_Parameters(super().parameters))


class _Parameters(dict[str, inspect.Parameter]):
    def __missing__(self, name: str) -> inspect.Parameter:
        if name == "bucket":  # asked for by DistributedDataParallel.register_comm_hook alone
            raise ValueError(
                'this is no communication hook to register: call sage.ddp_hook(model, "topk", ...) on the '
                'wrapped model, or register a pair: state, hook = sage.comm_hook(model, "topk", ...)'
            )
        raise KeyError(name)


def not_a_hook(function: F) -> F:
    """Let `register_comm_hook(None, function)` say in one line what to do instead."""
    signature = inspect.signature(function)
    told = _Signature(list(signature.parameters.values()), return_annotation=signature.return_annotation)
    function.__signature__ = told  # type: ignore[attr-defined]
    return function
