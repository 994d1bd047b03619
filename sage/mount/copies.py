"""Notes deep copies of a mounted model: their gradients are reduced by nobody."""

import weakref
from collections.abc import Mapping
from typing import Any

from torch import nn

ATTRIBUTE = "_sage_copies"


class Copies:
    """An attribute of a mounted model that learns of each `copy.deepcopy` of it.

    A pickled or copied model has None in its place, so that checkpoints of whole models stay free of SAGE.

    Args:
        model: The mounted model.
        named: Its parameters that are reduced, by name.
    """

    def __init__(self, model: nn.Module, named: Mapping[str, nn.Parameter]) -> None:
        self._model, self._named = weakref.ref(model), named
        self._found: dict[int, tuple[str, weakref.ref[nn.Parameter]]] = {}
        setattr(model, ATTRIBUTE, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        # nn.Module keeps its parameters and modules before other attributes, so that they are copied by now.
        for name, p in self._named.items():
            copied = memo.get(id(p))
            if isinstance(copied, nn.Parameter):
                self._found[id(copied)] = name, weakref.ref(copied)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def name_of(self, parameter: nn.Parameter) -> str | None:
        """The name of the mounted parameter that this one is a copy of; None where it is no copy."""
        name, found = self._found.get(id(parameter), ("", None))
        return name if found is not None and found() is parameter else None

    def forget(self) -> None:
        """Take the attribute off the model."""
        model = self._model()
        if model is not None and getattr(model, ATTRIBUTE, None) is self:
            delattr(model, ATTRIBUTE)
