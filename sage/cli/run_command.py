"""Commands that take a run's options: those of a Config, and those of the chosen parts."""

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
from ..config import Config, annotations, load, part_options, resolve, with_preset
from ..config.local_presets import PRESETS
from ..config.shards import FORMATS, unused
from .command import Argument, Command, Option, given
from .values import Suggestions

DEFAULT = "digits"
"""The workload if the command line has none."""

HIDDEN = ("workload", "model_options", "data_options", "reducer_options", "slurm")
"""Fields without an option: the workload is an argument, and each option of a part is a separate option."""

PREFIXES = {"reducer": "", "model": "model.", "data": "data."}
"""Prefix of the options of each part."""

SUGGESTED = {
    "reducer": Suggestions("reducers"),
    "model": Suggestions("models"),
    "data": Suggestions("datasets"),
    "task": Suggestions("tasks"),
}

WORKLOAD = Argument(
    "workload",
    str,
    f"One of `sage list`, or a TOML file; default: {DEFAULT}.",
    required=False,
    suggestions=Suggestions("workloads"),
)
CONFIG = Option(
    "config",
    Path | None,
    None,
    "A TOML file whose keys override the workload's; options override both.",
    group="Command",
)


class RunCommand(Command):
    """A command that takes the options of a run, which depend on the workload and its parts.

    Its callback gets the run's configuration as `config`, and the values of the command's own options.

    Args:
        own: the command's own options; they replace a run's options of the same name.
    """

    def __init__(
        self, name: str, callback: Callable[..., int], own: Sequence[Option], *, help: str, notes: str = ""
    ) -> None:
        super().__init__(name, callback, [WORKLOAD, *own, CONFIG], help=help, notes=notes)
        self.own = [option.name for option in own]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters and those of the chosen run."""
        base: Config | None = ctx.meta.get("sage.base")
        *own, helped = super().get_params(ctx)
        return [*own, *(o for o in (options_of(base) if base else []) if o.name not in self.own), helped]

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return the option --help, in the same group as the option --config."""
        if (option := super().get_help_option(ctx)) is not None:
            vars(option)["group"] = CONFIG.group
        return option

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the run's options.

        The parts are parsed first, since the other options depend on them.

        Raises:
            ValueError: if an option, a value or a file is wrong.
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
        """Write what the command does, and for which workload and parts the options are listed."""
        super().format_help_text(ctx, formatter)
        if (base := ctx.meta.get("sage.base")) is not None:
            formatter.write_paragraph()
            formatter.write_text(
                f"The options below are those of the workload {base.workload}, with the model "
                f"{registry.short(base.model)}, the data set {registry.short(base.data)} and the reducer "
                f"{registry.short(base.reducer)}. Another choice has other options."
            )


def chosen(args: Sequence[str], *, from_source: bool = False) -> Config:
    """Return the run of the command line's workload, file and parts, without the other options.

    Raises:
        ValueError: if one of them is wrong.
    """
    named = bool(args) and not args[0].startswith("-")
    workload, rest = (args[0], args[1:]) if named else (DEFAULT, args)
    parts = _named_parts(rest)
    file = parts.pop("config", None)
    config = load(workload, file=validate.path(file) if file else None, overrides=parts)
    return resolve(config, from_source=from_source)


def changed(base: Config, values: dict[str, Any]) -> Config:
    """Return the run with these values of its options.

    Raises:
        ValueError: if values contradict each other, or a part rejects its options.
    """
    changes: dict[str, Any] = {f"{part}_options": dict(getattr(base, f"{part}_options")) for part in PREFIXES}
    for name, value in with_preset(values).items():
        part, dot, option = name.rpartition(".")
        if dot:
            changes[f"{part}_options"][option] = value
        elif name in annotations():
            changes[name] = value
        else:
            changes["reducer_options"][name] = value
    for part in PREFIXES:
        changes.pop(part, None)  # already in the base, as an absolute path if it is a file
    if "task" in changes:
        changes["task"] = registry.located(changes["task"])
    config = resolve(Config.from_dict({**base.to_dict(), **changes}))
    # In a file neither is an error: a sweep gives them once for the runs of all mounts.
    if "bucket_mb" in values and config.mount == "whole":
        raise ValueError(
            f"--bucket-mb is {config.bucket_mb:g}, but the mount {config.mount} has no buckets: add --mount "
            "ddp, or leave --bucket-mb out"
        )
    if "shards" in values and config.mount != "fsdp":
        raise ValueError(
            f"--shards is {config.shards}, but the mount {config.mount} has no shards: add --mount fsdp, or "
            "leave --shards out"
        )
    if given := [name for name in FORMATS if name in values and set(FORMATS) <= unused(vars(config))]:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(
            f"{options}: here no replica has several shards; add --mount fsdp --shards 2 or more, or leave "
            f"{options} out"
        )
    if "ranks_per_node" in values and config.hierarchy == "flat":
        raise ValueError(
            f"--ranks-per-node is {config.ranks_per_node}, but the hierarchy is flat: add --hierarchy node, "
            "or leave --ranks-per-node out"
        )
    return config


def options_of(base: Config) -> list[Option]:
    """Return the options of a run with these parts; the values of `base` are the defaults."""
    sections, texts = _documented()
    options = [
        Option(
            name,
            annotations()[name],
            getattr(base, name),
            text,
            group=sections[name],
            suggestions=SUGGESTED.get(name),
        )
        for name, text in texts.items()
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


def _named_parts(args: Sequence[str]) -> dict[str, str]:
    """Return the parts, also that of a preset, and the TOML file that the command line names."""
    found = {}
    for at, word in enumerate(args):
        option, equals, value = word.partition("=")
        if option in ("--config", "--reducer", "--model", "--data", "--local"):
            if not equals:
                if at + 1 >= len(args) or args[at + 1].startswith("--"):
                    raise ValueError(f"{option}: expected one argument")
                value = args[at + 1]
            found[option[2:]] = value
    name: Any = found.pop("local", None)
    preset = PRESETS.get(name, {})  # an unknown one is refused with the other options
    return {**({"reducer": preset["reducer"]} if "reducer" in preset else {}), **found}


@cache
def _documented() -> tuple[dict[str, str], dict[str, str]]:
    """Return the section and the docstring of each field of Config, by field name; inherited fields last."""
    sections: dict[str, str] = {}
    texts: dict[str, str] = {}
    for kind in Config.__mro__[:-1]:
        source, section = textwrap.dedent(inspect.getsource(kind)), "Run"
        for line in source.splitlines():
            if title := re.fullmatch(r"    # ([A-Z][^.]*)", line):
                section = title[1]
            elif name := re.match(r"    (\w+): ", line):
                sections[name[1]] = section
        (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
        for field, text in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                doc = ast.literal_eval(text.value) if isinstance(text, ast.Expr) else ""
                texts[field.target.id] = " ".join(str(doc).split())
    return sections, texts
