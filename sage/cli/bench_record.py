"""`sage bench record`: record the gradients of a run in a file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import click

from .. import storage
from ..config import Config
from .command import Command, Option
from .run_command import RunCommand

Format = Literal["trace", "npy"]


def record(
    *, config: Config | Path, out: Path, steps: int, elements: int, format: Format, **_: object
) -> int:
    """Record the gradients."""
    from ..bench.record import main

    return main(config, out=out, steps=steps, elements=elements, format=format)


class _Record(RunCommand):
    """A command that also accepts a run folder, instead of a workload and a run's options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the run's options, or the run folder.

        Raises:
            ValueError: if an option is wrong, or if a run's options are given in addition to a run folder.
        """
        if not (args and storage.is_there(Path(args[0]) / "config.json")):
            return super().parse_args(ctx, args)
        others = [] if {"-h", "--help"} & {*args} else self._others(args[1:])
        if others and not ctx.resilient_parsing:
            raise ValueError(f"{args[0]} is a run and has its configuration: leave out {' '.join(others)}")
        rest = Command.parse_args(self, ctx, args)
        if not ctx.resilient_parsing:
            folder = Path(args[0])
            ctx.params = {**{name: ctx.params[name] for name in self.own}, "config": folder}
        return rest

    def _others(self, words: Iterable[str]) -> list[str]:
        """Return the words other than the command's own options and their values."""
        own = {f"--{name}" for name in self.own}
        left, words = [], iter(words)
        for word in words:
            name, equals, _ = word.partition("=")
            if name not in own:
                left.append(word)
            elif not equals:
                next(words, None)
        return left


def size() -> list[Option]:
    """Return the options that set the size of a trace."""
    return [
        Option("steps", int, 120, "Number of steps to record."),
        Option("elements", int, 2**18, "Maximum number of elements to keep of each gradient."),
    ]


command = _Record(
    "record",
    record,
    [
        Option("out", Path, None, "The file to write; with --format npy, the folder.", required=True),
        *size(),
        Option(
            "format",
            Format,
            "trace",
            "One file, or a plain float32 vector as .npy for each step and rank.",
        ),
    ],
    help="Record the gradients of a run in a file. All its ranks are simulated in this process.",
    notes="A run folder may be given instead of the workload and a run's options. The steps after its newest "
    "checkpoint are recorded, and the folder is not changed.",
)
