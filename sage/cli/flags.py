"""Command-line flags, made of a Config's fields and of the options that the chosen parts take."""

import ast
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from .. import registry, validate
from ..config import Config, annotations, load, part_options, resolve
from ..validate import arms, coerce, describe, shown, takes_list

HIDDEN = ("workload", "model_options", "data_options", "reducer_options", "slurm")
"""Fields that have no flag: the workload stands first, the options have flags of their own."""

PREFIXES = {"reducer": "", "model": "model.", "data": "data."}
"""What the flags of each part's options begin with."""


@dataclass(frozen=True)
class Flag:
    """One flag: `--name VALUE`, or `--name` and `--no-name` of what is true or false."""

    name: str
    """As the result has it: `lr_scale`, `model.depth`."""
    type: Any
    default: Any
    help: str
    group: str = "Options"

    @property
    def spelled(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false, so that it takes no value; a field's type may be `Annotated`."""
        return self.type is bool or (get_origin(self.type) is Annotated and get_args(self.type)[0] is bool)

    @property
    def negated(self) -> str:
        """How what is true or false is switched off; of a part's option `--model.no-x`."""
        part, dot, name = self.name.rpartition(".")
        return "--" + f"{part}{dot}no_{name}".replace("_", "-")


def parse_run(argv: Sequence[str]) -> tuple[Config, bool]:
    """Read `[WORKLOAD] [--FLAG VALUE ...]`: the run, and whether it is to be printed instead of run.

    The parts are looked for first, since which other flags there are is theirs to say.

    Raises:
        ValueError: where a flag, a value or a file is wrong.
        SystemExit: once `--help` has been printed.
    """
    given = bool(argv) and not argv[0].startswith("-")
    workload, rest = (argv[0], argv[1:]) if given else ("digits", argv)
    named = _named_parts(rest)
    file = named.pop("config", None)
    base = resolve(load(workload, file=validate.path(file) if file else None, overrides=named))
    command = f"sage run {workload}"
    description = (
        f"Train {registry.short(base.model)} on {registry.short(base.data)} under "
        f"{registry.short(base.reducer)}; the flags below are those of this choice."
    )
    read = _read(rest, _flags(base), command, description, usage="sage run [WORKLOAD] [--FLAG VALUE ...]")
    only_print = read.pop("print_config", False)
    read.pop("config", None)
    changes: dict[str, Any] = {f"{part}_options": dict(getattr(base, f"{part}_options")) for part in PREFIXES}
    for name, value in read.items():
        part, dot, option = name.rpartition(".")
        if dot:
            changes[f"{part}_options"][option] = value
        elif name in annotations():
            changes[name] = value
        else:
            changes["reducer_options"][name] = value
    for part in PREFIXES:
        changes.pop(part, None)  # the base has it, by its absolute path where it is a file
    if "task" in changes:
        changes["task"] = registry.located(changes["task"])
    return resolve(Config.from_dict({**base.to_dict(), **changes})), only_print


def parse_options(
    argv: Sequence[str], options: Mapping[str, registry.Option], *, prog: str, description: str
) -> dict[str, Any]:
    """Read flags for these options and nothing else; raises as `parse_run` does."""
    flags = [Flag(name, option.type, option.default, option.help) for name, option in options.items()]
    read = _read(argv, flags, prog, description, usage=f"{prog} [--FLAG VALUE ...]")
    return {flag.name: read.get(flag.name, flag.default) for flag in flags}


def _named_parts(argv: Sequence[str]) -> dict[str, str]:
    """The parts, and the file, that the command line names."""
    found = {}
    for at, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag in ("--config", "--reducer", "--model", "--data"):
            if not equals:
                value = _following(argv, at, flag)
            found[flag[2:]] = value
    return found


def _flags(base: Config) -> list[Flag]:
    sections, texts = _documented()
    flags = [
        Flag(
            "config",
            Path | None,
            None,
            "A TOML file that changes the workload, and that the flags change.",
            "Command",
        ),
        Flag("print_config", bool, False, "Print the run, with its folder, and do not run it.", "Command"),
    ]
    flags += [
        Flag(name, annotation, getattr(base, name), texts[name], sections[name])
        for name, annotation in annotations().items()
        if name not in HIDDEN
    ]
    for part, options in part_options(base).items():
        kind = "data set" if part == "data" else part
        group = f"Options of the {kind} {registry.short(getattr(base, part))}"
        values = getattr(base, f"{part}_options")
        flags += [
            Flag(f"{PREFIXES[part]}{name}", option.type, values.get(name, option.default), option.help, group)
            for name, option in options.items()
        ]
    return flags


@cache
def _documented() -> tuple[dict[str, str], dict[str, str]]:
    """Of each field of a Config the section that it stands in, and its docstring."""
    source = textwrap.dedent(inspect.getsource(Config))
    sections, section = {}, "Run"
    for line in source.splitlines():
        if title := re.fullmatch(r"    # ([A-Z][^.]*)", line):
            section = title[1]
        elif name := re.match(r"    (\w+): ", line):
            sections[name[1]] = section
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    texts = {}
    for field, text in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = ast.literal_eval(text.value) if isinstance(text, ast.Expr) else ""
            texts[field.target.id] = " ".join(str(said).split())
    return sections, texts


# Reading.


def _read(
    argv: Sequence[str], flags: Sequence[Flag], command: str, description: str, *, usage: str
) -> dict[str, Any]:
    """The values of the flags that are given."""
    if "--help" in argv or "-h" in argv:
        print(_help(flags, usage, description))
        raise SystemExit(0)
    by_name: dict[str, tuple[Flag, bool | None]] = {}
    for flag in flags:
        by_name[flag.spelled] = (flag, True if flag.is_switch else None)
        if flag.is_switch:
            by_name[flag.negated] = (flag, False)
    read: dict[str, Any] = {}
    at = 0
    while at < len(argv):
        word, equals, value = argv[at].partition("=")
        spelled = word.replace("_", "-")
        if not word.startswith("--") or spelled not in by_name:
            raise ValueError(_unknown(argv[at], word, spelled, by_name, command))
        flag, constant = by_name[spelled]
        at += 1
        if constant is not None:
            if equals:
                raise ValueError(f"{word} takes no value; give {flag.spelled} or {flag.negated} alone")
            read[flag.name] = constant
        elif takes_list(flag.type):
            values = [value] if equals else []
            while not equals and at < len(argv) and not argv[at].startswith("--"):
                values.append(argv[at])
                at += 1
            read[flag.name] = _list_of(flag, values)
        else:
            if not equals:
                value = _following(argv, at - 1, word)
                at += 1
            read[flag.name] = _value(flag, value, flag.type)
    return read


def _following(argv: Sequence[str], at: int, flag: str) -> str:
    if at + 1 >= len(argv) or argv[at + 1].startswith("--"):
        raise ValueError(f"{flag}: expected one argument")
    return argv[at + 1]


def _unknown(word: str, name: str, spelled: str, valid: Mapping[str, object], command: str) -> str:
    if not word.startswith("-"):
        return f"{shown(word)} follows no flag that takes it; `{command} --help` lists all"
    near = get_close_matches(spelled[:200], valid, n=3, cutoff=0.6)
    if near:
        return f"no flag of `{command}` is called {shown(name)}; did you mean {' or '.join(near)}?"
    return f"no flag of `{command}` is called {shown(name)}; `{command} --help` lists all"


def _list_of(flag: Flag, words: Sequence[str]) -> Any:
    if list(words) in (["None"], ["none"]) and type(None) in get_args(flag.type):
        return None
    arm = next(arm for arm in arms(flag.type) if get_origin(arm) is tuple)
    inner = [each for each in get_args(arm) if each is not Ellipsis]
    types = inner * len(words) if Ellipsis in get_args(arm) else inner
    if len(types) != len(words):
        raise ValueError(f"{flag.spelled} is {shown(' '.join(words))}; allowed is {describe(flag.type)}")
    values = [_value(flag, word, each) for word, each in zip(words, types, strict=True)]
    return coerce(flag.spelled, values, flag.type)


def _value(flag: Flag, word: str, annotation: Any) -> Any:
    for value in _meanings(word, annotation):
        return coerce(flag.spelled, value, annotation)
    raise ValueError(f"{flag.spelled} is {shown(word)}; allowed is {describe(annotation)}")


def _meanings(word: str, annotation: Any) -> Iterator[Any]:
    """What a word can mean as a value of this type; a text last."""
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


# Help.


def _help(flags: Sequence[Flag], usage: str, description: str) -> str:
    """The flags by group, each on a line where it fits."""
    width = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
    lines = [f"usage: {usage}", "", *textwrap.wrap(description, width)]
    for group in dict.fromkeys(flag.group for flag in flags):
        lines += ["", f"{group}:"]
        for flag in flags:
            if flag.group == group:
                lines += _help_of(flag, width)
    return "\n".join(lines)


def _help_of(flag: Flag, width: int) -> list[str]:
    head = f"  {flag.spelled} {_metavar(flag.type)}"
    if flag.is_switch:
        head = f"  {flag.spelled}, {flag.negated}"
    default = shown(flag.default) if isinstance(flag.default, bool | float | int) else _plain(flag.default)
    text = f"{flag.help} (default: {default})".strip()
    indent = 32
    wrapped = textwrap.wrap(text, width - indent)
    if len(head) > indent - 2:
        return [head, *(" " * indent + line for line in wrapped)]
    return [f"{head:{indent}}{wrapped[0]}", *(" " * indent + line for line in wrapped[1:])]


def _plain(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _metavar(annotation: Any) -> str:
    words = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "{true,false}"}
    told = []
    for arm in arms(annotation):
        if get_origin(arm) is Literal:
            told.append("{" + ",".join(map(str, get_args(arm))) + "}")
        elif get_origin(arm) is tuple:
            told.append(f"{_metavar(get_args(arm)[0])} ...")
        elif arm is not type(None):
            told.append(words.get(arm, "VALUE"))
    return "|".join(told)
