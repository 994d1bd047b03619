"""Click commands and parameters for SAGE: options from type annotations, and one-line errors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, get_args, get_origin

import click

from ..output.text import clean_text
from ..validate import shown, takes_list
from .values import END, Suggestions, Value, plain

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class Option(click.Option):
    """An option `--name VALUE`, or `--name` and `--no-name` if the annotation is `bool`.

    Args:
        name: the name of the function's parameter, such as `lr_scale`, or `model.depth` for a part's option.
        annotation: the type of the value; an option of a tuple type takes several values.
        group: the heading in the help.
        required: whether the option must be given.
        suggestions: names for shell completion, in addition to the annotation's choices.
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
        # Click rejects names with a dot in its constructor, but accepts them as an attribute.
        self.name, self.group, self.annotation, self.fallback = name, group, annotation, default
        self.takes_list = not is_switch and takes_list(annotation)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Return the option with its values, and its help text with the default."""
        head = ", ".join([*self.opts, *self.secondary_opts])
        if not self.is_flag:
            head += f" {self.make_metavar(ctx)}"
        end = "(required)" if self.required else f"(default: {plain(self.fallback)})"
        return head, f"{self.help} {end}".strip()


class Argument(click.Argument):
    """A positional argument with a help text; `num_values` is -1 for any number of values."""

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
        """Return the name in capitals, in brackets if the argument is optional."""
        name = (self.name or "").upper() + (" ..." if self.nargs != 1 else "")
        return name if self.required else f"[{name}]"


class PrintedHelp(click.Command):
    """A command whose help is printed through `print`, and so to the protected stream."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return the option --help."""

        def show(ctx: click.Context, _: click.Parameter, value: bool) -> None:
            if value and not ctx.resilient_parsing:
                print(ctx.get_help())
                ctx.exit()

        if (option := super().get_help_option(ctx)) is not None:
            option.callback = show
        return option

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write usage, description, the list of options or subcommands, and notes."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)
        self.format_epilog(ctx, formatter)


class Command(PrintedHelp):
    """A command whose options are `Option` objects, and whose errors are one-line ValueErrors.

    Args:
        callback: called with the values as keyword arguments; returns the exit status.
        notes: text after the options; lines that begin with spaces are not wrapped.
        takes_rest: whether all words from the first argument on are passed on unparsed.
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
        """Parse the arguments into `ctx.params`.

        Raises:
            ValueError: if an argument is unknown, missing or wrong.
        """
        if ctx.resilient_parsing:  # shell completion: the command may be incomplete
            return super().parse_args(ctx, [word for word in args if END not in word])
        ctx.meta["sage.arguments"] = list(args)
        if ctx.allow_interspersed_args and not {"-h", "--help"}.isdisjoint(args):
            args = ["--help"]  # also if other arguments are wrong
        try:
            rest = super().parse_args(ctx, joined(self, ctx, args))
        except click.UsageError as error:
            raise ValueError(f"{usage_error(error)}; {_hint(ctx)}") from None
        if rest:
            raise ValueError(f"{shown(rest[0])} is not an argument of any flag; {_hint(ctx)}")
        return rest

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one line: the command, its arguments and [OPTIONS]."""
        formatter.write_usage(ctx.command_path, " ".join(self.collect_usage_pieces(ctx)))

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the arguments, then the options, since the options of `sage run` depend on the workload."""
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
        """Write what the command does."""
        formatter.write_paragraph()
        formatter.write_text(self.help or "")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments, and the options by group."""
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
        """Write the notes."""
        write_notes(formatter, self.epilog or "")


def write_notes(formatter: click.HelpFormatter, notes: str) -> None:
    """Write paragraphs; a paragraph that begins with a space is not wrapped."""
    for paragraph in filter(None, notes.split("\n\n")):
        formatter.write_paragraph()
        if paragraph.startswith(" "):
            formatter.write(paragraph + "\n")
        else:
            formatter.write_text(paragraph)


def usage_error(error: click.UsageError) -> str:
    """Return click's error message as a clause, without capital and full stop."""
    text = clean_text(error.format_message()).rstrip(".")
    return text[:1].lower() + text[1:]


def joined(command: click.Command, ctx: click.Context, args: Sequence[str]) -> list[str]:
    """Join each option and its values into one word, for click's parser.

    Click's options take a fixed number of values; these options take all values up to the next option.

    Raises:
        ValueError: if an option is unknown, or its value is missing.
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
                raise ValueError(f"{word} takes no value; write only {alone}")
            found.append(spelled)
        elif isinstance(option, Option) and option.takes_list:
            values = [value] if equals else []
            while not equals and pending is not None and not pending.startswith("--"):
                values.append(pending)
                pending = next(words, None)
            found.append(f"{spelled}=" + "".join(item + END for item in values))
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
    """Return the values from the command line, without defaults."""
    source = click.core.ParameterSource.COMMANDLINE
    return {name: value for name, value in ctx.params.items() if ctx.get_parameter_source(name) is source}
