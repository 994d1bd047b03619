"""Validates an object against a schema of keys and types.

A type is a Python type, a union, `dict[str, T]`, `list[T]`, a `Literal`, `Any`, or a mapping from the keys of
an object to their types. A key that ends with `?` is optional. `float` also allows integers. Numbers must be
finite and less than `LARGEST` in magnitude, so that their sums and plots are finite. Additional keys are
allowed, so that a newer version can add keys without a new format.

The version of a file is its key `format`. A file without this key has version 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

LARGEST = 1e290
"""Bound on the magnitude of numbers in files; a sum of 10^10 such numbers is finite."""

Fits = Callable[[Any], bool]


class AnyFloat:
    """Schema type of a number that may be non-finite, for files of tensors."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file: its schema, and the remedy for a damaged file."""

    name: str
    """Its name in messages."""
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Its keys and the types of their values; see the module docstring."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Additional keys for each value of the key `kind`; no other value is allowed."""
    check: Callable[[dict[str, Any]], str] | None = None
    """A further check of content with valid keys: returns the fault, or "" if there is none."""
    version: int = 1
    """The newest format that this code can read."""
    remedy: str = ""
    """The remedy for a damaged file."""

    def fault(self, content: dict[str, Any]) -> str:
        """Return the fault of an object of this kind, such as "needs the key 'steps'"; "" if it is valid."""
        keys, fits = self._compiled[""]
        if self.variants:
            kind = content.get("kind")
            if not (isinstance(kind, str) and kind in self.variants):
                if "kind" not in content:
                    return f"{self.name} needs the key 'kind'"
                return f"'kind' is {_shown(kind)}, not {' or '.join(map(repr, self.variants))}"
            keys, fits = self._compiled[kind]
        if not fits(content):
            return _fault(content, keys, self.name)
        return self.check(content) if self.check is not None else ""

    @cached_property
    def _compiled(self) -> dict[str, tuple[Mapping[str, Any], Fits]]:
        every = {"": {}, **self.variants}
        return {name: ({**self.keys, **keys}, _fits({**self.keys, **keys})) for name, keys in every.items()}


def _fits(kind: Any) -> Fits:
    """Build the predicate for a type; done once for each kind, because a metrics file has many lines."""
    if isinstance(kind, Mapping):
        needed = [(key, _fits(value_kind)) for key, value_kind in kind.items() if not key.endswith("?")]
        others = [(key[:-1], _fits(value_kind)) for key, value_kind in kind.items() if key.endswith("?")]
        return lambda value: (
            isinstance(value, dict)
            and all(key in value and fits(value[key]) for key, fits in needed)
            and all(key not in value or fits(value[key]) for key, fits in others)
        )
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        arms = [_fits(arm) for arm in args]
        return lambda value: any(fits(value) for fits in arms)
    if origin is dict:
        of_values = _fits(args[1])
        return lambda value: isinstance(value, dict) and all(map(of_values, value.values()))
    if origin is list:
        of_items = _fits(args[0])
        return lambda value: type(value) is list and all(map(of_items, value))
    if origin is Literal:
        return lambda value: type(value) is str and value in args
    if kind is Any:
        return lambda value: True
    if kind is float:
        return lambda value: type(value) in (float, int) and -LARGEST < value < LARGEST
    if kind is AnyFloat:
        return lambda value: type(value) in (float, int)
    if kind is int:
        return lambda value: type(value) is int and -(2**63) <= value < 2**63
    if kind in (None, NoneType):
        return lambda value: value is None
    if kind is dict:
        return lambda value: isinstance(value, dict)
    return lambda value: type(value) is kind


def _fault(value: Any, kind: Any, name: str) -> str:
    """Describe the first part of a value that does not match its type."""
    if get_origin(kind) in (Union, UnionType):
        same = [arm for arm in get_args(kind) if (get_origin(arm) or arm) is type(value)]
        if same and same[0] not in (int, float):
            return _fault(value, same[0], name)
    if isinstance(kind, Mapping) and isinstance(value, dict):
        for key, value_kind in kind.items():
            plain = key.removesuffix("?")
            if plain not in value:
                if plain == key:
                    return f"{name} needs the key {key!r}"
            elif not _fits(value_kind)(value[plain]):
                return _fault(value[plain], value_kind, repr(plain))
    if get_origin(kind) is dict and isinstance(value, dict):
        of_values = get_args(kind)[1]
        key = next(key for key, item in value.items() if not _fits(of_values)(item))
        return _fault(value[key], of_values, f"{name}, {_shown(key)},")
    if get_origin(kind) is list and isinstance(value, list):
        of_items = get_args(kind)[0]
        index = next(i for i, item in enumerate(value) if not _fits(of_items)(item))
        return _fault(value[index], of_items, f"item {index} of {name}")
    return f"{name} is {_shown(value)}, not {_in_words(kind)}"


def type_of(value: Any) -> str:
    """Return the JSON type of a value in words: an object, a list, a text, a number, true or false, null."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", NoneType: "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    if isinstance(value, str) and len(value) <= 40:
        return repr(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number with too many digits"
    return f"{value!r}" if isinstance(value, int | float) else type_of(value)


def _in_words(kind: Any) -> str:
    if isinstance(kind, Mapping):
        return "an object"
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, args))
    if origin is Literal:
        return " or ".join(map(repr, args))
    words: dict[Any, str] = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        AnyFloat: "a number",
        NoneType: "null",
    }
    return words.get(origin or kind, "null")
