"""Finds reducers, models, data sets and tasks by name and reads their options.

A part has one of these names (docs/how-to/name-a-part.md):

- `topk`: the file `reducers/topk.py`, or an entry point of another package in the group `sage.reducers`
  (`sage.models`, `sage.datasets`, `sage.tasks`), whose value is a module or `module:object`;
- `package.module`: an importable module;
- `./mine.py`: a file. The hash of a run uses the file's name and content instead of its path.

Listing does not import any part, so that `sage list` does not wait for torch.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
import tokenize
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from .. import validate
from ..output.text import clean_text
from ..validate import LATER, Before, coerce, known, marks, shown
from .composition import SERVER, compose, reducers_in
from .docstring import docstring_of
from .outline import Unknown, composed, composed_with_server, outline
from .part_file import content_of, module_of
from .signature import FACTS as FACTS
from .signature import Option as Option
from .signature import PartKind as PartKind
from .signature import options as options

EXPORTS: dict[PartKind, str] = {
    "reducers": "REDUCER",
    "models": "MODEL",
    "datasets": "DATASET",
    "tasks": "TASK",
}
KINDS: dict[PartKind, str] = {
    "reducers": "reducer",
    "models": "model",
    "datasets": "data set",
    "tasks": "task",
}

ALIASES = {"efsign": "efsignsgd"}
"""Alternative names of reducers."""

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def names(kind: PartKind) -> list[str]:
    """List every part of a kind in alphabetical order: those of SAGE and those of other packages."""
    return sorted({*_files(kind), *_entries(kind)})


def summary(kind: PartKind, name: str) -> str:
    """Return the first line of a part's module docstring without importing it, or why it cannot be read."""
    if kind == "reducers" and "+" in name:
        texts = [summary(kind, ALIASES.get(part_name, part_name)) for part_name in reducers_in(name)]
        return "; ".join(
            [*texts, "the mean encoded again by servers"] if name.endswith(f"+{SERVER}") else texts
        )
    try:
        source = _source(kind, name)
        if source is None:
            return ""
        own = source == _files(kind).get(name)
        # Of another package's part the whole file is parsed, so that the list reports a fault in it.
        text = docstring_of(source) if own else ast.get_docstring(ast.parse(source.read_bytes()))
        return (text or "").partition("\n")[0]
    except (SyntaxError, tokenize.TokenError, ValueError, OSError, RecursionError) as error:
        return f"(cannot be read: {clean_text(str(error))})"


def is_file(name: str) -> bool:
    """Whether a part's name is the path of a file such as `./mine.py`, not the name of a part or module."""
    return "/" in name or name.endswith(".py") or name.startswith("~")


def located(name: str) -> str:
    """Make the file paths in a part's name absolute, because ranks may run in another folder."""
    each = [str(validate.path(part).absolute()) if is_file(part) else part for part in name.split("+")]
    return "+".join(each)


def short(name: str) -> str:
    """Return the name of a part for use in a folder name: the stem of a file, else the name itself."""
    return "+".join(Path(part).stem if is_file(part) else part for part in name.split("+"))


def identity(name: str) -> str:
    """Return the name of a part for use in a run's hash: a file is its stem and the SHA-256 of its content.

    Raises:
        ValueError: if a file cannot be read.
    """
    return "+".join(
        f"{short(part)}@{content_of(part)[1]}" if is_file(part) else part for part in name.split("+")
    )


def check_name(kind: PartKind, name: str) -> str:
    """Return the name if a part of this name exists.

    Besides the names of the kind, these are allowed: `sparsifier+quantiser` and `reducer+server` for
    reducers, the dotted name of a module that exports a part, and the path of a file that exports one.

    Raises:
        ValueError: if there is no such part.
    """
    for part_name in reducers_in(name) if kind == "reducers" else [name]:
        if is_file(part_name):
            content_of(part_name)
        elif "." not in part_name:
            known(KINDS[kind], ALIASES.get(part_name, part_name), names(kind))
        elif not _DOTTED.fullmatch(part_name):
            raise ValueError(
                f"no {KINDS[kind]} is called {shown(part_name)}; allowed are a name of `sage list`, "
                "a module as package.module, and a file as ./mine.py"
            )
    return name


def load(kind: PartKind, name: str) -> Callable[..., Any]:
    """Import a part and return what it exports as REDUCER, MODEL, DATASET or TASK.

    Raises:
        ValueError: if there is no such part, its module cannot be imported, or it exports none.
    """
    check_name(kind, name)
    if kind == "reducers" and "+" in name:
        parts = [load(kind, part_name) for part_name in reducers_in(name)]
        return compose(name, parts)
    return _import(kind, ALIASES.get(name, name))


def _import(kind: PartKind, name: str) -> Callable[..., Any]:
    files, entries, noun = _files(kind), _entries(kind), KINDS[kind]
    if name in entries and name in files:
        raise ValueError(
            f"the {noun} {name!r} is a file of {kind}/ and also the entry point "
            f"{entries[name].value!r}; give the entry point another name"
        )
    if name in entries:
        what = f"the {noun} {name!r} (entry point {entries[name].value!r})"
        part = _attempt(what, entries[name].load)
    elif is_file(name):
        what = f"the {noun} {name}"
        path, content = validate.path(name), content_of(name)[1]
        part = _attempt(what, lambda: module_of(path.absolute(), content))
    else:
        what = f"the {noun} {name!r}"
        module = name if "." in name else f"sage.{kind}.{name}"
        part = _attempt(what, lambda: importlib.import_module(module), module)
    if inspect.ismodule(part):
        if not hasattr(part, EXPORTS[kind]):
            raise ValueError(
                f"the module {part.__name__} exports no {EXPORTS[kind]}; add `{EXPORTS[kind]} = ...` to it, "
                f"with its {noun}"
            )
        part = getattr(part, EXPORTS[kind])
    if not callable(part):
        raise ValueError(f"{what}: expected a class or a function, found {shown(part)}")
    found: Callable[..., Any] = part
    return found


def _attempt(what: str, get: Callable[[], Any], module: str = "") -> Any:
    """Import a part; convert any exception to a ValueError with the part, the error and its location."""
    try:
        return get()
    except (Exception, SystemExit) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent and module and f"{module}.".startswith(f"{absent}."):
            raise ValueError(
                f"{what}: there is no module of this name; check that it is installed or on PYTHONPATH"
            ) from error
        if isinstance(error, SyntaxError):
            place = f"{error.filename}, line {error.lineno}"
        else:
            frames = [
                frame
                for frame in traceback.extract_tb(error.__traceback__)
                if not frame.filename.startswith("<") and frame.filename not in (__file__, importlib.__file__)
            ]
            place = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
        reason = f"{type(error).__name__}: {clean_text(str(error))}"
        raise ValueError(f"{what} cannot be imported: {reason}" + (f" ({place})" if place else "")) from error


def _source(kind: PartKind, name: str) -> Path | None:
    """Find the file that defines a part without importing it; None if there is no readable file."""
    if is_file(name):
        return validate.path(name)
    if path := _files(kind).get(name):
        return path
    try:
        spec = importlib.util.find_spec(name if "." in name else _entries(kind)[name].module)
    except Exception:  # a parent package may raise any exception; one bad entry must not break the list
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


def described(kind: PartKind, name: str) -> Callable[..., Any]:
    """Return the outline, with the options, of a part of SAGE; if there is none, import the part itself."""
    check_name(kind, name)
    with suppress(Unknown):
        if kind != "reducers" or "+" not in name:
            return _outline(kind, name)
        parts = [_outline(kind, part_name) for part_name in reducers_in(name)]
        if len(parts) <= 2:
            made = composed(*parts) if len(parts) == 2 else parts[0]
            return composed_with_server(made) if name.endswith(f"+{SERVER}") else made
    return load(kind, name)


def _outline(kind: PartKind, name: str) -> Callable[..., Any]:
    """Return the outline of a part of SAGE that is not imported yet; raise `Unknown` for any other."""
    stem = ALIASES.get(name, name)
    module = f"sage.{kind}.{stem}"
    if stem not in _files(kind) or stem in _entries(kind) or module in sys.modules:
        raise Unknown(name)
    return outline(module, EXPORTS[kind])


def options_of(kind: PartKind, name: str, *, from_source: bool = False) -> Mapping[str, Option]:
    """Return the options of a part by its name; imports the part, unless `from_source` allows its source."""
    return options((described if from_source else load)(kind, name), kind=kind)


def check_options(
    kind: PartKind, name: str, given: dict[str, Any], *, from_source: bool = False
) -> dict[str, Any]:
    """Convert the given options to their types and add the part's defaults for the rest.

    The hash of a run covers the result, and a new option must not change the hash of existing runs. So an
    option that was added later (listed in the part's `later`, or annotated with `sage.validate.LATER`) is
    omitted when it has its default value. An option annotated with `Before` is kept, because a part that is
    made without it does what its default says; `hashed_options` omits it.
    """
    part = (described if from_source else load)(kind, name)
    valid = options(part, kind=kind)
    for option in given:
        known(f"option of the {KINDS[kind]} {short(name)}", option, valid)
    checked = {option: coerce(option, value, valid[option].type) for option, value in given.items()}
    complete = {option: checked.get(option, spec.default) for option, spec in valid.items()}
    later = {*getattr(part, "later", ()), *(option for option in valid if LATER in marks(valid[option].type))}
    return {
        option: value
        for option, value in complete.items()
        if option not in later or value != valid[option].default
    }


def hashed_options(kind: PartKind, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a run's hash covers: without those at the value of their mark `Before`."""
    before = _before(kind, name) if given else {}
    return {
        option: value for option, value in given.items() if option not in before or value != before[option]
    }


def recorded_options(kind: PartKind, name: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a recorded run, with those that did not exist yet at the value of `Before`."""
    return {**_before(kind, name), **recorded}


def _before(kind: PartKind, name: str) -> dict[str, Any]:
    """What runs did before an option existed, for each option that has a mark `Before`."""
    return {
        option: mark.value
        for option, spec in options_of(kind, name, from_source=True).items()
        for mark in marks(spec.type)
        if isinstance(mark, Before)
    }


@cache
def _files(kind: PartKind) -> dict[str, Path]:
    folder = Path(__file__).parents[1] / kind
    return {path.stem: path for path in folder.glob("*.py") if path.stem != "base" and path.stem[0] != "_"}


def _entries(kind: PartKind) -> dict[str, EntryPoint]:
    return _all_entries()[kind]


@cache
def _all_entries() -> dict[PartKind, dict[str, EntryPoint]]:
    found = entry_points()  # of all groups at once, because each call reads the files of all packages
    return {kind: {entry.name: entry for entry in found.select(group=f"sage.{kind}")} for kind in KINDS}
