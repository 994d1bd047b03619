"""A click group for SAGE with one command for each part of a registry kind."""

from collections.abc import Callable

import click

from .. import registry
from .group import Group


class PartGroup(Group):
    """A command with one subcommand for each part of a registry kind, such as `sage conform REDUCER`.

    Args:
        part_kind: the registry kind of the parts.
        make: returns the subcommand for a part's name, and imports the part.
    """

    def __init__(
        self,
        name: str,
        part_kind: registry.PartKind,
        make: Callable[[str], click.Command],
        *,
        help: str,
        notes: str = "",
    ) -> None:
        super().__init__(name, {}, help=help, notes=notes)
        self.part_kind: registry.PartKind = part_kind
        self.make, self.kind = make, registry.KINDS[part_kind]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the registered parts."""
        return registry.names(self.part_kind)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the subcommand for a part, which may also be given as a module or a file.

        In shell completion the result is None if the part does not load.
        """
        try:
            return self.make(cmd_name)
        except ValueError:
            if ctx.resilient_parsing:
                return None
            raise

    def summary(self, ctx: click.Context, name: str) -> str:
        """Return the first line of the part's docstring."""
        return registry.summary(self.part_kind, name)

    def check(self, ctx: click.Context, name: str) -> None:
        """Raise an error if the name is not that of a part."""
        registry.check_name(self.part_kind, name)
