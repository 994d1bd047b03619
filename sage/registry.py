"""Finds reducers, models and data sets by file name or by entry point, and reads which options they take.

A file `reducers/topk.py` is the reducer `topk`; another package adds one through the entry-point group
`sage.reducers` (`sage.models`, `sage.datasets`), whose value is a module or `module:object`.
Listing imports none of them, so that `sage list` need not wait for torch.
"""

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, get_type_hints

from .check import coerce, known

Room = Literal["reducers", "models", "datasets"]
EXPORTS: dict[Room, str] = {"reducers": "REDUCER", "models": "MODEL", "datasets": "DATASET"}
KINDS: dict[Room, str] = {"reducers": "reducer", "models": "model", "datasets": "data set"}

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
    path = _files(room).get(name)
    if path is None:
        try:
            spec = importlib.util.find_spec(_entries(room)[name].module)
        except ModuleNotFoundError:  # of a package around it; one bad entry must not spoil the list
            return ""
        if spec is None or spec.origin is None:
            return ""
        path = Path(spec.origin)
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def load(room: Room, name: str) -> Callable[..., Any]:
    """Import a part and return what it exports as REDUCER, MODEL or DATASET."""
    known(KINDS[room], name, names(room))
    files, entries = _files(room), _entries(room)
    if name in files and name in entries:
        raise ValueError(
            f"the {KINDS[room]} {name!r} is a file of {room}/ and also the entry point "
            f"{entries[name].value!r}; give the entry point another name"
        )
    part = entries[name].load() if name in entries else importlib.import_module(f"sage.{room}.{name}")
    if inspect.ismodule(part):
        if not hasattr(part, EXPORTS[room]):
            raise ValueError(
                f"the module {part.__name__} exports no {EXPORTS[room]}; let it name its {KINDS[room]}"
            )
        part = getattr(part, EXPORTS[room])
    found: Callable[..., Any] = part
    return found


@cache
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
    function = part.__init__ if inspect.isclass(part) else part
    hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    texts = {**_args_section(part), **_args_section(function)}
    found = {}
    for name, parameter in inspect.signature(part).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or name in FACTS:
            continue
        if parameter.default is inspect.Parameter.empty or name not in hints:
            raise ValueError(
                f"the option {name!r} of {part.__module__} needs a default and a type annotation"
            )
        default = coerce(f"the default of {name}", parameter.default, hints[name])
        found[name] = Option(hints[name], default, texts.get(name, ""))
    return found


def check_options(room: Room, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The given options in their own types, with the part's defaults for the rest."""
    valid = options(load(room, name))
    for option in given:
        known(f"option of the {KINDS[room]} {name}", option, valid)
    checked = {option: coerce(option, value, valid[option].type) for option, value in given.items()}
    return {option: checked.get(option, spec.default) for option, spec in valid.items()}


@cache
def _files(room: Room) -> dict[str, Path]:
    folder = Path(__file__).parent / room
    return {path.stem: path for path in folder.glob("*.py") if not path.stem.startswith("_")}


@cache
def _entries(room: Room) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"sage.{room}")}


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
