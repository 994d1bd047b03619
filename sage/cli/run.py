"""`sage run`: train a workload with a reducer."""

import json
import os

import click

from ..config import Config
from .command import Option
from .run_command import RunCommand


def run(*, config: Config, print_config: bool) -> int:
    """Train the run, or print its configuration."""
    if print_config:
        from ..comm.rendezvous import place
        from ..train.preflight import check

        check(config, here=place() is None)
        print(json.dumps({"folder": str(config.folder), "config": config.to_dict()}, indent=2))
        return 0
    from ..train.run import main

    return main(config)


def parse_run(args: list[str]) -> Config:
    """Return the configuration of the run that `sage run` would train with these arguments.

    Raises:
        ValueError: if an argument is wrong.
    """
    config: Config = command.make_context("run", args).params["config"]
    return config


class _Run(RunCommand):
    """The command `sage run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Before torch is imported: SAGE reports failed peers, without torch's stack traces.
        if not ctx.resilient_parsing and ctx.parent is not None:
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
        return super().parse_args(ctx, args)


command = _Run(
    "run",
    run,
    [
        Option(
            "print_config",
            bool,
            False,
            "Print the configuration and the run folder, and do not run.",
            group="Command",
        )
    ],
    help="Train a workload with a reducer. A finished run is reused; an interrupted one resumes.",
)
