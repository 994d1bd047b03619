"""Finds reducers, models and data sets by file name or by entry point, and reads which options they take.

A file `reducers/topk.py` is the reducer `topk`; another package adds one through the entry-point group
`sage.reducers` (`sage.models`, `sage.datasets`), whose value is a module or `module:object`.
Listing imports none of them, so that `sage list` need not wait for torch.
"""

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, cast, get_type_hints

from .check import coerce, known

Room = Literal["reducers", "models", "datasets"]
EXPORTS: dict[Room, str] = {"reducers": "REDUCER", "models": "MODEL", "datasets": "DATASET"}
KINDS: dict[Room, str] = {"reducers": "reducer", "models": "model", "datasets": "data set"}

ALIASES = {"efsign": "efsignsgd"}
"""Other names of reducers."""

FACTS = frozenset({"num_classes", "channels", "image_size", "vocab_size", "num_users", "num_items"})
"""What a model is told by its data set, and so is no option of the model."""


@dataclass(frozen=True)
class Option:
    """One keyword-only parameter of a part: a flag on the command line."""

    type: Any
    default: Any
    help: str


def names(room: Room) -> list[str]:
    """Every part of a room, the house's own and those of other packages, in alphabetical order."""
    return sorted({*_files(room), *_entries(room)})


def summary(room: Room, name: str) -> str:
    """The first line of a part's module docstring, read without importing it."""
    if room == "reducers" and "+" in name:
        return "; ".join(summary(room, ALIASES.get(each, each)) for each in name.split("+"))
    path = _files(room).get(name)
    if path is None:
        try:
            spec = importlib.util.find_spec(name if "." in name else _entries(room)[name].module)
        except ModuleNotFoundError:  # of a package around it; one bad entry must not spoil the list
            return ""
        if spec is None or spec.origin is None:
            return ""
        path = Path(spec.origin)
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def check_name(room: Room, name: str) -> str:
    """A part's name where there is such a part.

    Beside the names of the room there are `sparsifier+quantiser` among the reducers, and the dotted name of
    any module that can be imported and exports a part.

    Raises:
        ValueError: where there is none.
    """
    for each in name.split("+") if room == "reducers" else [name]:
        if "." not in each:
            known(KINDS[room], ALIASES.get(each, each), names(room))
    return name


def load(room: Room, name: str) -> Callable[..., Any]:
    """Import a part and return what it exports as REDUCER, MODEL or DATASET.

    Raises:
        ValueError: where there is no such part, or the module exports none.
    """
    check_name(room, name)
    if room == "reducers" and "+" in name:
        from .hybrid import hybrid

        parts = [load(room, each) for each in name.split("+")]
        if len(parts) != 2:
            raise ValueError(f"the reducer {name!r}: expected two parts, as in topk+terngrad")
        return hybrid(*parts)
    return _import(room, ALIASES.get(name, name))


def _import(room: Room, name: str) -> Callable[..., Any]:
    files, entries = _files(room), _entries(room)
    if name in files and name in entries:
        raise ValueError(
            f"the {KINDS[room]} {name!r} is a file of {room}/ and also the entry point "
            f"{entries[name].value!r}; give the entry point another name"
        )
    if name in entries:
        part = entries[name].load()
    else:
        module = name if "." in name else f"sage.{room}.{name}"
        try:
            part = importlib.import_module(module)
        except ModuleNotFoundError as missing:
            if missing.name is None or not f"{module}.".startswith(f"{missing.name}."):
                raise  # the module is there, and lacks something itself
            raise ValueError(
                f"the {KINDS[room]} {name!r}: there is no module of this name; is it installed, or on "
                "PYTHONPATH?"
            ) from missing
    if inspect.ismodule(part):
        if not hasattr(part, EXPORTS[room]):
            raise ValueError(
                f"the module {part.__name__} exports no {EXPORTS[room]}; let it name its {KINDS[room]}"
            )
        part = getattr(part, EXPORTS[room])
    found: Callable[..., Any] = part
    return found


def options(part: Callable[..., Any]) -> Mapping[str, Option]:
    """The keyword-only parameters of a class or function, less the facts.

    >>> def build(*, depth: int = 20, num_classes: int) -> None:
    ...     '''A network.
    ...
    ...     Args:
    ...         depth: how many layers
    ...     '''
    >>> options(build)
    {'depth': Option(type=<class 'int'>, default=20, help='how many layers')}
    """
    return _options(cast(Hashable, part))


@cache
def _options(part: Any) -> Mapping[str, Option]:
    if inspect.ismethod(getattr(part, "options", None)):  # a part made of parts tells of theirs
        told: Mapping[str, Option] = part.options()
        return told
    found: dict[str, Option] = {}
    for function in _builders(part):
        hints = get_type_hints(inspect.unwrap(function), include_extras=True)
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or name in FACTS or name in found:
                continue
            if parameter.default is inspect.Parameter.empty or name not in hints:
                raise ValueError(
                    f"the option {name!r} of {part.__module__} needs a default and a type annotation"
                )
            default = coerce(f"the default of {name}", parameter.default, hints[name])
            found[name] = Option(hints[name], default, _told(part, function).get(name, ""))
    return found


def check_options(room: Room, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The given options in their own types, with the part's defaults for the rest.

    Options that the part lists as added later (`Reducer.later`) are left out at their defaults: a run's hash
    covers what this returns, and must not change because a new option exists.
    """
    part = load(room, name)
    valid = options(part)
    for option in given:
        known(f"option of the {KINDS[room]} {name}", option, valid)
    checked = {option: coerce(option, value, valid[option].type) for option, value in given.items()}
    complete = {option: checked.get(option, spec.default) for option, spec in valid.items()}
    later = getattr(part, "later", ())
    return {
        option: value
        for option, value in complete.items()
        if option not in later or value != valid[option].default
    }


@cache
def _files(room: Room) -> dict[str, Path]:
    folder = Path(__file__).parent / room
    return {path.stem: path for path in folder.glob("*.py") if not path.stem.startswith("_")}


@cache
def _entries(room: Room) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"sage.{room}")}


def _builders(part: Callable[..., Any]) -> list[Callable[..., Any]]:
    """What takes a part's options: a function, or `__init__` and, as far as each hands on, its bases'."""
    if not inspect.isclass(part):
        return [part]
    builders: list[Callable[..., Any]] = []
    for each in inspect.getmro(part):
        if "__init__" in vars(each):
            builders.append(vars(each)["__init__"])
            kinds = {p.kind for p in inspect.signature(builders[-1]).parameters.values()}
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
    return builders


def _told(part: Callable[..., Any], function: Callable[..., Any]) -> dict[str, str]:
    """What is said of the parameters of a part, or of what takes them."""
    classes = inspect.getmro(part) if inspect.isclass(part) else [part]
    texts: dict[str, str] = {}
    for documented in (*reversed(classes), function):
        texts |= _args_section(documented)
    return texts


def _args_section(documented: Callable[..., Any]) -> dict[str, str]:
    """What the `Args:` section of a docstring says of each parameter."""
    lines = iter(inspect.cleandoc(documented.__doc__ or "").splitlines())
    texts: dict[str, str] = {}
    if not any(line.strip() == "Args:" for line in lines):
        return texts
    name, margin = "", 0
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent == 0:
            break
        margin = margin or indent
        head, colon, text = line.strip().partition(":")
        if indent == margin and colon:
            name = head.split(" ")[0]
            texts[name] = text.strip()
        elif name and line.strip():
            texts[name] += " " + line.strip()
    return texts
