"""Click's commands and parameters as SAGE uses them: options made of annotations, and errors of one line."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, get_args, get_origin

import click

from ..output.text import clean_text
from ..validate import shown, takes_list
from .values import END, Suggestions, Value, plain

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class Option(click.Option):
    """An option `--name VALUE`; where the annotation is `bool`, `--name` and `--no-name`.

    Args:
        name: as the function has it that takes the value, as `lr_scale`; `model.depth` of a part's option.
        annotation: the type of the value; one with a tuple takes several values.
        group: the heading in the help under which it stands.
        required: whether it must be given.
        suggestions: what shell completion offers beside the annotation's choices.
    """

    def __init__(
        self,
        name: str,
        annotation: Any,
        default: Any = None,
        help: str = "",
        *,
        group: str = "Options",
        required: bool = False,
        suggestions: Suggestions | None = None,
    ) -> None:
        spelled = "--" + name.replace("_", "-")
        is_switch = annotation is bool or (
            get_origin(annotation) is Annotated and get_args(annotation)[0] is bool
        )
        if is_switch:
            part, dot, last = name.rpartition(".")
            negated = "--" + f"{part}{dot}no_{last}".replace("_", "-")
            super().__init__(["name", f"{spelled}/{negated}"], default=bool(default), help=help)
        else:
            kind = Value(annotation, suggestions)
            super().__init__(["name", spelled], type=kind, default=default, help=help, required=required)
        # Click allows no names with a dot, but needs none without.
        self.name, self.group, self.annotation, self.fallback = name, group, annotation, default
        self.takes_list = not is_switch and takes_list(annotation)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """The option with its values, and its help with the default."""
        head = ", ".join([*self.opts, *self.secondary_opts])
        if not self.is_flag:
            head += f" {self.make_metavar(ctx)}"
        end = "(required)" if self.required else f"(default: {plain(self.fallback)})"
        return head, f"{self.help} {end}".strip()


class Argument(click.Argument):
    """An argument with a help text; `num_values` is -1 where there may be any number."""

    def __init__(
        self,
        name: str,
        annotation: Any,
        help: str,
        *,
        required: bool = True,
        num_values: int = 1,
        suggestions: Suggestions | None = None,
    ) -> None:
        super().__init__([name], type=Value(annotation, suggestions), required=required, nargs=num_values)
        self.help = help

    def make_metavar(self, ctx: click.Context) -> str:
        """The name in capitals, in brackets where it may be left out."""
        name = (self.name or "").upper() + (" ..." if self.nargs != 1 else "")
        return name if self.required else f"[{name}]"


class Command(click.Command):
    """A command whose options are `Option`s, and whose errors are ValueErrors of one line.

    Args:
        callback: is called with the values by name, and returns the exit status.
        notes: text after the options; lines that begin with spaces stay as they are.
        takes_rest: whether everything from the first argument on is handed on as it is.
    """

    def __init__(
        self,
        name: str,
        callback: Callable[..., int] | None,
        params: Sequence[click.Parameter] = (),
        *,
        help: str,
        notes: str = "",
        takes_rest: bool = False,
    ) -> None:
        super().__init__(
            name,
            callback=callback,
            params=list(params),
            help=help,
            epilog=notes,
            context_settings={
                **SETTINGS,
                "allow_extra_args": True,
                "allow_interspersed_args": not takes_rest,
            },
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments into `ctx.params`.

        Raises:
            ValueError: where one is unknown, missing or wrong.
        """
        if ctx.resilient_parsing:  # shell completion, where what is there may be half a command
            return super().parse_args(ctx, [word for word in args if END not in word])
        ctx.meta["sage.arguments"] = list(args)
        if ctx.allow_interspersed_args and not {"-h", "--help"}.isdisjoint(args):
            args = ["--help"]  # whatever else is wrong
        try:
            rest = super().parse_args(ctx, joined(self, ctx, args))
        except click.UsageError as error:
            raise ValueError(f"{usage_error(error)}; {_hint(ctx)}") from None
        if rest:
            raise ValueError(f"{shown(rest[0])} follows no flag that takes it; {_hint(ctx)}")
        return rest

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """The option --help, which prints to the stream that never fails."""
        return help_option(super().get_help_option(ctx))

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, what the command does, its arguments and options, notes; in every version of click alike."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)
        self.format_epilog(ctx, formatter)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line: the command, its arguments and [OPTIONS]."""
        formatter.write_usage(ctx.command_path, " ".join(self.collect_usage_pieces(ctx)))

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Arguments first, as the options of `sage run` depend on the workload."""
        arguments = [p.make_metavar(ctx) for p in self.get_params(ctx) if isinstance(p, click.Argument)]
        required = [
            f"{p.opts[0]} {p.make_metavar(ctx)}"
            for p in self.get_params(ctx)
            if isinstance(p, Option) and p.required
        ]
        pieces = [*arguments, *required]
        if not self.context_settings["allow_interspersed_args"]:
            pieces = [*required, "[OPTIONS]", *arguments]
            return pieces
        return [*pieces, "[OPTIONS]"]

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What the command does."""
        formatter.write_paragraph()
        formatter.write_text(self.help or "")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The arguments, and the options in their groups."""
        params = self.get_params(ctx)
        if arguments := [p for p in params if isinstance(p, Argument) and p.help]:
            with formatter.section("Arguments"):
                formatter.write_dl([(p.make_metavar(ctx), p.help or "") for p in arguments])
        options = [p for p in params if isinstance(p, click.Option)]
        for group in dict.fromkeys(getattr(p, "group", "Options") for p in options):
            records = [p.get_help_record(ctx) for p in options if getattr(p, "group", "Options") == group]
            with formatter.section(group):
                formatter.write_dl([record for record in records if record])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The notes."""
        write_notes(formatter, self.epilog or "")


def write_notes(formatter: click.HelpFormatter, notes: str) -> None:
    """Write paragraphs; one whose lines begin with spaces is written as it is."""
    for paragraph in filter(None, notes.split("\n\n")):
        formatter.write_paragraph()
        if paragraph.startswith(" "):
            formatter.write(paragraph + "\n")
        else:
            formatter.write_text(paragraph)


def help_option(option: click.Option | None) -> click.Option | None:
    """The same option, which prints through `print`."""

    def show(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            print(ctx.get_help())
            ctx.exit()

    if option is not None:
        option.callback = show
    return option


def usage_error(error: click.UsageError) -> str:
    """What click says of a command line, as a clause."""
    text = clean_text(error.format_message()).rstrip(".")
    return text[:1].lower() + text[1:]


def joined(command: click.Command, ctx: click.Context, args: Sequence[str]) -> list[str]:
    """The arguments with each option and its values in one word, as click's parser takes them.

    Click's options take one value, or a number that is known before; these take values up to the next option.

    Raises:
        ValueError: where an option is unknown or lacks its value.
    """
    options = {
        word: param
        for param in command.get_params(ctx)
        if isinstance(param, click.Option)
        for word in (*param.opts, *param.secondary_opts)
    }
    words = iter(args)
    found: list[str] = []
    pending = next(words, None)
    while pending is not None:
        given, pending = pending, next(words, None)
        if not given.startswith("-"):
            found.append(given)
            if not ctx.allow_interspersed_args:
                return [*found, *([] if pending is None else [pending]), *words]
            continue
        word, equals, value = given.partition("=")
        spelled = word.replace("_", "-")
        if spelled not in options:
            raise ValueError(_unknown(word, spelled, options, ctx.command_path))
        option = options[spelled]
        if option.is_flag:
            if equals:
                alone = " or ".join([*option.opts, *option.secondary_opts])
                raise ValueError(f"{word} takes no value; give {alone} alone")
            found.append(spelled)
        elif isinstance(option, Option) and option.takes_list:
            values = [value] if equals else []
            while not equals and pending is not None and not pending.startswith("--"):
                values.append(pending)
                pending = next(words, None)
            found.append(f"{spelled}=" + "".join(each + END for each in values))
        else:
            if not equals:
                if pending is None or pending.startswith("--"):
                    raise ValueError(f"{word}: expected one argument")
                value, pending = pending, next(words, None)
            found.append(f"{spelled}={value}")
    return found


def _unknown(word: str, spelled: str, valid: Iterable[str], command: str) -> str:
    near = get_close_matches(spelled[:200], list(valid), n=3, cutoff=0.6)
    if near:
        return f"no flag of `{command}` is called {shown(word)}; did you mean {' or '.join(near)}?"
    return f"no flag of `{command}` is called {shown(word)}; `{command} --help` lists all"


def _hint(ctx: click.Context) -> str:
    return f"`{ctx.command_path} --help` lists what is allowed"


def given(ctx: click.Context) -> Mapping[str, Any]:
    """The values that the command line gives, without defaults."""
    source = click.core.ParameterSource.COMMANDLINE
    return {name: value for name, value in ctx.params.items() if ctx.get_parameter_source(name) is source}
