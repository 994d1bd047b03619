"""Reducers made of other reducers, such as `topk+qsgd`: they take the options of their parts."""

from collections.abc import Mapping
from typing import Any, TypeVar

from sage.reduction.reducer import Reducer
from sage.registry import Option, options

R = TypeVar("R", bound=Reducer)


class Composed(Reducer):
    """A reducer made of others.

    Raises:
        TypeError: if no part takes an option.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__()
        for name in given:
            if name not in self.options():
                raise TypeError(f"{type(self).__name__} takes no option {name!r}")

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        """Options of the parts."""
        raise NotImplementedError


def build_part(part: type[R], given: Mapping[str, Any]) -> R:
    """Create a part with those of the options that it takes."""
    return part(**{name: value for name, value in given.items() if name in options(part)})
