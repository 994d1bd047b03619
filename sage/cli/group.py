"""Click's groups as SAGE uses them: of commands that are imported when they are needed, or of parts."""

from collections.abc import Callable
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from .. import registry
from ..validate import known
from .command import SETTINGS, help_option, joined, usage_error, write_notes


class Group(click.Group):
    """A command with commands below it, each in a module of its own that has it as `command`.

    Args:
        modules: the module of each command, by the command's name, in the order of the help.
        notes: text after the list of commands.
    """

    def __init__(self, name: str, modules: dict[str, str], *, help: str, notes: str = "") -> None:
        super().__init__(name, help=help, epilog=notes, context_settings=SETTINGS, no_args_is_help=False)
        self.modules = modules

    kind = "command"
    """What is below it, as help and errors call it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.modules:
            return None
        command = import_module(self.modules[cmd_name], __package__).command
        assert isinstance(command, click.Command)
        return command

    def summary(self, ctx: click.Context, name: str) -> str:
        """What a command does, in one line."""
        command = self.get_command(ctx, name)
        return (command.help or "").partition(". ")[0].rstrip(".") + "." if command else ""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options before the command's name.

        Raises:
            ValueError: where an option is unknown, or no command is named.
        """
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        if not args:
            return self.parse_nothing(ctx)
        try:
            return super().parse_args(ctx, joined(self, ctx, args))
        except click.UsageError as error:
            raise ValueError(f"{usage_error(error)}; `{ctx.command_path} --help` lists all") from None

    def parse_nothing(self, ctx: click.Context) -> list[str]:
        """What follows where no command is named: help for `sage` itself, else an error."""
        if ctx.parent is None:
            print(ctx.get_help())
            ctx.exit()
        names = ", ".join(self.list_commands(ctx))
        raise ValueError(f"`{ctx.command_path}` needs the name of a {self.kind}: one of {names}")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names, and the words after it.

        Raises:
            ValueError: where there is no such command, with the near misses.
        """
        if not ctx.resilient_parsing:
            self.check(ctx, args[0])
        command = self.get_command(ctx, args[0])
        return (args[0] if command else None), command, args[1:]

    def check(self, ctx: click.Context, name: str) -> None:
        """Refuse a name that no command has."""
        known(self.kind, name, self.list_commands(ctx))

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """The option --help, which prints to the stream that never fails."""
        return help_option(super().get_help_option(ctx))

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, what the group is for, its commands and options, notes."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)
        self.format_epilog(ctx, formatter)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line."""
        formatter.write_usage(ctx.command_path, f"{self.kind.upper().replace(' ', '-')} ...")

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What the group is for."""
        formatter.write_paragraph()
        formatter.write_text(self.help or "")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands, each with its summary."""
        names = self.list_commands(ctx)
        with formatter.section(f"{self.kind.capitalize()}s"):
            formatter.write_dl([(name, self.summary(ctx, name)) for name in names])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The notes, and where more is said."""
        write_notes(formatter, self.epilog or "")
        formatter.write_paragraph()
        placeholder = self.kind.upper().replace(" ", "-")
        formatter.write_text(f"`{ctx.command_path} {placeholder} --help` shows the options of one.")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The names that begin like this, with what each is; no command is imported for it but these."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        items = [CompletionItem(name, help=self.summary(ctx, name)) for name in names]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]


class PartGroup(Group):
    """A command with one command below it for each part of a room, as `sage conform REDUCER`.

    Args:
        make: the command for a part, by the part's name; imports the part.
    """

    def __init__(
        self,
        name: str,
        room: registry.Room,
        make: Callable[[str], click.Command],
        *,
        help: str,
        notes: str = "",
    ) -> None:
        super().__init__(name, {}, help=help, notes=notes)
        self.room, self.make, self.kind = room, make, registry.KINDS[room]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The parts that have a name."""
        return registry.names(self.room)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command for a part, which may be a module or a file too; in shell completion where it loads."""
        try:
            return self.make(cmd_name)
        except ValueError:
            if ctx.resilient_parsing:
                return None
            raise

    def summary(self, ctx: click.Context, name: str) -> str:
        """The first line of the part's docstring."""
        return registry.summary(self.room, name)

    def check(self, ctx: click.Context, name: str) -> None:
        """Refuse what names no part."""
        registry.check_name(self.room, name)
