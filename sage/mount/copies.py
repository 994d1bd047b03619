"""Records deep copies of a mounted model, whose gradients are not reduced."""

import weakref
from collections.abc import Mapping
from typing import Any

from torch import nn

ATTRIBUTE = "_sage_copies"


class Copies:
    """An attribute of a mounted model that records each `copy.deepcopy` of the model.

    In a pickled or copied model the attribute is None, so that checkpoints of whole models do not depend on
    SAGE.

    Args:
        model: The mounted model.
        named: Its reduced parameters, by name.
    """

    def __init__(self, model: nn.Module, named: Mapping[str, nn.Parameter]) -> None:
        self._model, self._named = weakref.ref(model), named
        self._found: dict[int, tuple[str, weakref.ref[nn.Parameter]]] = {}
        setattr(model, ATTRIBUTE, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        # nn.Module stores parameters and modules before other attributes, so they are already copied here.
        for name, p in self._named.items():
            copied = memo.get(id(p))
            if isinstance(copied, nn.Parameter):
                self._found[id(copied)] = name, weakref.ref(copied)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def name_of(self, parameter: nn.Parameter) -> str | None:
        """Return the name of the mounted parameter that this one is a copy of; None if it is not a copy."""
        name, original = self._found.get(id(parameter), ("", None))
        return name if original is not None and original() is parameter else None

    def forget(self) -> None:
        """Remove the attribute from the model."""
        model = self._model()
        if model is not None and getattr(model, ATTRIBUTE, None) is self:
            delattr(model, ATTRIBUTE)
