"""Converts words of the command line to values of an annotation, and formats such values for help."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from ..validate import arms, coerce, describe, shown, takes_list

END = "\0"
"""Terminator of each value of an option with several values; process arguments cannot contain it."""


class Value(click.ParamType):  # type: ignore[type-arg]
    """A click type for an annotation such as `Annotated[int, Range(1)]` or `tuple[float, ...]`.

    Args:
        suggestions: names for shell completion.
    """

    name = "value"

    def __init__(self, annotation: Any, suggestions: "Suggestions | None" = None) -> None:
        self.annotation, self.suggestions = annotation, suggestions

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert a word to a value; return a default unchanged.

        Raises:
            ValueError: if the word is invalid; the message gives the option, the word and what is allowed.
        """
        if not isinstance(value, str) or param is None:
            return value
        name = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
        if isinstance(param, click.Option) and takes_list(self.annotation):
            return _list_of(name, value.split(END)[:-1], self.annotation)
        return _value(name, value, self.annotation)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the value's name in usage and help: its type, or all choices."""
        return metavar(self.annotation)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the choices with this prefix, or the shell's completion of files if the value is a path."""
        names = self.suggestions(ctx) if self.suggestions else []
        names += [str(choice) for arm in arms(self.annotation) for choice in _choices(arm)]
        items = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        takes_files = Path in arms(self.annotation) or (self.suggestions and self.suggestions.or_files)
        if not items and takes_files or incomplete.startswith((".", "/", "~")):
            items.append(CompletionItem(incomplete, type="file"))
        return items


class Suggestions:
    """Names for shell completion, read on each call: parts of a kind, workloads, published sources, or runs.

    Args:
        kind: which names.
        or_files: whether the value may be a file too, which the shell completes if no name fits.
    """

    def __init__(
        self,
        kind: Literal["reducers", "models", "datasets", "tasks", "workloads", "published", "runs"],
        *,
        or_files: bool = False,
    ) -> None:
        self.kind: Literal["reducers", "models", "datasets", "tasks", "workloads", "published", "runs"] = kind
        self.or_files = or_files

    def __call__(self, ctx: click.Context) -> list[str]:
        """Return the names in alphabetical order; runs are those of the folder that `--runs` names."""
        if self.kind == "runs":
            from ..jobs.status import known_runs

            runs = ctx.params.get("runs") or Path("runs")
            return known_runs(runs) if runs.is_dir() else []
        if self.kind == "published":
            from ..report.published.files import sources

            return list(sources())
        from .. import registry

        return list(registry.workloads()) if self.kind == "workloads" else registry.names(self.kind)


def plain(value: Any) -> str:
    """Format a default as it would be typed."""
    if isinstance(value, bool | float | int):
        return shown(value)
    if isinstance(value, tuple | list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def metavar(annotation: Any) -> str:
    """How help names a value of this type.

    >>> metavar(tuple[int, ...] | None), metavar(Literal["a", "b"])
    ('INT ...', '{a,b}')
    """
    words = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "{true,false}"}
    texts = []
    for arm in arms(annotation):
        if get_origin(arm) is Literal:
            texts.append("{" + ",".join(map(str, get_args(arm))) + "}")
        elif get_origin(arm) is tuple:
            texts.append(f"{metavar(get_args(arm)[0])} ...")
        elif arm is not type(None):
            texts.append(words.get(arm, "VALUE"))
    return "|".join(texts)


def _choices(arm: Any) -> tuple[Any, ...]:
    if get_origin(arm) is tuple:
        return tuple(choice for part in arms(get_args(arm)[0]) for choice in _choices(part))
    return get_args(arm) if get_origin(arm) is Literal else ()


def _list_of(name: str, words: Sequence[str], annotation: Any) -> Any:
    if list(words) in (["None"], ["none"]) and type(None) in get_args(annotation):
        return None
    arm = next(arm for arm in arms(annotation) if get_origin(arm) is tuple)
    inner = [part for part in get_args(arm) if part is not Ellipsis]
    types = inner * len(words) if Ellipsis in get_args(arm) else inner
    if len(types) != len(words):
        raise ValueError(f"{name} is {shown(' '.join(words))}; allowed is {describe(annotation)}")
    values = [_value(name, word, part) for word, part in zip(words, types, strict=True)]
    return coerce(name, values, annotation)


def _value(name: str, word: str, annotation: Any) -> Any:
    for value in _meanings(word, annotation):
        return coerce(name, value, annotation)
    raise ValueError(f"{name} is {shown(word)}; allowed is {describe(annotation)}")


def _meanings(word: str, annotation: Any) -> Iterator[Any]:
    """Yield the possible values of a word for this annotation; a string comes last."""
    for arm in sorted(arms(annotation), key=lambda arm: arm is str):
        if arm is type(None):
            if word in ("None", "none"):
                yield None
        elif get_origin(arm) is Literal:
            yield from (choice for choice in get_args(arm) if str(choice) == word)
        elif arm is bool:
            if word.lower() in ("true", "false"):
                yield word.lower() == "true"
        elif arm in (int, float):
            try:
                yield arm(word)
            except ValueError:
                continue
        elif arm in (str, Path):
            yield word
