"""Commands that take a run's options: those of a Config, and those of the parts that are chosen."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click

from .. import registry, validate
from ..config import Config, annotations, load, part_options, resolve
from ..exit_status import stop_before_it_begins
from .command import Argument, Command, Option, given
from .values import Suggestions

DEFAULT = "digits"
"""The workload of a command line that names none."""

HIDDEN = ("workload", "model_options", "data_options", "reducer_options", "slurm")
"""Fields that have no option: the workload stands first, the parts' options have options of their own."""

PREFIXES = {"reducer": "", "model": "model.", "data": "data."}
"""What the options of each part begin with."""

SUGGESTED = {
    "reducer": Suggestions("reducers"),
    "model": Suggestions("models"),
    "data": Suggestions("datasets"),
    "task": Suggestions("tasks"),
}

WORKLOAD = Argument(
    "workload",
    str,
    f"One of `sage list`, or a TOML file; none given: {DEFAULT}.",
    required=False,
    suggestions=Suggestions("workloads"),
)
CONFIG = Option(
    "config",
    Path | None,
    None,
    "A TOML file that changes the workload, and that the options change.",
    group="Command",
)


class RunCommand(Command):
    """A command that takes the options of a run; which there are depends on the workload and its parts.

    Its callback gets the run as `config`, and the values of the command's own options.

    Args:
        own: the command's own options; a run's option of the same name is left out.
    """

    def __init__(
        self, name: str, callback: Callable[..., int], own: Sequence[Option], *, help: str, notes: str = ""
    ) -> None:
        super().__init__(name, callback, [WORKLOAD, *own, CONFIG], help=help, notes=notes)
        self.own = [option.name for option in own]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own parameters and those of the run that is chosen."""
        base: Config | None = ctx.meta.get("sage.base")
        *own, helped = super().get_params(ctx)
        return [*own, *(o for o in (options_of(base) if base else []) if o.name not in self.own), helped]

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """The option --help, beside the command's own."""
        if (option := super().get_help_option(ctx)) is not None:
            vars(option)["group"] = CONFIG.group
        return option

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the run.

        The parts are looked for first, since the other options depend on them.

        Raises:
            ValueError: where an option, a value or a file is wrong.
        """
        try:
            from_source = ctx.resilient_parsing or not {"-h", "--help"}.isdisjoint(args)
            # The shell completes the value of the last option.
            known = args[:-1] if ctx.resilient_parsing and args and args[-1].startswith("-") else args
            base = ctx.meta["sage.base"] = chosen(known, from_source=from_source)
        except Exception:
            if ctx.resilient_parsing:
                return super().parse_args(ctx, args)
            raise
        if args and not args[0].startswith("-"):
            ctx.info_name = f"{ctx.info_name} {args[0]}"
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            values = given(ctx)
            own = {name: ctx.params[name] for name in self.own}
            run = {name: value for name, value in values.items() if name not in (*own, "workload", "config")}
            ctx.params = {**own, "config": changed(base, run)}
        return rest

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What the command does, and for which choice the options are listed."""
        super().format_help_text(ctx, formatter)
        if (base := ctx.meta.get("sage.base")) is not None:
            formatter.write_paragraph()
            formatter.write_text(
                f"The options below are those of the workload {base.workload}, with the model "
                f"{registry.short(base.model)}, the data set {registry.short(base.data)} and the reducer "
                f"{registry.short(base.reducer)}. Another choice has other options."
            )


def chosen(args: Sequence[str], *, from_source: bool = False) -> Config:
    """The run of the workload, the file and the parts that a command line names, without its other options.

    Raises:
        ValueError: where one of them is wrong.
    """
    named = bool(args) and not args[0].startswith("-")
    workload, rest = (args[0], args[1:]) if named else (DEFAULT, args)
    parts = _named_parts(rest)
    file = parts.pop("config", None)
    config = load(workload, file=validate.path(file) if file else None, overrides=parts)
    return resolve(config, from_source=from_source)


def changed(base: Config, values: dict[str, Any]) -> Config:
    """The run with these values of its options.

    Raises:
        ValueError: where values do not go together, or a part refuses its options.
    """
    changes: dict[str, Any] = {f"{part}_options": dict(getattr(base, f"{part}_options")) for part in PREFIXES}
    for name, value in values.items():
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
    return resolve(Config.from_dict({**base.to_dict(), **changes}))


def options_of(base: Config) -> list[Option]:
    """The options of a run of these parts; its values are the defaults."""
    sections, texts = _documented()
    options = [
        Option(
            name,
            annotation,
            getattr(base, name),
            texts[name],
            group=sections[name],
            suggestions=SUGGESTED.get(name),
        )
        for name, annotation in annotations().items()
        if name not in HIDDEN
    ]
    for part, found in part_options(base, from_source=True).items():
        kind = "data set" if part == "data" else part
        group = f"Options of the {kind} {registry.short(getattr(base, part))}"
        values = getattr(base, f"{part}_options")
        options += [
            Option(
                f"{PREFIXES[part]}{name}",
                option.type,
                values.get(name, option.default),
                option.help,
                group=group,
            )
            for name, option in found.items()
        ]
    return options


def prepare_process() -> None:
    """Prepare this process to be a run, before torch is imported.

    A dead peer is then reported in our words, not by the store's stack traces, and a signal ends the process
    with the status of a run that stopped.
    """
    import os

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    stop_before_it_begins()


def _named_parts(args: Sequence[str]) -> dict[str, str]:
    """The parts, and the file, that the command line names."""
    found = {}
    for at, word in enumerate(args):
        option, equals, value = word.partition("=")
        if option in ("--config", "--reducer", "--model", "--data"):
            if not equals:
                if at + 1 >= len(args) or args[at + 1].startswith("--"):
                    raise ValueError(f"{option}: expected one argument")
                value = args[at + 1]
            found[option[2:]] = value
    return found


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
