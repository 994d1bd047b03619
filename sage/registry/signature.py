"""Reads the options of a part, and the data set facts that a model needs, from its signature."""

import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast, get_type_hints

from ..output.text import clean_text
from ..validate import coerce, shown

PartKind = Literal["reducers", "models", "datasets", "tasks"]

FACTS = frozenset({"num_classes", "channels", "image_size", "vocab_size", "num_users", "num_items"})
"""Facts that the data set passes to the models of this repository. They are not options, even if they have a
default. Every other keyword-only parameter of a model without a default is a fact too."""

TRANSPORT_OPTIONS = ("values", "indices", "exchange", "merge", "sends", "mask", "mask_beta")
"""Options of sparsifiers that set the format or exchange of a selection; a hybrid does not take them."""

ALLOCATION_OPTIONS = ("allocation", "allocation_every", "allocation_alpha", "allocation_error")
"""Options that allocate settings over the groups of the whole vector. The quantiser of a hybrid does not take
them, as it gets the sparsifier's selection; nor does a reducer with `+server`, whose shares divide groups."""


@dataclass(frozen=True)
class Option:
    """One keyword-only parameter of a part: a flag on the command line."""

    type: Any
    default: Any
    help: str


def options(part: Callable[..., Any], *, kind: PartKind = "reducers") -> Mapping[str, Option]:
    """Return the keyword-only parameters of a class or function, without the facts.

    >>> def build(*, depth: int = 20, num_classes: int) -> None:
    ...     '''A network.
    ...
    ...     Args:
    ...         depth: how many layers
    ...     '''
    >>> options(build)
    {'depth': Option(type=<class 'int'>, default=20, help='how many layers')}

    Raises:
        ValueError: if a parameter has no default or no type. For a model, one without a default is a fact.
    """
    return _options(cast(Hashable, part), kind)


@cache
def _options(part: Any, kind: PartKind) -> Mapping[str, Option]:
    if inspect.ismethod(getattr(part, "options", None)):  # a composed part returns the options of its parts
        composed: Mapping[str, Option] = part.options()
        return composed
    found: dict[str, Option] = {}
    for function, parameters in _parameters(part):
        try:
            hints = get_type_hints(inspect.unwrap(function), include_extras=True)
        except Exception as error:  # an annotation is an expression and may raise any exception
            raise ValueError(
                f"the types of the options of {part.__module__} cannot be read: "
                f"{type(error).__name__}: {clean_text(str(error))}"
            ) from error
        for name, parameter in parameters.items():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or name in FACTS or name in found:
                continue
            bare = parameter.default is inspect.Parameter.empty
            if bare and kind == "models":
                continue
            if bare or name not in hints:
                raise ValueError(
                    f"the option {name!r} of {part.__module__} needs a default and a type annotation"
                )
            default = coerce(f"the default of {name}", parameter.default, hints[name])
            found[name] = Option(hints[name], default, _documented_options(part, function).get(name, ""))
    return found


def composed_options(sparsifier: Callable[..., Any], quantiser: Callable[..., Any]) -> Mapping[str, Option]:
    """Return the options of a hybrid: those of both parts, except those that a part does not take in it.

    The sparsifier does not take `TRANSPORT_OPTIONS`, the quantiser does not take `ALLOCATION_OPTIONS`.
    """
    own = {name: option for name, option in options(sparsifier).items() if name not in TRANSPORT_OPTIONS}
    codes = {name: option for name, option in options(quantiser).items() if name not in ALLOCATION_OPTIONS}
    return {**codes, **own}


def served_options(reducer: Callable[..., Any]) -> Mapping[str, Option]:
    """Return the options of a reducer followed by `+server`: all but those of its exchange and allocation."""
    without = {*TRANSPORT_OPTIONS, *ALLOCATION_OPTIONS} - {"values", "indices"}
    return {name: option for name, option in options(reducer).items() if name not in without}


def facts_for(
    build: Callable[..., Any], given: Mapping[str, Any], *, model: str, data: str
) -> dict[str, Any]:
    """Select the facts of a data set that a model takes: one for each parameter that is not an option.

    Raises:
        ValueError: if the data set does not provide a fact that the model requires.
    """
    own = options(build, kind="models")
    accepted: dict[str, inspect.Parameter] = {}
    for _, parameters in _parameters(build):
        accepted |= {
            name: parameter
            for name, parameter in parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in own
        }
    needed = [name for name, parameter in accepted.items() if parameter.default is inspect.Parameter.empty]
    if missing := [name for name in needed if name not in given]:
        raise ValueError(
            f"the model {model} needs {', '.join(missing)}, which the data set {data} does not "
            f"give; its facts are: {', '.join(given) or 'none'}"
        )
    return {name: given[name] for name in accepted if name in given}


def _parameters(part: Callable[..., Any]) -> list[tuple[Callable[..., Any], Mapping[str, inspect.Parameter]]]:
    try:
        return [(function, inspect.signature(function).parameters) for function in _builders(part)]
    except (TypeError, ValueError) as error:
        raise ValueError(f"the options of {shown(part)} cannot be read: {error}") from error


def _builders(part: Callable[..., Any]) -> list[Callable[..., Any]]:
    """List the callables that take a part's options: a function, or `__init__` and those of the bases.

    The bases are followed only as long as each `__init__` takes `**kwargs`.
    """
    if not inspect.isclass(part):
        return [part]
    builders: list[Callable[..., Any]] = []
    for base in inspect.getmro(part):
        if "__init__" in vars(base):
            builders.append(vars(base)["__init__"])
            kinds = {p.kind for p in inspect.signature(builders[-1]).parameters.values()}
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
    return builders


def _documented_options(part: Callable[..., Any], function: Callable[..., Any]) -> dict[str, str]:
    """Return the descriptions of a part's parameters, from the docstrings of its classes and the callable."""
    classes = inspect.getmro(part) if inspect.isclass(part) else [part]
    texts: dict[str, str] = {}
    for documented in (*reversed(classes), function):
        texts |= _args_section(documented)
    return texts


def _args_section(documented: Callable[..., Any]) -> dict[str, str]:
    """Parse the `Args:` section of a docstring into the description of each parameter."""
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
