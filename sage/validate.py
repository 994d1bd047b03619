"""Checks user input: values against annotations, names against the list of valid names.

Configuration, command line and files are checked here; the rest of SAGE does not check them again.
"""

import math
import os
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

LATER = "later"
"""Marks a configuration field or an option of a part that was added after runs had been recorded.

In `limit: Annotated[int | None, LATER] = None`, the default is omitted from the hash of a run, so runs that
were recorded before the option existed keep their names.
"""


@dataclass(frozen=True)
class Before:
    """Marks an option of a part whose default is not what runs did before the option existed.

    In `start: Annotated[str, Before("published")] = "gradient"`, `value` is what those runs did. At this
    value, not at the default, the option is omitted from the hash of a run, so these runs keep their names
    and runs with the default have others.
    """

    value: Any


@dataclass(frozen=True)
class Parsed:
    """Replaces a text before it is checked: `Annotated[Path, Parsed(staged)]` takes what `staged` takes."""

    parse: Callable[[str], Any]
    """Returns the value for a text; raises ValueError if the text is invalid."""


@dataclass(frozen=True)
class Range:
    """The allowed interval of a number: `Annotated[float, Range(0, 1, open="(")]` is (0, 1]."""

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
        return f"{left}{_number(self.low)}, {_number(self.high)}{right}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def shown(value: object, most: int = 80) -> str:
    """Format a value for an error message: on one line, truncated if it is long.

    >>> shown([1] * 1000)
    '[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1...'
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of over 4,300 digits; nested too deeply
        text = f"a {type(value).__name__} that is too large to print"
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


def path(text: str | Path) -> Path:
    """Convert a text to a path; `~` is expanded to a home folder.

    Raises:
        ValueError: if there is no such home folder, or the text cannot be a path.
    """
    if isinstance(text, Path):
        return text
    if "\0" in text:
        raise ValueError(f"the path {shown(text)} has a character that no path may have")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        home = expanded.partition("/")[0]
        raise ValueError(
            f"the path {shown(text)}: no home folder is known for {home!r}; write the path in full"
        )
    found = Path(expanded)
    # Path() removes "./", and a remaining leading "~" would be expanded to a home folder the next time.
    return found.absolute() if str(found).startswith("~") else found


def known(kind: str, given: str, valid: Iterable[str]) -> str:
    """Return the name if it is valid; else raise a ValueError that lists close matches, or all valid names.

    >>> known("reducer", "tpok", ["exact", "topk"])
    Traceback (most recent call last):
        ...
    ValueError: no reducer is called 'tpok'; did you mean 'topk'?
    """
    names = sorted(valid)
    if given in names:
        return given
    near = get_close_matches(given[:200], names, n=3, cutoff=0.6)
    if not near:
        near = [name for name in names if given and given in name][:3]
    if near:
        raise ValueError(f"no {kind} is called {shown(given)}; did you mean {' or '.join(map(repr, near))}?")
    allowed = f"allowed are {', '.join(names)}" if names else "there are none"
    raise ValueError(f"no {kind} is called {shown(given)}; {allowed}")


def describe(annotation: Any) -> str:
    """Describe an annotation in words, for an error message.

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


def arms(annotation: Any) -> list[Any]:
    """List the types that a value may have, without their `Annotated` metadata.

    >>> arms(Annotated[int, Range(0)] | None)
    [<class 'int'>, <class 'NoneType'>]
    """
    if get_origin(annotation) is Annotated:
        return arms(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for arm in get_args(annotation) for inner in arms(arm)]
    return [annotation]


def marks(annotation: Any) -> tuple[Any, ...]:
    """Return the `Annotated` metadata of a type.

    >>> marks(Annotated[int, LATER]), marks(Literal["later"])
    (('later',), ())
    """
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def takes_list(annotation: Any) -> bool:
    """Whether a value of this type can be a list.

    >>> takes_list(tuple[int, ...] | None), takes_list(int | None)
    (True, False)
    """
    return any(get_origin(arm) is tuple for arm in arms(annotation))


def coerce(name: str, value: Any, annotation: Any) -> Any:
    """Convert a value to its annotated type, such as 1 to 1.0; a ValueError says what is allowed instead.

    >>> coerce("lr", 1, float)
    1.0
    >>> coerce("density", 2.0, Annotated[float, Range(0, 1, open="(")])
    Traceback (most recent call last):
        ...
    ValueError: density is 2.0; allowed is a number in (0, 1]
    """
    fitted = _fit(value, annotation)
    if fitted is _MISFIT:
        raise ValueError(f"{name} is {shown(value)}; allowed is {describe(annotation)}")
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
        for extra in args[1:]:
            if isinstance(extra, Parsed) and isinstance(value, str):
                value = extra.parse(value)
        fitted = _fit(value, args[0])
        ranges = [extra for extra in args[1:] if isinstance(extra, Range)]
        number = isinstance(fitted, int | float) and not isinstance(fitted, bool)
        return _MISFIT if number and any(fitted not in interval for interval in ranges) else fitted
    if origin in (Union, types.UnionType):
        # Try the type of the value itself first, so that 1 stays an int in `int | float`.
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
        if isinstance(value, bool) or not isinstance(value, int | float):
            return _MISFIT
        try:
            return float(value) if math.isfinite(value) else _MISFIT
        except OverflowError:  # an int larger than the largest float
            return _MISFIT
    if annotation is Path:
        return path(value) if isinstance(value, str | Path) else _MISFIT
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
