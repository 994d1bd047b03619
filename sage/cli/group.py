"""A click group for SAGE, whose commands are imported on first use."""

from collections.abc import Mapping
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from ..validate import known
from .command import SETTINGS, PrintedHelp, joined, usage_error, write_notes


class Group(PrintedHelp, click.Group):
    """A command with subcommands, each of which is the variable `command` of a module.

    Args:
        commands: the module of each subcommand and its summary, by its name, in the order of the help. The
            summary is that of the subcommand's own help; it is given here so that the help of the group
            imports none of them.
        notes: text after the list of subcommands.
    """

    def __init__(
        self, name: str, commands: Mapping[str, tuple[str, str]], *, help: str, notes: str = ""
    ) -> None:
        super().__init__(name, help=help, epilog=notes, context_settings=SETTINGS, no_args_is_help=False)
        self.modules = {name: module for name, (module, _) in commands.items()}
        self.summaries = {name: summary for name, (_, summary) in commands.items()}

    kind = "command"
    """The word for a subcommand in help and errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help."""
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one subcommand."""
        if cmd_name not in self.modules:
            return None
        command = import_module(self.modules[cmd_name], __package__).command
        assert isinstance(command, click.Command)
        return command

    def summary(self, ctx: click.Context, name: str) -> str:
        """Return the summary of a subcommand."""
        return self.summaries[name]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options before the subcommand's name.

        Raises:
            ValueError: if an option is unknown, or no subcommand is given.
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
        """Print the help if `sage` itself has no subcommand; raise an error for every other group."""
        if ctx.parent is None:
            print(ctx.get_help())
            ctx.exit()
        names = ", ".join(self.list_commands(ctx))
        raise ValueError(f"`{ctx.command_path}` needs the name of a {self.kind}: one of {names}")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the subcommand that the first word names, and the words after it.

        Raises:
            ValueError: if there is no such subcommand; the message suggests similar names.
        """
        if not ctx.resilient_parsing:
            self.check(ctx, args[0])
        command = self.get_command(ctx, args[0])
        return (args[0] if command else None), command, args[1:]

    def check(self, ctx: click.Context, name: str) -> None:
        """Raise an error if no subcommand has this name."""
        known(self.kind, name, self.list_commands(ctx))

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the usage line."""
        formatter.write_usage(ctx.command_path, f"{self.kind.upper().replace(' ', '-')} ...")

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the group is for."""
        formatter.write_paragraph()
        formatter.write_text(self.help or "")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the subcommands, each with its summary."""
        names = self.list_commands(ctx)
        with formatter.section(f"{self.kind.capitalize()}s"):
            formatter.write_dl([(name, self.summary(ctx, name)) for name in names])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the notes, and how to get the help of a subcommand."""
        write_notes(formatter, self.epilog or "")
        formatter.write_paragraph()
        placeholder = self.kind.upper().replace(" ", "-")
        formatter.write_text(f"`{ctx.command_path} {placeholder} --help` shows the options of one.")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the names with this prefix, and their summaries."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        items = [CompletionItem(name, help=self.summary(ctx, name)) for name in names]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]
