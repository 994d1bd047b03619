"""Checks at the door: a value against its annotation, a name against the list of valid names.

Configuration, command line and files pass through here; what they accepted is trusted inside.
"""

import math
import types
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """The interval a number must lie in: `Annotated[float, Range(0, 1, open="(")]` is (0, 1]."""

    low: float = -math.inf
    high: float = math.inf
    open: Literal["", "(", ")", "()"] = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if "(" in self.open else value >= self.low
        below = value < self.high if ")" in self.open else value <= self.high
        return above and below

    def __str__(self) -> str:
        left = "(" if "(" in self.open or math.isinf(self.low) else "["
        right = ")" if ")" in self.open or math.isinf(self.high) else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


def known(kind: str, given: str, valid: Iterable[str]) -> str:
    """The name as given, if it is one of the valid ones; else a ValueError with the near misses, or with all.

    >>> known("reducer", "tpok", ["exact", "topk"])
    Traceback (most recent call last):
        ...
    ValueError: no reducer is called 'tpok'; did you mean 'topk'?
    """
    names = sorted(valid)
    if given in names:
        return given
    near = get_close_matches(given, names, n=3, cutoff=0.6)
    if not near:
        near = [name for name in names if given and given in name][:3]
    if near:
        raise ValueError(f"no {kind} is called {given!r}; did you mean {' or '.join(map(repr, near))}?")
    raise ValueError(f"no {kind} is called {given!r}; there are: {', '.join(names) or 'none'}")


def describe(annotation: Any) -> str:
    """An annotation in words, as an error message says it.

    >>> describe(Annotated[float, Range(0, 1, open="(")] | None)
    'a number in (0, 1], or none'
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        ranges = [extra for extra in args[1:] if isinstance(extra, Range)]
        return " ".join([describe(args[0]), *(f"in {interval}" for interval in ranges)])
    if origin in (Union, types.UnionType):
        arms = [describe(arm) for arm in args if arm is not type(None)]
        return " or ".join(arms) + (", or none" if type(None) in args else "")
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in args)
    if origin is tuple:
        inner = [describe(arm) for arm in args if arm is not Ellipsis]
        return f"a list, each {inner[0]}" if Ellipsis in args else f"a list of {', '.join(inner)}"
    if origin is dict:
        return "a table of options"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    return words.get(annotation, str(annotation))


def coerce(name: str, value: Any, annotation: Any) -> Any:
    """The value in its annotation's own type, as 1.0 for 1; or a ValueError saying what is allowed.

    >>> coerce("lr", 1, float)
    1.0
    >>> coerce("density", 2.0, Annotated[float, Range(0, 1, open="(")])
    Traceback (most recent call last):
        ...
    ValueError: density is 2.0; allowed is a number in (0, 1]
    """
    fitted = _fit(value, annotation)
    if fitted is _MISFIT:
        raise ValueError(f"{name} is {value!r}; allowed is {describe(annotation)}")
    return fitted


_MISFIT = object()


@cache
def _anatomy(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(annotation), get_args(annotation)


def _fit(value: Any, annotation: Any) -> Any:
    origin, args = _anatomy(annotation)
    if annotation is Any:
        return value
    if origin is Annotated:
        fitted = _fit(value, args[0])
        ranges = [extra for extra in args[1:] if isinstance(extra, Range)]
        number = isinstance(fitted, int | float) and not isinstance(fitted, bool)
        return _MISFIT if number and any(fitted not in interval for interval in ranges) else fitted
    if origin in (Union, types.UnionType):
        # An arm of the value's very type goes first, so that 1 stays an int in `int | float`.
        for arm in sorted(args, key=lambda arm: arm is not type(value)):
            if (fitted := _fit(value, arm)) is not _MISFIT:
                return fitted
        return _MISFIT
    if origin is Literal:
        return value if any(value == choice and type(value) is type(choice) for choice in args) else _MISFIT
    if origin is tuple:
        return _fit_tuple(value, args)
    if origin is dict:
        return _fit_dict(value, args[1])
    if annotation is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if number else _MISFIT
    if annotation is Path:
        return Path(value) if isinstance(value, str | Path) else _MISFIT
    return value if type(value) is annotation else _MISFIT


def _fit_tuple(value: Any, args: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        return _MISFIT
    arms = (args[0],) * len(value) if Ellipsis in args else args
    if len(arms) != len(value):
        return _MISFIT
    fitted = tuple(_fit(item, arm) for item, arm in zip(value, arms, strict=True))
    return _MISFIT if _MISFIT in fitted else fitted


def _fit_dict(value: Any, arm: Any) -> Any:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        return _MISFIT
    fitted = {key: _fit(item, arm) for key, item in value.items()}
    return _MISFIT if _MISFIT in fitted.values() else fitted
