"""`sage conform`: check a reducer against the invariants that all reducers keep."""

from typing import Any

from .. import registry
from .command import Command, Option
from .part_group import PartGroup


def of(name: str) -> Command:
    """Return the command that checks one reducer, with the reducer's options.

    Raises:
        ValueError: if there is no such reducer.
    """

    def run(*, world_sizes: tuple[int, ...], **options: Any) -> int:
        from ..testing.conformance import main

        return main(name, options, world_sizes)

    own = [
        Option(key, option.type, option.default, option.help)
        for key, option in registry.options_of("reducers", name, from_source=True).items()
    ]
    sizes = Option("world_sizes", tuple[int, ...], (1, 2, 4), "Numbers of ranks to try.")
    return Command(name, run, [sizes, *own], help=registry.summary("reducers", name))


command = PartGroup(
    "conform",
    "reducers",
    of,
    help="Check a reducer against the invariants that all reducers keep.",
    notes="REDUCER may also be a file, such as ./mine.py, or a combination, such as topk+terngrad.",
)
