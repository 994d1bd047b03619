"""Command-line flags, which tyro makes of a Config's fields and of the options that the chosen parts take."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from . import registry
from .config import Config, annotations, load, part_options, resolve

_HIDDEN = ("workload", "model_options", "data_options", "reducer_options", "slurm")
"""Fields that have no flag: the workload stands first, the options have flags of their own."""


def parse_run(argv: Sequence[str]) -> tuple[Config, bool]:
    """Read `[WORKLOAD] [--FLAG VALUE ...]`: the run, and whether it is to be printed instead of run.

    The reducer, model and data set are looked for first, since which other flags there are is theirs to say.
    """
    given = bool(argv) and not argv[0].startswith("-")
    workload, rest = (argv[0], argv[1:]) if given else ("digits", argv)
    named = _named_parts(rest)
    file = named.pop("config", None)
    base = resolve(load(workload, file=Path(file) if file else None, overrides=named))
    parts = part_options(base)
    flags = make_dataclass(
        "Flags",
        [(name, Annotated[annotations()[name], tyro.conf.Suppress]) for name in _HIDDEN],
        bases=(Config,),
        frozen=True,
        kw_only=True,
    )
    shown: dict[str, tuple[Any, Any]] = {
        "config": (
            _flag(Path | None, "A TOML file that changes the workload, and that the flags change."),
            None,
        ),
        "print_config": (
            _flag(tyro.conf.FlagCreatePairsOff[bool], "Print the run, with its folder, and do not run it."),
            False,
        ),
        "run": (_flag(flags, name=""), flags(**{name: getattr(base, name) for name in annotations()})),
    }
    for part, prefix in (("reducer", ""), ("model", "model"), ("data", "data")):
        # Without a prefix these flags join the others; a part without options would be an empty heading.
        if parts[part]:
            struct = _struct(parts[part], getattr(base, f"{part}_options"))
            shown[f"{part}_options"] = (_flag(struct, name=prefix), struct())
    description = (
        f"Train {base.model} on {base.data} under {base.reducer}; the flags below are this choice's."
    )
    answer = _ask(shown, rest, prog=f"sage run {workload}", description=description)
    options = {name: asdict(getattr(answer, name)) for name in shown if name.endswith("_options")}
    return resolve(Config.from_dict({**answer.run.to_dict(), **options})), answer.print_config


def parse_options(
    argv: Sequence[str], options: Mapping[str, registry.Option], *, prog: str, description: str
) -> dict[str, Any]:
    """Read flags for these options and nothing else."""
    shown = {name: (_flag(option.type, option.help), option.default) for name, option in options.items()}
    answer = _ask(shown, argv, prog=prog, description=description)
    return {name: getattr(answer, name) for name in shown}


def _named_parts(argv: Sequence[str]) -> dict[str, str]:
    parser = argparse.ArgumentParser(prog="sage run", add_help=False, allow_abbrev=False)
    for name in ("config", "reducer", "model", "data"):
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS)
    return vars(parser.parse_known_args(argv)[0])


def _flag(type: Any, help: str | None = None, *, name: str | None = None) -> Any:
    return Annotated[type, tyro.conf.arg(help=help or None, name=name)]


def _struct(options: Mapping[str, registry.Option], values: Mapping[str, Any]) -> Any:
    spelled: list[Any] = [
        (name, _flag(option.type, option.help), field(default=values.get(name, option.default)))
        for name, option in options.items()
    ]
    return make_dataclass("Options", spelled, frozen=True, kw_only=True)


def _ask(shown: Mapping[str, tuple[Any, Any]], argv: Sequence[str], *, prog: str, description: str) -> Any:
    asked = make_dataclass("Asked", [(name, flag) for name, (flag, _) in shown.items()], kw_only=True)
    default = asked(**{name: value for name, (_, value) in shown.items()})
    return tyro.cli(asked, args=argv, default=default, prog=prog, description=description)
